"""A PACS on a wire, for the demo and the tests: C-ECHO, C-STORE, C-FIND, C-MOVE, C-GET and storage commitment.

It is a simulator and says so in its Implementation Version Name. It keeps what it receives in a folder, an
append-only ledger of every reception, and never changes an instance it holds: a second, different object under
the same SOP Instance UID is written to the ledger and not kept, as many archives do.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from weakref import WeakSet

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, build_role, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from node.simulate import catalog, supported
from node.simulate.archive import Archive, Held, Received, digest
from node.simulate.faults import Fault, Faults
from node.uids import derive_uid

IMPLEMENTATION_CLASS_UID = derive_uid("simulated PACS")
IMPLEMENTATION_VERSION_NAME = "WETREAD_SIM_PACS"
_NO_SUCH_OBJECT = 0x0112
_KEPT = frozenset({0x0000, 0xB000, 0xB006, 0xB007})
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CommitmentRequest:
    """One N-ACTION (PS3.4 §J.3.2): the Transaction UID and the referenced (SOP class, SOP instance) pairs."""

    transaction_uid: str
    calling_ae: str
    references: tuple[tuple[str, str], ...]


class Pacs:
    """The simulated PACS; a context manager that listens while it is open.

    `report`: whether the commitment report comes on a new association to the requester's address in `peers`
    (AE Title → host and port), on the same association, or never. `refuse`: SOP classes it does not accept.
    `transfer_syntaxes`: what it accepts, in its own order of preference. `counts`: whether C-FIND says how many
    instances a study has. C-MOVE sends to the addresses in `peers`.
    """

    def __init__(
        self,
        folder: Path,
        ae_title: str = "SIM_PACS",
        host: str = "127.0.0.1",
        port: int = 0,
        peers: Mapping[str, tuple[str, int]] | None = None,
        report: Literal["new", "same", "never"] = "new",
        faults: Iterable[Fault] = (),
        refuse: Iterable[str] = (),
        transfer_syntaxes: Iterable[str] | None = None,
        counts: bool = True,
    ) -> None:
        self.ae_title, self.host, self.port = ae_title, host, port
        self.peers = dict(peers or {})
        self.report, self.counts = report, counts
        self.faults = Faults(faults)
        self.archive = Archive(folder)
        self.requests: list[CommitmentRequest] = []
        self.contexts_offered: list[int] = []
        self._syntaxes = list(transfer_syntaxes or dict.fromkeys([*supported.NATIVE, *ALL_TRANSFER_SYNTAXES]))
        self._refuse = frozenset(refuse)
        self._stopping = threading.Event()
        self._server: Any = None
        self._reporters: list[threading.Thread] = []
        self._asked: WeakSet[Any] = WeakSet()  # associations that have brought a commitment request

    def start(self) -> Pacs:
        """Listen, and set `port`."""
        self._stopping.clear()
        contexts = supported.contexts(self._syntaxes, self._refuse)
        self._server = self._entity().start_server(
            (self.host, self.port), block=False, evt_handlers=self._handlers(), contexts=contexts
        )
        self.port = self._server.server_address[1]
        return self

    def stop(self) -> None:
        """Stop listening, cut what hangs, and wait for reports under way."""
        self._stopping.set()
        if self._server is not None:
            self._server.ae.shutdown()
            self._server = None
        for thread in self._reporters:
            thread.join(timeout=5)

    def __enter__(self) -> Pacs:
        """Start."""
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Stop."""
        self.stop()

    @property
    def held(self) -> Mapping[str, Held]:
        """What it keeps, by SOP Instance UID."""
        return self.archive.held

    @property
    def received(self) -> tuple[Received, ...]:
        """Every reception, in order."""
        return tuple(self.archive.received)

    def receptions(self, sop_instance_uid: str) -> list[Received]:
        """Return every reception of one instance, in order."""
        return [entry for entry in self.received if entry.sop_instance_uid == sop_instance_uid]

    def _entity(self) -> AE:
        entity = AE(self.ae_title)
        entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.maximum_pdu_size = 0
        entity.maximum_associations = 50
        entity.require_called_aet = True
        return entity

    def _handlers(self) -> list[Any]:
        return [
            (evt.EVT_CONN_OPEN, _on_open),
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_PDU_RECV, self._on_pdu),
            (evt.EVT_C_ECHO, lambda event: 0x0000),
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_C_FIND, self._on_find),
            (evt.EVT_C_MOVE, self._on_move),
            (evt.EVT_C_GET, self._sub_operations),
            (evt.EVT_N_ACTION, self._on_action),
        ]

    def _on_requested(self, event: Any) -> None:
        self.contexts_offered.append(len(event.assoc.requestor.requested_contexts))
        fault = self.faults.take("reject")
        if fault:
            event.assoc.acse.send_reject(*fault.rejection)
            event.assoc.kill()

    def _on_pdu(self, event: Any) -> None:
        """Block the thread that reads the socket, so that the sender meets a closed TCP window."""
        if type(event.pdu).__name__ == "P_DATA_TF":
            fault = self.faults.take("stall")
            if fault:
                self._stopping.wait(fault.seconds)

    def _on_store(self, event: Any) -> int:
        request = event.request
        sop_class, uid = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
        fault = self.faults.take("status", "drop", "hang", sop_class_uid=sop_class, sop_instance_uid=uid)
        status = fault.status if fault and fault.deed == "status" else 0x0000
        self._keep(event, sop_class, uid, status, keep=status in _KEPT and (fault is None or fault.keep))
        if fault and fault.deed == "drop":
            event.assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)
        if fault and fault.deed == "hang":
            self._stopping.wait(fault.seconds)
        return status

    def _keep(self, event: Any, sop_class: str, uid: str, status: int, keep: bool) -> None:
        entry = Received(
            at=time.time(),
            sop_instance_uid=uid,
            sop_class_uid=sop_class,
            transfer_syntax_uid=str(event.context.transfer_syntax),
            sha256=digest(event.request.DataSet.getvalue()),
            calling_ae=event.assoc.requestor.ae_title,
            status=status,
        )
        self.archive.take(entry, event.encoded_dataset(), keep)

    def _on_find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        """Answer a query (PS3.4 §C.4.1)."""
        fault = self.faults.take("refuse_query", "hang_query")
        if fault and fault.deed == "hang_query":
            self._stopping.wait(fault.seconds)
        if fault and fault.deed == "refuse_query":
            yield fault.status, None
            return
        for answer in catalog.find(self.archive, event.identifier, self.counts):
            yield 0xFF00, answer

    def _on_move(self, event: Any) -> Iterator[Any]:
        """Send what is asked for to an AE that we know (PS3.4 §C.4.2); an unknown one is answered A801H."""
        address = self.peers.get(str(event.move_destination).strip())
        if address is None:
            yield None, None
            return
        yield *address, {"contexts": catalog.contexts(self.archive, event.identifier)}
        yield from self._sub_operations(event)

    def _sub_operations(self, event: Any) -> Iterator[Any]:
        """Send what is asked for, with C-GET on the same association (PS3.4 §C.4.3)."""
        fault = self.faults.take("refuse_retrieve", "hang_retrieve")
        if fault and fault.deed == "hang_retrieve":
            self._stopping.wait(fault.seconds)
        found = catalog.select(self.archive, event.identifier)
        yield len(found)
        if fault and fault.deed == "refuse_retrieve":
            yield fault.status, None
            return
        for ds in found:
            yield 0xFF00, ds

    def _on_action(self, event: Any) -> tuple[int, None]:
        """Take a commitment request (PS3.4 §J.3.2) and report by a thread of its own."""
        fault = self.faults.take("refuse_request")
        if fault:
            return fault.status, None
        if event.assoc in self._asked and self.faults.take("cut_request"):
            event.assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)
            return 0x0110, None
        self._asked.add(event.assoc)
        asked = event.action_information
        references = tuple(
            (str(i.ReferencedSOPClassUID), str(i.ReferencedSOPInstanceUID)) for i in asked.ReferencedSOPSequence
        )
        request = CommitmentRequest(str(asked.TransactionUID), event.assoc.requestor.ae_title, references)
        self.requests.append(request)
        if self.report != "never" and not self.faults.take("no_report"):
            thread = threading.Thread(target=self._report, args=(request, event.assoc), daemon=True)
            self._reporters.append(thread)
            thread.start()
        return 0x0000, None

    def _report(self, request: CommitmentRequest, assoc: Any) -> None:
        information, kind = self._judge(request)
        if self.report == "same":
            self._stopping.wait(0.05)  # the N-ACTION response goes first
            if assoc.is_established:
                _send_report(assoc, information, kind)
            return
        for pause in (0.0, 0.5, 2.0):
            if self._stopping.wait(pause) or self._report_anew(request, information, kind):
                return
        _log.warning("commitment report for %s could not be delivered", request.transaction_uid)

    def _report_anew(self, request: CommitmentRequest, information: Dataset, kind: int) -> bool:
        """Report on a new association that we open, in the role of SCP (PS3.4 §J.3.3)."""
        if request.calling_ae not in self.peers:
            return False
        entity = AE(self.ae_title)
        entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.add_requested_context(StorageCommitmentPushModel, list(supported.NATIVE))
        host, port = self.peers[request.calling_ae]
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        assoc = entity.associate(host, port, ae_title=request.calling_ae, ext_neg=[role])
        if not assoc.is_established:
            return False
        done = _send_report(assoc, information, kind)
        assoc.release()
        return done

    def _judge(self, request: CommitmentRequest) -> tuple[Dataset, int]:
        """Return the Event Information and its type: 1 all held, 2 failures exist (PS3.4 Table J.3-2)."""
        information = Dataset()
        information.TransactionUID = request.transaction_uid
        held, failed = [], []
        for sop_class, uid in request.references:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
            lost = self.faults.take("not_held", sop_class_uid=sop_class, sop_instance_uid=uid)
            if lost:
                self.archive.lose(uid)
            if lost or uid not in self.held:
                item.FailureReason = _NO_SUCH_OBJECT
                failed.append(item)
            else:
                held.append(item)
        if held:
            information.ReferencedSOPSequence = held
        if failed:
            information.FailedSOPSequence = failed
        return information, 2 if failed else 1


def _send_report(assoc: Any, information: Dataset, kind: int) -> bool:
    try:
        status, _ = assoc.send_n_event_report(
            information, kind, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
    except (RuntimeError, ValueError):
        return False
    return getattr(status, "Status", None) == 0x0000


def _on_open(event: Any) -> None:
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
