"""Storage commitment as SCU (PS3.4 Annex J): asks destinations to say that they will keep what they were sent.

A request is noted before it is sent, because its answer may overtake the response. The N-EVENT-REPORT comes on the
association of the request, or later on one that the destination opens to our own listener.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from node import uids
from node.crashpoints import reach
from node.settings import Destination, Settings
from node.store import deliveries
from node.store.db import Database
from node.store.deliveries import MAX_COMMIT_ATTEMPTS, ToCommit
from workers.send.cstore import Answer, Kind, Peer, Timeouts, associate, entity_for, release
from workers.send.verdicts import Verdict, judge, rest

REPORT_WITHIN_S = 86400.0
"""How long a Transaction UID is waited for; archives that commit at night answer hours later (PS3.4 §J.3.6)."""
LINGER_S = 1.0
"""How long the association of a request stays open for a report on it."""
UNREACHED_REST_S = 60.0
"""How long to rest when the destination was not reached at all."""

_NOBODY_THERE: tuple[Kind, ...] = ("unreachable", "tls", "timeout", "aborted")
_REQUEST_STORAGE_COMMITMENT = 1
_CLASS_NOT_SUPPORTED = 0x0122
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """An N-EVENT-REPORT (PS3.4 Table J.3-2): what is committed, and what failed with its Failure Reason (0008,1197)."""

    transaction_uid: str
    stored: tuple[str, ...]
    failed: dict[str, int]


def tick(
    db: Database,
    settings: Settings,
    now: float,
    timeouts: Timeouts | None = None,
    linger: float = LINGER_S,
    report_within: float = REPORT_WITHIN_S,
) -> int:
    """Ask for the commitment of everything sent to destinations that offer it; return how many were asked for.

    Requests without a report after `report_within` seconds are asked anew under a new Transaction UID, five times.
    """
    deliveries.uncommitted(db, now, report_within)
    asked = 0
    for name, destination in settings.destination.items():
        waiting = deliveries.to_commit(db, name, now=now) if destination.commitment else []
        for _, group in groupby(waiting, key=lambda row: row.study_instance_uid):
            request = _Request(db, settings, name, destination, tuple(group), now, timeouts or Timeouts(), linger)
            noted = request.send()
            if noted is None:  # the other studies would wait for the same timeout
                break
            asked += noted
    return asked


def read_report(information: Dataset) -> Report:
    """Return the Event Information of an N-EVENT-REPORT as a `Report`."""
    failed = information.get("FailedSOPSequence") or ()
    return Report(
        str(information.TransactionUID),
        tuple(str(item.ReferencedSOPInstanceUID) for item in information.get("ReferencedSOPSequence") or ()),
        {str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", 0x0110)) for item in failed},
    )


@dataclass(frozen=True)
class _Request:
    """One N-ACTION: the documents of one study at one destination."""

    db: Database
    settings: Settings
    name: str
    destination: Destination
    rows: tuple[ToCommit, ...]
    now: float
    timeouts: Timeouts
    linger: float

    def send(self) -> int | None:
        """Note, ask, linger; returns how many deliveries now wait for their report, None: nobody is there."""
        transaction_uid = uids.derive_uid("commitment", str(uuid.uuid4()))
        noted = deliveries.committing(self.db, [row.id for row in self.rows], transaction_uid, self.now)
        if not noted:  # another worker asks already
            return 0
        reach("commit.before_ask")
        answer = self._ask(transaction_uid)
        reach("commit.after_ask")
        if judge(answer).verdict in (Verdict.DONE, Verdict.WARN):
            return noted
        self._take_back(transaction_uid, answer)
        return None if answer.kind in _NOBODY_THERE else 0

    def _ask(self, transaction_uid: str) -> Answer:
        peer = Peer.of(self.destination, self.settings)
        entity = entity_for(peer, self.timeouts)
        entity.add_requested_context(StorageCommitmentPushModel, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        reported = threading.Event()
        handler = (evt.EVT_N_EVENT_REPORT, self._on_report, [reported])
        opened = associate(entity, peer, self.timeouts.write, evt_handlers=[handler])
        if isinstance(opened, Answer):
            return opened
        try:
            return self._act(opened.assoc, transaction_uid, reported)
        finally:
            release(opened.assoc)

    def _act(self, assoc: Any, transaction_uid: str, reported: threading.Event) -> Answer:
        status, _ = assoc.send_n_action(
            action_information(transaction_uid, self.rows),
            _REQUEST_STORAGE_COMMITMENT,
            StorageCommitmentPushModel,
            StorageCommitmentPushModelInstance,
        )
        if "Status" not in status:
            return Answer("timeout", note="no answer to the N-ACTION")
        if status.Status == 0x0000:
            reported.wait(self.linger)
        return Answer("status", status=int(status.Status))

    def _on_report(self, event: Any, reported: threading.Event) -> tuple[int, None]:
        """Take in a report on the association of the request (PS3.4 §J.3.3)."""
        report = read_report(event.event_information)
        deliveries.committed(self.db, report.transaction_uid, report.stored, report.failed, self.now)
        reported.set()
        return 0x0000, None

    def _take_back(self, transaction_uid: str, answer: Answer) -> None:
        """Ask again later; a destination that refuses the request itself five times is a case for a person."""
        ruling = judge(answer)
        attempts = max(row.commit_attempts for row in self.rows) + 1
        if ruling.verdict is Verdict.DEAD and attempts >= MAX_COMMIT_ATTEMPTS:
            failed = {row.sop_instance_uid: answer.status or _CLASS_NOT_SUPPORTED for row in self.rows}
            deliveries.committed(self.db, transaction_uid, (), failed, self.now)
        else:
            reached = answer.kind not in _NOBODY_THERE
            due = self.now + (rest(attempts, transaction_uid) if reached else UNREACHED_REST_S)
            reason = f"Storage commitment could not be asked for ({answer.code}): {ruling.reason}"
            deliveries.not_asked(self.db, transaction_uid, reason, self.now, due, counts=reached)
        _log.warning(
            "storage commitment could not be asked for at %s: %s",
            self.name,
            answer.code,
            extra={"action": "commitment_refused", "destination": self.name, "status": answer.code},
        )


def action_information(transaction_uid: str, rows: Iterable[ToCommit] | Sequence[ToCommit]) -> Dataset:
    """Return the Action Information of the N-ACTION (PS3.4 Table J.3-1)."""
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    ds.ReferencedSOPSequence = [_reference(row) for row in rows]
    return ds


def _reference(row: ToCommit) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = row.sop_class_uid
    item.ReferencedSOPInstanceUID = row.sop_instance_uid
    return item
