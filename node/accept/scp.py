"""The services of the listener: association, C-ECHO, C-STORE, N-EVENT-REPORT; every exception becomes a status.

They take the bytes as they came and never decode a stranger's data set; the one that is parsed, the outcome of
Storage Commitment, has been walked under the limits of `structure` before.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Protocol

from pydicom.dataset import Dataset
from pynetdicom.dsutils import decode

from node.accept.alerts import Alerts
from node.accept.association import Admission, AssociationRequest, Rejection
from node.accept.command import C_CANCEL_RQ, C_ECHO_RQ, C_STORE_RQ, N_EVENT_REPORT_RQ, Command
from node.accept.contexts import STORAGE_COMMITMENT, UNCOMPRESSED, VERIFICATION
from node.accept.guard import ProtocolViolation
from node.accept.incoming import Incoming
from node.accept.negotiate import Context
from node.accept.places import Desk
from node.accept.precheck import Refused, StoreStatus, check_structure
from node.accept.receive import SPARING, Answer, Arrival, Door
from node.audit import Audit, AuditEvent, Details, Outcome
from node.commitment import read_report
from node.crashpoints import reach
from node.errors import NoRoom
from node.log import describe
from node.metrics import Registry

logger = logging.getLogger(__name__)
logger.addFilter(SPARING)

SUCCESS, PROCESSING_FAILURE, NO_SUCH_EVENT_TYPE = 0x0000, 0x0110, 0x0113
INVALID_ARGUMENT_VALUE, SOP_CLASS_NOT_SUPPORTED, UNRECOGNIZED_OPERATION = 0x0115, 0x0122, 0x0211
"""Statuses of any DIMSE service (PS3.7 Annex C)."""
_MAX_REPORT = 2**26
"""Bytes of the outcome of one Storage Commitment."""
_COMMITMENT_EVENT_TYPES = (1, 2)
"""All SOP Instances committed; some are not (PS3.4 §J.3.3.1.1)."""
_STATUSES = tuple(f"{status:04X}" for status in StoreStatus)


class Committed(Protocol):
    """Takes in the outcome of one Storage Commitment transaction; returns how many deliveries it concerned."""

    def __call__(self, transaction_uid: str, stored: Sequence[str], failed: Mapping[str, int], now: float, /) -> int:
        """Record that `stored` are committed and `failed` are not, by Failure Reason (0008,1197)."""


@dataclass(frozen=True)
class Reply:
    """What a response says: a status and, for a person, an Error Comment (0000,0902)."""

    status: int
    comment: str = ""


@dataclass
class Session:
    """One association that is established: who is here, and how many instances of which study have come."""

    peer: str
    calling_ae: str
    address: str
    number: int = 0
    studies: Counter[str] = field(default_factory=Counter)
    is_released: bool = False
    """Whether its peer said that it is done, rather than being cut off."""


class Released(Protocol):
    """Is told that an association which brought instances has ended, by its number, and whether by a release."""

    def __call__(self, number: int, is_released: bool, /) -> None:
        """Hand the evidence on; must not wait for the database."""


class Services:
    """What every association of one listener asks."""

    def __init__(
        self,
        admission: Admission,
        door: Door,
        committed: Committed,
        audit: Audit,
        metrics: Registry,
        desk: Desk,
        released: Released,
    ) -> None:
        self.admission, self.door, self._committed, self._audit = admission, door, committed, audit
        self.desk, self._released = desk, released
        self.alerts = Alerts(audit, "association rejected")
        """Who was not let in, in the audit trail; to be settled now and then, and closed."""
        peers = admission.names
        self._associations = metrics.counter(
            "wetread_associations_total", "Association requests.", peer=peers, result=("accepted", "rejected")
        )
        self._instances = metrics.counter(
            "wetread_instances_total", "C-STORE requests by the status answered.", peer=peers, status=_STATUSES
        )
        self._bytes = metrics.counter("wetread_received_bytes_total", "Bytes of the data sets kept.", peer=peers)

    def admit(self, admission: Admission) -> None:
        """Count by another list of peers from now on."""
        for metric in (self._associations, self._instances, self._bytes):
            metric.widen(peer=admission.names)
        self.admission = admission

    def rejected(self, request: AssociationRequest, rejection: Rejection) -> None:
        """Note who was not let in, and why (PS3.8 §9.3.4); a scanner of ports cannot fill trail and log with it."""
        self._associations.add(peer=self.admission.peer(request.calling_ae, request.address), result="rejected")
        names = Details(calling_ae=request.calling_ae, called_ae=request.called_ae, address=request.address)
        if self.alerts.note(**(names | {"reason": rejection.reason})):
            extra = {"action": "association_rejected", "reason": rejection.reason, **names}
            logger.warning("An association was rejected.", extra=extra)

    def established(self, request: AssociationRequest, number: int) -> Session:
        """Note who is here."""
        peer = self.admission.peer(request.calling_ae, request.address)
        self._associations.add(peer=peer, result="accepted")
        self._audit.write(
            AuditEvent.ASSOCIATION_ACCEPTED, Outcome.SUCCESS, peer=peer,
            calling_ae=request.calling_ae, called_ae=request.called_ae, address=request.address,
        )  # fmt: skip
        return Session(peer, request.calling_ae, request.address, number)

    def left(self, number: int) -> None:
        """Give its place back."""
        self.desk.leave(number)

    def ended(self, session: Session) -> None:
        """Write one audit line per study that came in, and hand on how it ended."""
        if session.studies:
            self._released(session.number, session.is_released)
        for study, count in session.studies.items():
            self._audit.write(
                AuditEvent.INSTANCES_TRANSFERRED, Outcome.SUCCESS, study_instance_uid=study, count=count,
                calling_ae=session.calling_ae, address=session.address,
            )  # fmt: skip
            extra = {"action": "instances_received", "study_instance_uid": study, "count": count}
            logger.info("Instances were received.", extra=extra | {"calling_ae": session.calling_ae})

    def answer(self, session: Session, context: Context, request: Command, incoming: Incoming) -> Reply | None:
        """Serve one request, whose data set is `incoming`; None where none is due (C-CANCEL, PS3.7 §9.3.2.3).

        Raises `ProtocolViolation` for a C-STORE that does not say which instance it brings.
        """
        if request.field == C_STORE_RQ:
            return self._store(session, context, request, incoming)
        if request.field == C_CANCEL_RQ:
            return None
        if request.field == C_ECHO_RQ:
            return Reply(SUCCESS)
        if request.field == N_EVENT_REPORT_RQ and context.abstract_syntax == STORAGE_COMMITMENT:
            return Reply(self._event_report(context, request, incoming))
        return Reply(UNRECOGNIZED_OPERATION)  # an N-ACTION too: this node is no archive and commits to nothing

    def _store(self, session: Session, context: Context, request: Command, incoming: Incoming) -> Reply:
        """Answer a C-STORE (PS3.4 §B.2.3); success means that the instance is durable."""
        if not request.sop_instance_uid:
            raise ProtocolViolation("C-STORE without SOP Instance UID")
        if context.abstract_syntax in (VERIFICATION, STORAGE_COMMITMENT):
            return Reply(SOP_CLASS_NOT_SUPPORTED, "no Storage context")
        arrival = Arrival(
            request.sop_class_uid, request.sop_instance_uid, context.transfer_syntax, session.calling_ae
        )  # fmt: skip
        answer = self._receive(arrival, incoming)
        self._instances.add(peer=session.peer, status=f"{answer.status:04X}")
        if answer.header is not None:
            self._bytes.add(incoming.size, peer=session.peer)
            if answer.header.study_instance_uid not in session.studies:
                self.desk.brings(session.number, answer.header.study_instance_uid)
            session.studies[answer.header.study_instance_uid] += 1
        return Reply(int(answer.status), answer.reason)

    def _receive(self, arrival: Arrival, incoming: Incoming) -> Answer:
        try:
            return self.door.receive(incoming.whole(), arrival, incoming.sha256)
        except (MemoryError, NoRoom) as error:
            extra = {"action": "instance_refused", "status": "A700", "reason": describe(error)}
            logger.warning("An instance was refused and not kept.", extra=extra | {"calling_ae": arrival.calling_ae})
            return Answer(StoreStatus.OUT_OF_RESOURCES, "out of resources, try again later")
        except Exception as error:  # a border: the sender gets a status, the log gets the class and the place
            extra = {"action": "instance_failed", "error": describe(error)}
            logger.error("An instance was not kept because of a fault of the node.", extra=extra)
            return Answer(StoreStatus.CANNOT_UNDERSTAND, f"fault of the node: {type(error).__name__}")

    def _event_report(self, context: Context, request: Command, incoming: Incoming) -> int:
        """Take in the outcome of Storage Commitment (PS3.4 §J.3.3); an unknown Transaction UID is not an error."""
        try:
            return self._note(context, request, incoming)
        except Refused:
            return INVALID_ARGUMENT_VALUE
        except Exception as error:  # a border: 0110H makes the PACS report again
            extra = {"action": "commitment_failed", "error": describe(error)}
            logger.error("A Storage Commitment report was not taken in.", extra=extra)
            return PROCESSING_FAILURE

    def _note(self, context: Context, request: Command, incoming: Incoming) -> int:
        if request.type_id not in _COMMITMENT_EVENT_TYPES:
            return NO_SUCH_EVENT_TYPE
        report = read_report(_report(incoming, context.transfer_syntax))
        if not report.transaction_uid:
            return INVALID_ARGUMENT_VALUE
        reach("commit.before_note")
        count = self._committed(report.transaction_uid, report.stored, report.failed, self.door.now())
        reach("commit.after_note")
        extra = {"action": "commitment_reported", "transaction_uid": report.transaction_uid, "count": count}
        logger.info("Storage Commitment was reported.", extra=extra)
        return SUCCESS


def _report(incoming: Incoming, transfer_syntax: str) -> Dataset:
    """Return the Event Information; raises `Refused` when it cannot be parsed without risk."""
    if incoming.size > _MAX_REPORT:
        raise Refused(StoreStatus.CANNOT_UNDERSTAND, "the report is too large")
    encoded = bytes(incoming.whole())
    check_structure(encoded, transfer_syntax)
    return decode(BytesIO(encoded), transfer_syntax == UNCOMPRESSED[1], True)
