"""The services of the listener: association, C-ECHO, C-STORE, N-EVENT-REPORT; every exception becomes a status.

Handlers take the bytes as they came and never decode a stranger's data set; the one that is parsed, the outcome of
Storage Commitment, has been walked under the limits of `structure` before.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.association import Association

from node import clock
from node.accept.association import Admission, AssociationRequest
from node.accept.precheck import Refused, StoreStatus, check_structure
from node.accept.receive import Answer, Arrival, Door
from node.audit import Audit, AuditEvent, Outcome
from node.crashpoints import reach
from node.log import describe
from node.metrics import Registry

logger = logging.getLogger(__name__)

SUCCESS, PROCESSING_FAILURE, NO_SUCH_EVENT_TYPE = 0x0000, 0x0110, 0x0113
INVALID_ARGUMENT_VALUE, UNRECOGNIZED_OPERATION = 0x0115, 0x0211
"""Statuses of DIMSE-N (PS3.7 Annex C)."""
_COMMITMENT_EVENT_TYPES = (1, 2)
"""All SOP Instances committed; some are not (PS3.4 §J.3.3.1.1)."""
_STATUSES = tuple(f"{status:04X}" for status in StoreStatus)


class Committed(Protocol):
    """Takes in the outcome of one Storage Commitment transaction; returns how many deliveries it concerned."""

    def __call__(self, transaction_uid: str, stored: Sequence[str], failed: Mapping[str, int], now: float, /) -> int:
        """Record that `stored` are committed and `failed` are not, by Failure Reason (0008,1197)."""


class Services:
    """The handlers of one listener."""

    def __init__(self, admission: Admission, door: Door, committed: Committed, audit: Audit, metrics: Registry) -> None:
        self._admission, self._door, self._committed, self._audit = admission, door, committed, audit
        peers = admission.names
        self._associations = metrics.counter(
            "wetread_associations_total", "Association requests.", peer=peers, result=("accepted", "rejected")
        )
        self._instances = metrics.counter(
            "wetread_instances_total", "C-STORE requests by the status answered.", peer=peers, status=_STATUSES
        )
        self._bytes = metrics.counter("wetread_received_bytes_total", "Bytes of the data sets kept.", peer=peers)
        self._received: WeakKeyDictionary[Association, Counter[str]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def handlers(self) -> list[tuple[Any, ...]]:
        """Return the handlers as `AE.make_server` takes them."""
        return [
            (evt.EVT_REQUESTED, self.on_requested),
            (evt.EVT_ESTABLISHED, self.on_established),
            (evt.EVT_RELEASED, self.on_ended),
            (evt.EVT_ABORTED, self.on_ended),
            (evt.EVT_CONN_CLOSE, self.on_ended),
            (evt.EVT_DIMSE_RECV, self.on_message),
            (evt.EVT_C_ECHO, self.on_echo),
            (evt.EVT_C_STORE, self.on_store),
            (evt.EVT_N_EVENT_REPORT, self.on_event_report),
            (evt.EVT_N_ACTION, self.on_action),
        ]

    def on_requested(self, event: Any) -> None:
        """Reject an association that is not welcome, before anything is negotiated (PS3.8 §9.3.4)."""
        assoc = event.assoc
        request = _request(assoc)
        rejection = self._admission.decide(request)
        if rejection is None:
            return
        assoc.acse.send_reject(rejection.result, rejection.source, rejection.diagnostic)
        details = {"calling_ae": request.calling_ae, "called_ae": request.called_ae, "address": request.address}
        logger.warning(
            "An association was rejected.",
            extra={"action": "association_rejected", "reason": rejection.reason, **details},
        )
        self._associations.add(peer=self._peer(assoc), result="rejected")
        self._audit.write(
            AuditEvent.ASSOCIATION_REJECTED, Outcome.SERIOUS_FAILURE, reason=rejection.reason,
            calling_ae=request.calling_ae, called_ae=request.called_ae, address=request.address,
        )  # fmt: skip
        assoc.kill()  # waits until the rejection is on its way; the socket is closed after this handler

    def on_established(self, event: Any) -> None:
        """Note who is here."""
        request = _request(event.assoc)
        peer = self._peer(event.assoc)
        self._associations.add(peer=peer, result="accepted")
        self._audit.write(
            AuditEvent.ASSOCIATION_ACCEPTED, Outcome.SUCCESS, peer=peer,
            calling_ae=request.calling_ae, called_ae=request.called_ae, address=request.address,
        )  # fmt: skip
        with self._lock:
            self._received[event.assoc] = Counter()

    def on_ended(self, event: Any) -> None:
        """Write one audit line per study that came in; whichever event says first that the association is over."""
        with self._lock:
            studies = self._received.pop(event.assoc, None)
        for study, count in (studies or {}).items():
            self._report_received(event.assoc, study, count)

    def _count_received(self, assoc: Association, study: str) -> None:
        """Count one instance for the end of its association, which may already have ended without its sender."""
        with self._lock:
            studies = self._received.get(assoc)
            if studies is not None:
                studies[study] += 1
                return
        self._report_received(assoc, study, 1)

    def _report_received(self, assoc: Association, study: str, count: int) -> None:
        request = _request(assoc, count=False)
        self._audit.write(
            AuditEvent.INSTANCES_TRANSFERRED, Outcome.SUCCESS, study_instance_uid=study, count=count,
            calling_ae=request.calling_ae, address=request.address,
        )  # fmt: skip
        extra = {"action": "instances_received", "study_instance_uid": study, "count": count}
        logger.info("Instances were received.", extra=extra | {"calling_ae": request.calling_ae})

    def on_message(self, event: Any) -> None:
        """Refuse a request that pynetdicom would drop without an answer, so that nobody waits for one."""
        command = event.message.command_set
        if event.message.__class__.__name__ == "C_STORE_RQ" and not command.get("AffectedSOPInstanceUID"):
            extra = {"action": "association_aborted", "reason": "C-STORE without SOP Instance UID"}
            logger.warning("A request is not conformant; the association is aborted.", extra=extra)
            event.assoc.abort()

    def on_echo(self, event: Any) -> int:
        """Answer a C-ECHO (PS3.7 §9.3.5)."""
        return SUCCESS

    def on_store(self, event: Any) -> Dataset:
        """Answer a C-STORE (PS3.4 §B.2.3); success means that the instance is durable."""
        peer = self._peer(event.assoc)
        try:
            dataset = event.request.DataSet.getvalue() if event.request.DataSet is not None else b""
            answer = self._door.receive(dataset, _arrival(event))
        except MemoryError:
            answer = Answer(StoreStatus.OUT_OF_RESOURCES, "out of memory, try again later")
        except Exception as error:  # a border: the sender gets a status, the log gets the class and the place
            extra = {"action": "instance_failed", "error": describe(error)}
            logger.error("An instance was not kept because of a fault of the node.", extra=extra)
            answer = Answer(StoreStatus.CANNOT_UNDERSTAND, f"fault of the node: {type(error).__name__}")
        self._instances.add(peer=peer, status=f"{answer.status:04X}")
        if answer.header is not None:
            self._bytes.add(len(dataset), peer=peer)
            self._count_received(event.assoc, answer.header.study_instance_uid)
        return _status(answer)

    def on_event_report(self, event: Any) -> tuple[int, None]:
        """Take in the outcome of Storage Commitment (PS3.4 §J.3.3); an unknown Transaction UID is not an error."""
        try:
            return self._event_report(event), None
        except Refused:
            return INVALID_ARGUMENT_VALUE, None
        except Exception as error:  # a border: 0110H makes the PACS report again
            extra = {"action": "commitment_failed", "error": describe(error)}
            logger.error("A Storage Commitment report was not taken in.", extra=extra)
            return PROCESSING_FAILURE, None

    def on_action(self, event: Any) -> tuple[int, None]:
        """Refuse to commit: this node is no archive."""
        return UNRECOGNIZED_OPERATION, None

    def _event_report(self, event: Any) -> int:
        if event.event_type not in _COMMITMENT_EVENT_TYPES:
            return NO_SUCH_EVENT_TYPE
        check_structure(event.request.EventInformation.getvalue(), event.context.transfer_syntax)
        report = event.event_information
        transaction_uid = str(report.get("TransactionUID", ""))
        if not transaction_uid:
            return INVALID_ARGUMENT_VALUE
        stored = [str(item.ReferencedSOPInstanceUID) for item in report.get("ReferencedSOPSequence") or ()]
        failures = report.get("FailedSOPSequence") or ()
        failed = {str(i.ReferencedSOPInstanceUID): int(i.get("FailureReason", 0x0110)) for i in failures}
        reach("commit.before_note")
        count = self._committed(transaction_uid, stored, failed, clock.now())
        reach("commit.after_note")
        extra = {"action": "commitment_reported", "transaction_uid": transaction_uid, "count": count}
        logger.info("Storage Commitment was reported.", extra=extra)
        return SUCCESS

    def _peer(self, assoc: Association) -> str:
        request = _request(assoc, count=False)
        return self._admission.peer(request.calling_ae, request.address)


def _request(assoc: Association, *, count: bool = True) -> AssociationRequest:
    primitive = assoc.requestor.primitive
    host = _host(assoc)
    others = [a for a in assoc._server.active_associations if a.is_established] if count and assoc._server else []
    return AssociationRequest(
        calling_ae=str(getattr(primitive, "calling_ae_title", "") or "").strip(),
        called_ae=str(getattr(primitive, "called_ae_title", "") or "").strip(),
        address=host,
        application_context=str(getattr(primitive, "application_context_name", "") or ""),
        established=len(others),
        established_from_address=sum(_host(other) == host for other in others),
    )


def _host(assoc: Association) -> str:
    address = assoc.requestor.address_info
    return address.address if address else ""


def _arrival(event: Any) -> Arrival:
    return Arrival(
        sop_class_uid=str(event.request.AffectedSOPClassUID),
        sop_instance_uid=str(event.request.AffectedSOPInstanceUID),
        transfer_syntax_uid=str(event.context.transfer_syntax),
        calling_ae=_request(event.assoc, count=False).calling_ae,
    )


def _status(answer: Answer) -> Dataset:
    """Return the response's status, with the reason as Error Comment (0000,0902)."""
    ds = Dataset()
    ds.Status = int(answer.status)
    if answer.reason:
        ds.ErrorComment = answer.reason.encode("ascii", "replace").decode("ascii")[:64]
    return ds
