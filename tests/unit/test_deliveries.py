"""Deliveries: the same bytes until they arrived, storage commitment asked for until it is given."""

from __future__ import annotations

import pytest

from node.errors import NotFound
from node.store import deliveries, jobs
from node.store.db import Database
from node.store.deliveries import ClaimedDelivery
from tests.unit.rows import STUDY, document, running, sending, state_of

TRANSACTION = "2.25.5"


def committing(db: Database, now: float = 210.0) -> ClaimedDelivery:
    """A delivery whose commitment has just been asked for."""
    delivery = sending(db)
    assert deliveries.sent(db, delivery, "w1", "0000", "", now)
    assert deliveries.committing(db, [delivery.id], TRANSACTION, now) == 1
    return delivery


def test_a_claim_carries_all_that_sending_needs(database: Database) -> None:
    delivery = sending(database, now=200.0)
    sr = document("sr")
    assert (delivery.path, delivery.sha256, delivery.size) == (sr.path, sr.sha256, sr.size)
    assert (delivery.sop_class_uid, delivery.sop_instance_uid) == (sr.sop_class_uid, sr.sop_instance_uid)
    assert (delivery.destination, delivery.kind, delivery.study_instance_uid) == ("pacs", "SR", STUDY)
    assert (delivery.attempts, delivery.fence, delivery.created_at) == (1, 1, 200.0)


def test_only_one_worker_sends(database: Database) -> None:
    delivery = sending(database)
    assert deliveries.claim(database, delivery.id, "w2", 200.0) is None
    assert deliveries.heartbeat(database, delivery.id, "w1", delivery.fence, 210.0)
    assert not deliveries.heartbeat(database, delivery.id, "w2", delivery.fence, 210.0)
    assert deliveries.expire(database, 269.0) == 0
    assert deliveries.expire(database, 271.0) == 1
    assert not deliveries.sent(database, delivery, "w1", "0000", "", 272.0)
    assert not deliveries.postponed(database, delivery, "w1", "A700", "", 272.0, 280.0)
    assert not deliveries.dead(database, delivery, "w1", "0122", "", 272.0)
    again = deliveries.claim(database, delivery.id, "w2", 272.0)
    assert again is not None
    assert (again.fence, again.attempts, again.sha256) == (2, 2, delivery.sha256)


def test_a_postponed_delivery_rests_and_is_rung_again(database: Database) -> None:
    delivery = sending(database, now=200.0)
    deliveries.rung(database, [delivery.id], 200.0)
    assert deliveries.postponed(database, delivery, "w1", "A700", "out of resources", 201.0, not_before=260.0)
    assert deliveries.to_ring(database, 259.0, 30.0) == []
    assert deliveries.claim(database, delivery.id, "w1", 259.0) is None
    assert deliveries.to_ring(database, 260.0, 30.0) == [delivery.id]
    shown = deliveries.show(database, delivery.id)
    assert (shown["last_status"], shown["reason"]) == ("A700", "out of resources")
    assert shown["history"][-1]["reason"] == "A700: out of resources"


def test_a_dead_delivery_waits_for_a_person_who_gives_it_all_its_time_again(database: Database) -> None:
    delivery = sending(database, now=200.0)
    assert not deliveries.retry(database, delivery.id, 201.0)
    assert deliveries.dead(database, delivery, "w1", "0122", "SOP Class not supported", 201.0)
    assert deliveries.to_ring(database, 1e6, 30.0) == []
    assert deliveries.retry(database, delivery.id, 300_000.0)
    again = deliveries.claim(database, delivery.id, "w1", 300_000.0)
    assert again is not None
    assert (again.attempts, again.fence, again.created_at) == (1, 2, 300_000.0)
    deliveries.dead(database, again, "w1", "0122", "SOP Class not supported", 300_001.0)
    assert deliveries.drop(database, delivery.id, 300_002.0)
    assert not deliveries.drop(database, delivery.id, 300_003.0)
    assert state_of(database, "delivery", delivery.id) == "DROPPED"


def test_commitment_is_asked_for_what_was_sent(database: Database) -> None:
    delivery = sending(database)
    assert deliveries.to_commit(database, "pacs") == []
    deliveries.sent(database, delivery, "w1", "B000", "a warning", 210.0)
    (asked,) = deliveries.to_commit(database, "pacs", now=210.0)
    assert (asked.id, asked.sop_instance_uid, asked.study_instance_uid) == (
        delivery.id,
        delivery.sop_instance_uid,
        STUDY,
    )
    assert deliveries.to_commit(database, "archive") == []
    assert deliveries.committing(database, [delivery.id], TRANSACTION, 211.0) == 1
    assert deliveries.committing(database, [delivery.id], "2.25.6", 211.0) == 0, "already asked for"
    assert deliveries.committing(database, [], "2.25.6", 211.0) == 0
    assert deliveries.to_commit(database, "pacs") == []


def test_a_report_commits_once(database: Database) -> None:
    delivery = committing(database)
    uid = delivery.sop_instance_uid
    assert deliveries.committed(database, "2.25.404", [uid], {}, 211.0) == 0
    assert deliveries.committed(database, TRANSACTION, ["2.25.405"], {}, 211.0) == 0, "what it does not name waits"
    assert deliveries.committed(database, TRANSACTION, [uid], {}, 211.0) == 1
    assert deliveries.committed(database, TRANSACTION, [uid], {}, 212.0) == 0
    assert deliveries.committed(database, TRANSACTION, [], {uid: 0x0112}, 212.0) == 0
    assert state_of(database, "delivery", delivery.id) == "COMMITTED"


def test_named_as_stored_and_as_failed_counts_as_failed(database: Database) -> None:
    delivery = committing(database)
    uid = delivery.sop_instance_uid
    assert deliveries.committed(database, TRANSACTION, [uid], {uid: 0x0112}, 211.0) == 1
    assert state_of(database, "delivery", delivery.id) == "PENDING"


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        (0x0112, "PENDING"),  # no such object instance: send the same bytes again
        (0x0110, "SENT"),  # processing failure: ask again
        (0x0213, "SENT"),  # resource limitation
        (0x0131, "SENT"),  # duplicate Transaction UID
        (0x0122, "DEAD"),  # SOP Class not supported
        (0x0119, "DEAD"),  # class-instance conflict
    ],
)
def test_each_failure_reason_has_its_answer(database: Database, reason: int, state: str) -> None:
    delivery = committing(database)
    assert deliveries.committed(database, TRANSACTION, [], {delivery.sop_instance_uid: reason}, 211.0) == 1
    shown = deliveries.show(database, delivery.id)
    assert shown["state"] == state
    assert shown["reason"] == f"pacs does not commit to keep it: Failure Reason {reason:04X}H"
    due = 211.0 + 5.0
    assert deliveries.to_ring(database, due, 30.0) == ([delivery.id] if state == "PENDING" else [])
    assert len(deliveries.to_commit(database, "pacs", now=due)) == (state == "SENT")
    assert deliveries.to_commit(database, "pacs", now=due - 1) == []


def test_a_destination_that_loses_it_every_time_ends_dead(database: Database) -> None:
    delivery = committing(database)
    uid, now, states = delivery.sop_instance_uid, 300.0, []
    for round_ in range(3):
        deliveries.committed(database, f"{TRANSACTION}{round_ or ''}", [], {uid: 0x0112}, now, max_attempts=3)
        states.append(state_of(database, "delivery", delivery.id))
        now += 100.0
        again = deliveries.claim(database, delivery.id, "w1", now)
        if again is not None:
            deliveries.sent(database, again, "w1", "0000", "", now)
            deliveries.committing(database, [delivery.id], f"{TRANSACTION}{round_ + 1}", now)
    assert states == ["PENDING", "PENDING", "DEAD"]


def test_what_is_lost_after_many_requests_without_an_answer_is_sent_again(database: Database) -> None:
    delivery = committing(database)
    uid = delivery.sop_instance_uid
    for round_ in range(deliveries.MAX_COMMIT_ATTEMPTS - 1):  # the archive was too busy to answer any of them
        assert deliveries.not_asked(database, f"{TRANSACTION}{round_ or ''}", "rejected for now", 300.0, 300.0) == 1
        assert deliveries.committing(database, [delivery.id], f"{TRANSACTION}{round_ + 1}", 300.0) == 1
    assert deliveries.committed(database, f"{TRANSACTION}{round_ + 1}", [], {uid: 0x0112}, 301.0) == 1
    assert state_of(database, "delivery", delivery.id) == "PENDING"
    assert deliveries.show(database, delivery.id)["commit_attempts"] == 0  # sent anew, waited for anew


def test_no_report_in_time_is_asked_again_and_in_the_end_dead(database: Database) -> None:
    delivery = committing(database, now=210.0)
    assert deliveries.uncommitted(database, 269.0, older_than=60.0, max_attempts=2) == 0
    assert deliveries.uncommitted(database, 270.0, older_than=60.0, max_attempts=2) == 1
    assert state_of(database, "delivery", delivery.id) == "SENT"
    deliveries.committing(database, [delivery.id], "2.25.6", 271.0)
    assert deliveries.committed(database, TRANSACTION, [delivery.sop_instance_uid], {}, 272.0) == 0, "the old one"
    assert deliveries.uncommitted(database, 331.0, older_than=60.0, max_attempts=2) == 1
    shown = deliveries.show(database, delivery.id)
    assert (shown["state"], shown["reason"]) == ("DEAD", "no N-EVENT-REPORT within 60 s, 2 times")


def test_a_request_that_did_not_get_through_is_made_again(database: Database) -> None:
    delivery = committing(database)
    assert deliveries.not_asked(database, TRANSACTION, "association rejected", 211.0, not_before=230.0) == 1
    assert deliveries.not_asked(database, TRANSACTION, "association rejected", 211.0, not_before=230.0) == 0
    assert deliveries.to_commit(database, "pacs", now=229.0) == []
    assert [d.id for d in deliveries.to_commit(database, "pacs", now=230.0)] == [delivery.id]


def test_listing_and_unknown_deliveries(database: Database) -> None:
    claimed = running(database, send_to=("pacs", "archive"))
    jobs.reported(database, claimed, "w1", [document("sr")], "", 210.0)
    found = deliveries.listing(database)
    assert sorted(d["destination"] for d in found) == ["archive", "pacs"]
    assert {d["study_instance_uid"] for d in found} == {STUDY}
    assert deliveries.listing(database, state="DEAD") == []
    assert len(deliveries.listing(database, limit=1)) == 1
    with pytest.raises(NotFound, match="no delivery x"):
        deliveries.show(database, "x")
