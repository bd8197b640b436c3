"""A modality on a wire: pushes a folder of Part 10 files, or data sets, over real associations.

The bytes of each data set go out as they lie in the file, whatever their Transfer Syntax: a modality that
re-encodes would hide what a node does with odd input. It never repairs and never retries a refused instance.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from node.calling import keep_answers
from node.errors import Transient
from node.uids import derive_uid

IMPLEMENTATION_CLASS_UID = derive_uid("simulated modality")
IMPLEMENTATION_VERSION_NAME = "WETREAD_SCANNER"
MAX_CONTEXTS = 128
"""Presentation Context IDs are the odd numbers from 1 to 255 (PS3.8 §9.3.2.2)."""


class NoAssociation(Transient):
    """The peer could not be reached or did not accept the association; nothing was sent."""


@dataclass(frozen=True)
class Item:
    """One file to push, as its File Meta Information describes it (PS3.10 §7.1)."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str

    @property
    def context(self) -> tuple[str, str]:
        """The (SOP class, Transfer Syntax) that its Presentation Context must have."""
        return self.sop_class_uid, self.transfer_syntax_uid


@dataclass(frozen=True)
class Sent:
    """What became of one instance: the DIMSE status, or None with a note when none came back."""

    path: Path
    sop_instance_uid: str
    status: int | None
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the peer keeps it: success or one of the warnings of PS3.4 §B.2.3."""
        return self.status in (0x0000, 0xB000, 0xB006, 0xB007)


@dataclass(frozen=True)
class SendReport:
    """What became of all; `left_out` names the files that are not Part 10, each with the reason."""

    sent: tuple[Sent, ...]
    left_out: tuple[str, ...]
    seconds: float

    @property
    def refused(self) -> tuple[Sent, ...]:
        """The instances that the peer does not keep."""
        return tuple(sent for sent in self.sent if not sent.ok)

    @property
    def ok(self) -> bool:
        """Whether something was sent and all of it was kept."""
        return bool(self.sent) and not self.refused


def echo(host: str, port: int, ae: str = "SCANNER", called: str = "WETREAD", timeout: float = 10.0) -> int:
    """Send one C-ECHO (PS3.4 Annex A); return its status, raise `NoAssociation` when the peer is not there."""
    entity = _entity(ae, timeout)
    entity.add_requested_context(Verification, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    assoc = _associate(entity, host, port, called)
    try:
        if not assoc.accepted_contexts:
            raise NoAssociation(f"{called} at {host}:{port} accepts the association but not the Verification class.")
        status = getattr(assoc.send_c_echo(), "Status", None)
    finally:
        assoc.release() if assoc.is_established else assoc.abort()
    if status is None:
        raise NoAssociation(f"{called} at {host}:{port} accepted the association but did not answer the C-ECHO.")
    return int(status)


def send(
    source: Path | Sequence[Dataset],
    host: str,
    port: int,
    ae: str = "SCANNER",
    called: str = "WETREAD",
    timeout: float = 60.0,
    on_sent: Callable[[Sent], None] | None = None,
) -> SendReport:
    """Push every file below a folder (or one file, or data sets) from `ae` to `called`.

    Raises `NoAssociation` when the first association cannot be made; a lost one is made anew for the next instance.
    """
    if isinstance(source, Path):
        return _send_files(source, host, port, ae, called, timeout, on_sent)
    with tempfile.TemporaryDirectory(prefix="wetread-scanner-") as folder:
        for number, ds in enumerate(source):
            ds.save_as(Path(folder) / f"{number:06d}.dcm", enforce_file_format=True)
        return _send_files(Path(folder), host, port, ae, called, timeout, on_sent)


def scan(source: Path) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """Read the File Meta Information of every file; return the items and, for each file left out, why."""
    items, left_out = [], []
    paths = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    for path in paths:
        item = _item(path)
        items.append(item) if isinstance(item, Item) else left_out.append(f"{path.name}: {item}")
    return tuple(items), tuple(left_out)


def _item(path: Path) -> Item | str:
    try:
        meta = read_file_meta_info(path)
        return Item(
            path,
            str(meta.MediaStorageSOPClassUID),
            str(meta.MediaStorageSOPInstanceUID),
            str(meta.TransferSyntaxUID),
        )
    except AttributeError as error:
        return f"File Meta Information without {str(error).rsplit(chr(39), 2)[-2]}"
    except Exception as error:  # pydicom raises many kinds on files that are not DICOM
        return f"not a Part 10 file ({type(error).__name__})"


def _send_files(
    source: Path, host: str, port: int, ae: str, called: str, timeout: float, on_sent: Callable[[Sent], None] | None
) -> SendReport:
    started = time.monotonic()
    items, left_out = scan(source)
    sent: list[Sent] = []
    for batch in _batches(items):
        for one in _send_batch(batch, host, port, ae, called, timeout):
            sent.append(one)
            if on_sent:
                on_sent(one)
    return SendReport(tuple(sent), left_out, time.monotonic() - started)


def _batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Split items, in order, so that no association needs more than 128 Presentation Contexts."""
    batch: list[Item] = []
    contexts: set[tuple[str, str]] = set()
    for item in items:
        if item.context not in contexts and len(contexts) == MAX_CONTEXTS:
            yield batch
            batch, contexts = [], set()
        contexts.add(item.context)
        batch.append(item)
    if batch:
        yield batch


def _send_batch(batch: Sequence[Item], host: str, port: int, ae: str, called: str, timeout: float) -> Iterator[Sent]:
    entity = _entity(ae, timeout)
    for sop_class, syntax in dict.fromkeys(item.context for item in batch):
        entity.add_requested_context(sop_class, syntax)
    assoc = _associate(entity, host, port, called)
    for number, item in enumerate(batch):
        if not assoc.is_established:  # the instance before cost us the association; this one is not to blame
            assoc = _associate(entity, host, port, called)
        yield _send_one(assoc, item, number % 65535 + 1)
    assoc.release() if assoc.is_established else assoc.abort()


def _send_one(assoc: Any, item: Item, message_id: int) -> Sent:
    try:
        status = assoc.send_c_store(item.path, msg_id=message_id)
    except ValueError:
        name = UID(item.transfer_syntax_uid).name
        return Sent(item.path, item.sop_instance_uid, None, f"no Presentation Context accepted with {name}")
    except (AttributeError, RuntimeError, OSError) as error:
        return Sent(item.path, item.sop_instance_uid, None, f"not sent ({type(error).__name__})")
    if "Status" not in status:
        assoc.abort()  # the reactor may not have noticed yet that the connection is gone
        return Sent(item.path, item.sop_instance_uid, None, "no answer: aborted or timed out")
    return Sent(item.path, item.sop_instance_uid, int(status.Status), str(status.get("ErrorComment", "")))


def _entity(ae_title: str, timeout: float) -> AE:
    _config.STORE_SEND_CHUNKED_DATASET = True  # a path goes out as raw bytes, never decoded
    entity = AE(ae_title)
    entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = timeout
    entity.network_timeout = timeout + 5
    entity.maximum_pdu_size = 0
    return entity


def _associate(entity: AE, host: str, port: int, called: str) -> Any:
    handlers: list[Any] = [(evt.EVT_CONN_OPEN, _on_open), (evt.EVT_PDU_SENT, _on_pdu_sent)]
    try:
        assoc = entity.associate(host, port, ae_title=called, evt_handlers=handlers)
    except OSError as error:  # the name does not resolve
        raise NoAssociation(f"{called} at {host}:{port} was not found: {error.strerror}. Nothing was sent.") from None
    if assoc.is_established:
        keep_answers(assoc)
        return assoc
    answer = assoc.acceptor.primitive
    if assoc.is_rejected and answer is not None:
        why = f"{answer.reason_str} (result {answer.result}, source {answer.result_source}, reason {answer.diagnostic})"
        raise NoAssociation(f"{called} at {host}:{port} rejected the association from {entity.ae_title}: {why}.")
    if answer is not None:
        raise NoAssociation(f"{called} at {host}:{port} accepts none of the Presentation Contexts offered.")
    raise NoAssociation(f"{called} at {host}:{port} does not answer. Nothing was sent; is it running there?")


def _on_open(event: Any) -> None:
    """Send at once, and give up on a peer that stops reading; pynetdicom alone would block for ever."""
    sock = event.assoc.dul.socket.socket
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(event.assoc.dimse_timeout)


def _on_pdu_sent(event: Any) -> None:
    """Acknowledge the peer's next segment at once: a peer with Nagle's algorithm waits 40 ms for it otherwise."""
    sock = event.assoc.dul.socket.socket
    if sock is not None and hasattr(socket, "TCP_QUICKACK"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
