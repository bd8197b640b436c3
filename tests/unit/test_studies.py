"""Studies: registered once, due by silence or by patience, frozen when complete, reopened by late instances."""

from __future__ import annotations

import threading
import time

import pytest

from node.errors import NotFound
from node.states import JobState
from node.store import completion, deliveries, jobs, studies
from node.store.db import Database, history, move
from tests.unit.rows import SERIES, STUDY, document, new_job, received, routed, running, sending, state_of


def due(db: Database, now: float, quiet: float = 60.0, longest: float = 3600.0) -> list[str]:
    return [study.study_instance_uid for study in completion.waiting(db, now, quiet, longest)]


def test_registering_twice_changes_nothing(database: Database) -> None:
    batch = [received(1), received(2), received(2)]
    assert studies.register(database, batch) == 2
    before = studies.show(database, STUDY)
    assert studies.register(database, [received(1, at=500.0), received(2, at=500.0)]) == 0
    assert studies.show(database, STUDY) == before


def test_a_large_instance_and_a_large_batch_fit(database: Database) -> None:
    batch = [received(n, size=6 * 2**30) for n in range(1200)]
    assert studies.register(database, batch) == 1200
    assert studies.show(database, STUDY)["series"][0]["size"] == 1200 * 6 * 2**30
    assert studies.registered(database, [i.sha256 for i in batch] + ["0" * 64]) == {i.sha256 for i in batch}


def test_a_study_is_due_when_it_is_quiet(database: Database) -> None:
    studies.register(database, [received(1, at=100.0)])
    studies.register(database, [received(2, at=150.0)])
    assert due(database, 209.0) == []
    assert due(database, 210.0) == [STUDY]


def test_a_sender_that_never_pauses_is_cut_off_at_the_longest_wait(database: Database) -> None:
    for number in range(8):
        studies.register(database, [received(number, at=100.0 + 10 * number)])
    assert due(database, 159.0, quiet=30, longest=60) == []
    (found,) = completion.waiting(database, 161.0, 30, 60)
    assert (found.opened_at, found.last_received_at) == (100.0, 170.0)


def test_completing_freezes_the_manifest_once(database: Database) -> None:
    studies.register(database, [received(2), received(1), received(3, is_own_result=True)])
    assert studies.complete(database, STUDY, 200.0, "quiet for 100 s") == 1
    assert studies.complete(database, STUDY, 200.0, "quiet for 100 s") is None
    found = studies.manifest(database, STUDY, 1)
    assert [i.sop_instance_uid for i in found] == [f"{SERIES}.1", f"{SERIES}.2"]
    shown = studies.show(database, STUDY)
    assert shown["manifest_sha256"] == studies.manifest_sha256(found)
    assert shown["history"][-1]["reason"] == "revision 1: quiet for 100 s"
    assert studies.to_route(database) == [(STUDY, 1)]


def test_an_instance_that_arrives_after_the_look_is_waited_for(database: Database) -> None:
    studies.register(database, [received(1, at=100.0)])
    seen = completion.waiting(database, 200.0, 60, 3600)[0].last_received_at
    studies.register(database, [received(2, at=199.0)])
    assert studies.complete(database, STUDY, 200.0, "quiet", seen) is None
    assert studies.complete(database, STUDY, 260.0, "quiet", 199.0) == 1


def test_an_unknown_study_is_not_completed(database: Database) -> None:
    assert studies.complete(database, "1.2.3", 200.0, "quiet") is None


@pytest.mark.parametrize("stage", ["COMPLETE", "ROUTED", "DONE", "FAILED"])
def test_a_late_instance_reopens_the_study_at_every_stage(database: Database, stage: str) -> None:
    if stage == "COMPLETE":
        studies.register(database, [received(1), received(2)])
        studies.complete(database, STUDY, 200.0, "quiet")
    else:
        claimed = running(database)
        if stage == "DONE":
            jobs.unsuitable(database, claimed, "w1", "no", 201.0)
        elif stage == "FAILED":
            jobs.failed(database, claimed, "w1", "broken", 201.0, transient=False)
        studies.settle(database, 202.0)
    frozen = studies.manifest(database, STUDY, 1)
    assert state_of(database, "study", STUDY) == stage
    assert studies.register(database, [received(3, at=300.0)]) == 1
    assert state_of(database, "study", STUDY) == "RECEIVING"
    assert studies.manifest(database, STUDY, 1) == frozen
    assert (due(database, 359.0), due(database, 360.0)) == ([], [STUDY])
    assert studies.complete(database, STUDY, 360.0, "quiet") == 2
    assert [i.revision for i in studies.manifest(database, STUDY, 2)] == [1, 1, 2]


def test_late_instances_can_be_ignored_but_never_lost(database: Database) -> None:
    routed(database)
    late = received(3, at=300.0)
    assert studies.register(database, [late], late="ignore") == 1
    assert state_of(database, "study", STUDY) == "ROUTED"
    assert due(database, 9999.0) == []
    with database.reader() as connection:
        events = history(connection, "instance", late.sha256)
    assert [event["to_state"] for event in events] == ["LATE"]
    assert studies.registered(database, [late.sha256]) == {late.sha256}


def test_our_own_results_never_open_nor_reopen_a_study(database: Database) -> None:
    own = [received(9, at=50.0, is_own_result=True)]
    assert studies.register(database, own) == 1
    assert due(database, 9999.0) == []
    # Real images come much later: their own waiting time counts, not that of the result.
    studies.register(database, [received(1, at=5000.0)])
    assert (due(database, 5059.0), due(database, 5060.0)) == ([], [STUDY])
    assert studies.complete(database, STUDY, 5060.0, "quiet") == 1
    assert studies.routed(database, STUDY, 1, [], "no route", 5061.0)
    assert studies.register(database, [received(10, at=6000.0, is_own_result=True)]) == 1
    assert state_of(database, "study", STUDY) == "DONE"
    assert [i.sop_instance_uid for i in studies.manifest(database, STUDY, 1)] == [f"{SERIES}.1"]


def test_our_own_result_does_not_prolong_the_quiet_period(database: Database) -> None:
    studies.register(database, [received(1, at=100.0)])
    studies.register(database, [received(9, at=155.0, is_own_result=True)])
    assert due(database, 160.0) == [STUDY]


def test_other_bytes_under_one_uid_are_both_kept_and_the_last_is_read(database: Database) -> None:
    routed(database)
    corrected = received(2, at=300.0, content="corrected")
    assert studies.register(database, [corrected]) == 1
    assert studies.complete(database, STUDY, 400.0, "quiet") == 2
    first = {i.sop_instance_uid: i.sha256 for i in studies.manifest(database, STUDY, 1)}
    second = {i.sop_instance_uid: i.sha256 for i in studies.manifest(database, STUDY, 2)}
    assert first[f"{SERIES}.2"] == received(2).sha256
    assert second == {f"{SERIES}.1": received(1).sha256, f"{SERIES}.2": corrected.sha256}
    with database.reader() as connection:
        assert [e["to_state"] for e in history(connection, "instance", corrected.sha256)] == ["DIFFERS"]


def test_routing_inserts_the_jobs_once(database: Database) -> None:
    routed(database, new_job(), new_job(bundle="lung_fields"))
    assert not studies.routed(database, STUDY, 1, [new_job(bundle="another")], "again", 201.0)
    assert sorted(job["bundle"] for job in jobs.listing(database)) == ["hippocampus", "lung_fields"]
    assert state_of(database, "study", STUDY) == "ROUTED"


def test_a_router_that_worked_on_an_older_revision_inserts_nothing(database: Database) -> None:
    studies.register(database, [received(1)])
    studies.complete(database, STUDY, 200.0, "quiet")
    studies.register(database, [received(2, at=210.0)])
    studies.complete(database, STUDY, 300.0, "quiet")
    assert not studies.routed(database, STUDY, 1, [new_job()], "late router", 301.0)
    assert jobs.listing(database) == []
    assert studies.to_route(database) == [(STUDY, 2)]


def test_a_study_without_jobs_is_done_with_its_reason(database: Database) -> None:
    studies.register(database, [received(1)])
    studies.complete(database, STUDY, 200.0, "quiet")
    assert studies.routed(database, STUDY, 1, [], "no route meets this study", 201.0)
    shown = studies.show(database, STUDY)
    assert (shown["state"], shown["reason"]) == ("DONE", "no route meets this study")
    assert [e["to_state"] for e in shown["history"]] == ["RECEIVING", "COMPLETE", "ROUTED", "DONE"]


def test_two_routes_that_order_the_same_job_share_it(database: Database) -> None:
    one, two = new_job(), new_job(route="research", results=("SC",), send_to=("archive", "pacs"))
    routed(database, one, two)
    (job,) = jobs.listing(database)
    assert (job["route"], job["results"], job["send_to"]) == (
        "head, research",
        ("SR", "SEG", "SC"),
        ("pacs", "archive"),
    )


def test_a_study_is_done_when_every_delivery_arrived(database: Database) -> None:
    delivery = sending(database)
    assert studies.settle(database, 201.0) == 0
    deliveries.sent(database, delivery, "w1", "0000", "", 202.0)
    assert studies.settle(database, 203.0, committing={"pacs"}) == 0, "SENT is not the end where commitment is given"
    assert studies.settle(database, 203.0, committing={"archive"}) == 2
    assert state_of(database, "job", delivery.job_id) == "DONE"
    assert studies.show(database, STUDY)["reason"] == "jobs: 1 done"
    assert studies.settle(database, 204.0) == 0


def test_a_study_with_commitment_is_done_when_committed(database: Database) -> None:
    delivery = sending(database)
    deliveries.sent(database, delivery, "w1", "0000", "", 202.0)
    deliveries.committing(database, [delivery.id], "2.25.5", 203.0)
    assert studies.settle(database, 204.0, {"pacs"}) == 0
    deliveries.committed(database, "2.25.5", [delivery.sop_instance_uid], {}, 205.0)
    assert studies.settle(database, 206.0, {"pacs"}) == 2
    assert state_of(database, "study", STUDY) == "DONE"


def test_a_dead_delivery_fails_the_study_only_when_nothing_is_under_way(database: Database) -> None:
    ids = routed(database, new_job(), new_job(bundle="lung_fields"))
    first = jobs.claim(database, ids[0], "w1", 200.0)
    assert first is not None
    jobs.reported(database, first, "w1", [document("sr")], "", 201.0)
    delivery = deliveries.claim(database, deliveries.to_ring(database, 202.0, 30)[0], "w1", 202.0)
    assert delivery is not None
    deliveries.dead(database, delivery, "w1", "0122", "SOP Class not supported", 203.0)
    assert studies.settle(database, 204.0) == 0
    second = jobs.claim(database, ids[1], "w1", 205.0)
    assert second is not None
    jobs.unsuitable(database, second, "w1", "no lungs", 206.0)
    assert studies.settle(database, 207.0) == 1
    shown = studies.show(database, STUDY)
    assert (shown["state"], shown["reason"]) == (
        "FAILED",
        "0 jobs and 1 deliveries are dead; `wetread dead list` names them",
    )


@pytest.mark.parametrize(("choice", "path"), [("retry", ["FAILED", "ROUTED"]), ("drop", ["ROUTED", "DONE"])])
def test_a_person_moves_a_failed_study_on(database: Database, choice: str, path: list[str]) -> None:
    claimed = running(database)
    jobs.failed(database, claimed, "w1", "broken", 201.0, transient=False)
    studies.settle(database, 202.0)
    assert {"retry": jobs.retry, "drop": jobs.drop}[choice](database, claimed.id, 203.0)
    studies.settle(database, 204.0, failed=False)
    assert [e["to_state"] for e in studies.show(database, STUDY)["history"]][-2:] == path


@pytest.mark.parametrize(("choice", "to"), [("retry", "ROUTED"), ("drop", "DONE")])
def test_a_person_moves_on_a_study_whose_delivery_failed(database: Database, choice: str, to: str) -> None:
    delivery = sending(database)
    deliveries.dead(database, delivery, "w1", "0122", "refused", 201.0)
    studies.settle(database, 202.0)
    assert state_of(database, "study", STUDY) == "FAILED"
    assert {"retry": deliveries.retry, "drop": deliveries.drop}[choice](database, delivery.id, 203.0)
    studies.settle(database, 204.0, failed=False)
    assert state_of(database, "study", STUDY) == to


def test_a_failed_study_of_which_nobody_says_anything_is_not_looked_at(database: Database) -> None:
    claimed = running(database)
    jobs.failed(database, claimed, "w1", "broken", 201.0, transient=False)
    studies.settle(database, 202.0, failed=False)
    with database.transaction() as connection:  # as an earlier version left it
        move(connection, "job", claimed.id, JobState.DEAD, JobState.DROPPED, 203.0, "dropped by a person")
    assert studies.settle(database, 204.0, failed=False) == 0
    assert studies.settle(database, 204.0) == 1
    assert state_of(database, "study", STUDY) == "DONE"


def test_a_dead_job_of_an_older_revision_moves_no_study(database: Database) -> None:
    claimed = running(database)
    jobs.failed(database, claimed, "w1", "broken", 201.0, transient=False)
    studies.register(database, [received(3, at=300.0)])
    studies.complete(database, STUDY, 400.0, "quiet")
    studies.routed(database, STUDY, 2, [new_job(revision=2)], "routed", 401.0)
    again = jobs.claim(database, new_job(revision=2).job_id, "w1", 402.0)
    assert again is not None
    jobs.failed(database, again, "w1", "broken", 403.0, transient=False)
    studies.settle(database, 404.0)
    assert jobs.drop(database, claimed.id, 405.0)
    assert state_of(database, "study", STUDY) == "FAILED"


def test_jobs_of_an_older_revision_run_to_their_end(database: Database) -> None:
    old = running(database)
    studies.register(database, [received(3, at=300.0)])
    studies.complete(database, STUDY, 400.0, "quiet")
    studies.routed(database, STUDY, 2, [new_job(revision=2)], "routed", 401.0)
    assert jobs.reported(database, old, "w1", [document("old sr")], "", 402.0)
    for delivery_id in deliveries.to_ring(database, 403.0, 30):
        delivery = deliveries.claim(database, delivery_id, "w1", 403.0)
        assert delivery is not None
        deliveries.sent(database, delivery, "w1", "0000", "", 404.0)
    assert studies.settle(database, 405.0) == 1
    assert state_of(database, "job", old.id) == "DONE"
    assert state_of(database, "study", STUDY) == "ROUTED", "the new revision's job is still to come"


def test_listing_shows_the_jobs_of_the_current_revision(database: Database) -> None:
    routed(database)
    studies.register(database, [received(1, at=999.0, study_instance_uid="1.9", sop_instance_uid="1.9.1")])
    found = studies.listing(database)
    assert [(s["study_instance_uid"], s["instances"], len(s["jobs"])) for s in found] == [("1.9", 1, 0), (STUDY, 2, 1)]
    assert [s["study_instance_uid"] for s in studies.listing(database, state="ROUTED")] == [STUDY]
    assert [s["study_instance_uid"] for s in studies.listing(database, limit=1, offset=1)] == [STUDY]


def test_an_unknown_study_is_not_found(database: Database) -> None:
    with pytest.raises(NotFound, match=r"no study 1\.2\.3"):
        studies.show(database, "1.2.3")


def test_a_frozen_manifest_stays_frozen_while_others_register(database_url: str) -> None:
    db, count = Database(database_url), 120
    frozen: dict[int, list[studies.InstanceRow]] = {}

    def register(first: int) -> None:
        own = Database(database_url)  # as another process would
        for number in range(first, count, 2):
            studies.register(own, [received(number, at=100.0 + number), received(number // 2)])
            time.sleep(0.003)  # SQLite gives the lock to whoever asks first; let the other ask, too
        own.close()

    threads = [threading.Thread(target=register, args=(first,)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or completion.waiting(db, 9999.0, 1, 1):
        revision = studies.complete(db, STUDY, 500.0, "at any moment")
        if revision is not None:
            frozen[revision] = studies.manifest(db, STUDY, revision)
    assert len(frozen) > 1
    assert {n: studies.manifest(db, STUDY, n) for n in frozen} == frozen
    assert len(frozen[max(frozen)]) == count
    assert studies.show(db, STUDY)["manifest_sha256"] == studies.manifest_sha256(frozen[max(frozen)])
    db.close()
