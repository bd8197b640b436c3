"""Storage commitment as SCU (PS3.4 Annex J): asks destinations to say that they will keep what they were sent.

A request is noted before it is sent, because its answer may overtake the response. The N-EVENT-REPORT comes on the
association of the request, or later on one that the destination opens to our own listener.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from node.calling import LOST
from node.commitment import read_report
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
"""How long the association of the requests stays open for a (further) report on it."""
AT_ONCE = 8
"""How many destinations are asked at the same time, each over one association."""
UNREACHED_REST_S = 60.0
"""How long to rest when the destination was not reached at all."""

_NOBODY_THERE: tuple[Kind, ...] = ("unreachable", "tls", "timeout", "aborted")
_REQUEST_STORAGE_COMMITMENT = 1
_CLASS_NOT_SUPPORTED = 0x0122
_REPORT_ANSWERED = bytes.fromhex("00000001020000000081")
"""Command Field (0000,0100) of an N-EVENT-REPORT-RSP, 8100H, in Implicit VR Little Endian (PS3.7 §10.3.1.2)."""
_log = logging.getLogger(__name__)


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
    rounds = [
        _Round(db, settings, name, destination, now, timeouts or Timeouts(), linger)
        for name, destination in settings.destination.items()
        if destination.commitment
    ]
    if len(rounds) < 2:
        return sum(each.ask() for each in rounds)
    with ThreadPoolExecutor(min(len(rounds), AT_ONCE), "commitment") as pool:  # a slow archive keeps no other waiting
        return sum(pool.map(_Round.ask, rounds))


class _Round:
    """All that one destination is to be asked now: one N-ACTION for the documents of each study.

    They go over one association, or each over its own where the destination ends it after an answer. A destination
    that reports on the association of the request is let speak before the next one: it has said nothing of
    asynchronous operations (PS3.7 §D.3.3.3). One that reports elsewhere is not waited for again.
    """

    def __init__(
        self, db: Database, settings: Settings, name: str, destination: Destination, now: float, timeouts: Timeouts,
        linger: float,
    ) -> None:  # fmt: skip
        self.db, self.settings, self.name, self.destination = db, settings, name, destination
        self.now, self.timeouts, self.linger = now, timeouts, linger
        self._assoc: Any = None
        self._reports_here: bool | None = None
        self._talk = _Talk()

    def ask(self) -> int:
        """Ask, linger, release; return how many deliveries now wait for their report."""
        asked = 0
        waiting = deliveries.to_commit(self.db, self.name, now=self.now)
        try:
            for _, group in groupby(waiting, key=lambda row: row.study_instance_uid):
                noted = self._request(tuple(group))
                if noted is None:  # the other studies would wait for the same timeout
                    break
                asked += noted
        finally:
            self._release()
        return asked

    def _request(self, rows: tuple[ToCommit, ...]) -> int | None:
        """Note and ask; return how many deliveries now wait for their report, None: nobody is there."""
        transaction_uid = uids.derive_uid("commitment", str(uuid.uuid4()))
        noted = deliveries.committing(self.db, [row.id for row in rows], transaction_uid, self.now)
        if not noted:  # another worker asks already
            return 0
        reach("commit.before_ask")
        used = self._assoc is not None and self._assoc.is_established
        answer = self._act(rows, transaction_uid)
        reach("commit.after_ask")
        if judge(answer).verdict in (Verdict.DONE, Verdict.WARN):
            return noted
        self._take_back(rows, transaction_uid, answer, used)
        return None if answer.kind in _NOBODY_THERE and not used else 0

    def _act(self, rows: tuple[ToCommit, ...], transaction_uid: str) -> Answer:
        refused = self._associate()
        if refused is not None:
            return refused
        try:
            status, _ = self._assoc.send_n_action(
                action_information(transaction_uid, rows),
                _REQUEST_STORAGE_COMMITMENT,
                StorageCommitmentPushModel,
                StorageCommitmentPushModelInstance,
            )
        except LOST:
            status = Dataset()
        if "Status" not in status:
            return Answer("timeout", note="no answer to the N-ACTION")
        if status.Status == 0x0000 and self._reports_here is not False:
            came = self._talk.wait_for(transaction_uid, self.linger)
            self._reports_here = self._reports_here or came
        return Answer("status", status=int(status.Status))

    def _associate(self) -> Answer | None:
        """Have an association that stands; return why there is none."""
        if self._assoc is not None and self._assoc.is_established:
            return None
        peer = Peer.of(self.destination, self.settings)
        entity = entity_for(peer, self.timeouts)
        entity.add_requested_context(StorageCommitmentPushModel, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        self._talk = talk = _Talk()
        handlers = [(evt.EVT_N_EVENT_REPORT, self._on_report, [talk]), (evt.EVT_PDU_SENT, talk.on_sent)]
        opened = associate(entity, peer, self.timeouts.write, evt_handlers=handlers)
        if isinstance(opened, Answer):
            return opened
        self._assoc = opened.assoc
        return None

    def _on_report(self, event: Any, talk: _Talk) -> tuple[int, None]:
        """Take in a report on the association of the request (PS3.4 §J.3.3)."""
        report = read_report(event.event_information)
        deliveries.committed(self.db, report.transaction_uid, report.stored, report.failed, self.now)
        talk.came(report.transaction_uid, self.timeouts.acse)
        return 0x0000, None

    def _release(self) -> None:
        if self._assoc is not None:
            self._talk.close(self.linger)
            release(self._assoc)
            self._talk.over()

    def _take_back(self, rows: tuple[ToCommit, ...], transaction_uid: str, answer: Answer, used: bool) -> None:
        """Ask again later; a destination that refuses the request itself five times is a case for a person.

        One that ended a `used` association may only take one request on each: asked again with the next round.
        """
        ruling = judge(answer)
        attempts = max(row.commit_attempts for row in rows) + 1
        if ruling.verdict is Verdict.DEAD and attempts >= MAX_COMMIT_ATTEMPTS:
            failed = {row.sop_instance_uid: answer.status or _CLASS_NOT_SUPPORTED for row in rows}
            deliveries.committed(self.db, transaction_uid, (), failed, self.now)
        else:
            reached = answer.kind not in _NOBODY_THERE
            due = self.now + (rest(attempts, transaction_uid) if reached else 0.0 if used else UNREACHED_REST_S)
            reason = f"Storage commitment could not be asked for ({answer.code}): {ruling.reason}"
            deliveries.not_asked(self.db, transaction_uid, reason, self.now, due, counts=reached)
        _log.warning(
            "storage commitment could not be asked for at %s: %s",
            self.name,
            answer.code,
            extra={"action": "commitment_refused", "destination": self.name, "status": answer.code},
        )


class _Talk:
    """Who speaks on one association: it must not be released while a report on it is being answered.

    pynetdicom answers reports in threads of their own, and a response that meets a release ends its reactor, after
    which the release waits for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._reported: set[str] = set()
        self._answering, self._closing = 0, False
        self._over = threading.Event()

    def wait_for(self, transaction_uid: str, seconds: float) -> bool:
        """Say whether the report of a transaction came in time and was answered."""
        with self._changed:
            done = self._changed.wait_for(lambda: transaction_uid in self._reported and not self._answering, seconds)
            return done or transaction_uid in self._reported

    def came(self, transaction_uid: str, release_s: float) -> None:
        """Note that a report came; one that comes too late is kept and not answered: the release goes first."""
        with self._changed:
            self._reported.add(transaction_uid)
            self._answering += not self._closing
            self._changed.notify_all()
            late = self._closing
        if late:
            self._over.wait(release_s)

    def on_sent(self, event: Any) -> None:
        """Note that the answer to a report has gone out."""
        values = [
            bytes(item.presentation_data_value) for item in getattr(event.pdu, "presentation_data_value_items", ())
        ]
        with self._changed:
            self._answering -= sum(_REPORT_ANSWERED in value for value in values)
            self._changed.notify_all()

    def close(self, seconds: float) -> None:
        """Let the answers go out that have begun, then let none begin."""
        with self._changed:
            self._changed.wait_for(lambda: not self._answering, max(seconds, 1.0))
            self._closing = True

    def over(self) -> None:
        """The association has ended."""
        self._over.set()


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
