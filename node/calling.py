"""Associations that we open: our AE as it calls a peer, with timeouts that hold, and why there was none in one word.

Never raises for what a peer does. A peer that stops reading is given up after `Timeouts.write`: pynetdicom alone would
block for ever.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from node import uids
from node.errors import Permanent
from node.settings import Destination, Settings, TlsSettings
from node.tls import client_context

LOST = (RuntimeError, ValueError)
"""What pynetdicom raises where the association has ended since it was looked at, or no context can be used."""
_SMALLEST_PDU = 7
"""Bytes of a P-DATA-TF that carry one of a message: six are its header (PS3.8 §9.3.5.1)."""
Kind = Literal["status", "rejected", "no_context", "aborted", "timeout", "tls", "unreachable"]


@dataclass(frozen=True)
class Peer:
    """The AE to call, and as whom."""

    host: str
    port: int
    ae_title: str
    calling_ae: str
    tls: TlsSettings | None = None
    """Call over TLS with these files; None: as it is."""

    @classmethod
    def of(cls, destination: Destination, settings: Settings) -> Peer:
        """Return how `destination` is called by the node of `settings`."""
        tls = settings.tls if destination.tls else None
        return cls(destination.host, destination.port, destination.ae_title, settings.node.ae_title, tls)


@dataclass(frozen=True)
class Timeouts:
    """Seconds to wait: for the TCP connection, the association, each response, and each write to the socket."""

    connect: float = 10.0
    acse: float = 30.0
    dimse: float = 60.0
    write: float = 30.0


@dataclass(frozen=True)
class Answer:
    """What a peer answered; `status` with kind "status" only, `rejection` (result, source, reason) with "rejected"."""

    kind: Kind
    status: int | None = None
    rejection: tuple[int, int, int] | None = None
    note: str = ""
    remedy: str = ""
    """What to do about it, where the kind alone does not tell."""

    @property
    def code(self) -> str:
        """The answer as one word for people and for `delivery.last_status`: `A700`, `RJ 2,3,2`, `TIMEOUT`."""
        if self.status is not None:
            return f"{self.status:04X}"
        if self.rejection is not None:
            return "RJ {},{},{}".format(*self.rejection)
        return self.kind.upper()


@dataclass(frozen=True)
class Accepted:
    """An association that stands."""

    assoc: Any


def entity_for(peer: Peer, timeouts: Timeouts) -> AE:
    """Return our AE as it calls this peer: our title, our Implementation Class UID, our timeouts."""
    _config.STORE_SEND_CHUNKED_DATASET = True  # a path goes out as raw bytes, never decoded
    entity = AE(peer.calling_ae)
    entity.implementation_class_uid = UID(uids.IMPLEMENTATION_CLASS_UID)
    entity.implementation_version_name = uids.IMPLEMENTATION_VERSION_NAME
    entity.connection_timeout = timeouts.connect
    entity.acse_timeout = timeouts.acse
    entity.dimse_timeout = timeouts.dimse
    entity.network_timeout = timeouts.dimse + timeouts.write
    entity.maximum_pdu_size = 0
    return entity


def associate(entity: AE, peer: Peer, write_timeout: float, **options: Any) -> Accepted | Answer:
    """Open an association with the contexts of `entity`; an `Answer` says why there is none."""
    opened = threading.Event()
    handlers = [
        (evt.EVT_CONN_OPEN, _on_open, [write_timeout, opened]),
        (evt.EVT_PDU_SENT, _on_pdu_sent),
        *options.pop("evt_handlers", []),
    ]
    try:
        context = client_context(peer.tls) if peer.tls is not None else None
    except Permanent as error:  # a file of ours; whoever puts it right need not know of what waits
        return Answer("tls", note=str(error).removesuffix("."))
    if context is not None:
        options["tls_args"] = (context, peer.host)
    started = time.monotonic()
    try:
        assoc = entity.associate(peer.host, peer.port, ae_title=peer.ae_title, evt_handlers=handlers, **options)
    except OSError as error:
        return Answer("unreachable", note=f"{peer.host} does not resolve ({error.strerror})")
    if assoc.is_established:
        largest = assoc.acceptor.maximum_length or _SMALLEST_PDU  # 0: of any size
        if largest < _SMALLEST_PDU:
            assoc.abort()
            return Answer("aborted", note=f"it takes PDUs of {largest} bytes, which hold nothing")
        if not _may_be_asked(handlers):
            keep_answers(assoc)
        return Accepted(assoc)
    if context is not None and context.failure is not None:
        return Answer("tls", note=context.failure.what, remedy=context.failure.remedy)
    return _no_association(assoc, time.monotonic() - started, opened.is_set())


def keep_answers(assoc: Any) -> None:
    """Let nobody but who asked take an answer.

    pynetdicom's own thread looks for requests of the peer, and after a request of ours may still take the answer to
    the next one away (it is told to pause, and has just been told to go on); the asker then waits for its timeout.
    """
    get_msg = assoc.dimse.get_msg
    assoc.dimse.get_msg = lambda block=False: get_msg(True) if block else (None, None)


def _may_be_asked(handlers: Iterable[tuple[Any, ...]]) -> bool:
    """Say whether the peer may send requests of its own here; those of C-GET come while its answers are waited for."""
    return any(handler[0] is evt.EVT_N_EVENT_REPORT for handler in handlers)


def _no_association(assoc: Any, waited: float, opened: bool) -> Answer:
    answer = assoc.acceptor.primitive
    if assoc.is_rejected and answer is not None:
        reason = (answer.result, answer.result_source, answer.diagnostic)
        return Answer("rejected", rejection=reason, note=str(answer.reason_str))
    if assoc.accepted_contexts:  # it stood until a moment ago
        return Answer("aborted", note="it ended the association at once")
    if answer is not None:  # accepted, but none of the contexts; pynetdicom aborts
        sop_classes = {cx.abstract_syntax for cx in assoc.rejected_contexts}
        return Answer("no_context", note="; ".join(sorted(refusals(assoc, sop) for sop in sop_classes)))
    if assoc.requestor.primitive is not None and assoc.dul.socket is not None and waited >= assoc.acse_timeout:
        return Answer("timeout", note="no answer to the association request")
    if opened:
        return Answer("aborted", note="it ended the connection instead of answering the association request")
    return Answer("unreachable", note="no TCP connection")


def echo(peer: Peer, timeouts: Timeouts) -> Answer:
    """Send one C-ECHO (PS3.4 Annex A)."""
    entity = entity_for(peer, timeouts)
    entity.add_requested_context(Verification, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    opened = associate(entity, peer, timeouts.write)
    if isinstance(opened, Answer):
        return opened
    try:
        status = opened.assoc.send_c_echo()
        return Answer("status", int(status.Status)) if "Status" in status else Answer("aborted", note="no answer")
    except LOST:
        return Answer("aborted", note="no answer")
    finally:
        release(opened.assoc)


def release(assoc: Any) -> None:
    """End an association politely if it still stands."""
    if assoc.is_established:
        assoc.release()


def _on_open(event: Any, write_timeout: float, opened: threading.Event) -> None:
    """Send at once, and give up on a peer that stops reading: pynetdicom alone would block for ever."""
    opened.set()
    sock = event.assoc.dul.socket.socket
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(write_timeout)


def _on_pdu_sent(event: Any) -> None:
    """Acknowledge the peer's next segment at once: a peer with Nagle's algorithm waits 40 ms for it otherwise."""
    sock = event.assoc.dul.socket.socket
    if sock is not None and hasattr(socket, "TCP_QUICKACK"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def refusals(assoc: Any, sop_class: UID) -> str:
    """Say why the contexts of this SOP class were refused (PS3.8 Table 9-18)."""
    results = {cx.result for cx in assoc.rejected_contexts if cx.abstract_syntax == sop_class}
    words = {1: "refused by the user", 2: "no reason", 3: "SOP class not supported", 4: "no Transfer Syntax supported"}
    return ", ".join(words.get(result, str(result)) for result in sorted(results))
