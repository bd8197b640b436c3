"""Jobs: one worker at a time, ended once, tried again with rest, dead when it is no use."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from node.errors import NotFound
from node.store import deliveries, jobs, leases, settling, studies
from node.store.db import Database
from tests.unit.rows import SERIES, STUDY, document, new_job, received, routed, running, state_of


def test_a_job_is_rung_once_and_again_only_after_a_while(database: Database) -> None:
    (job_id,) = routed(database)
    assert jobs.to_ring(database, 201.0, 30.0) == [job_id]
    assert jobs.to_ring(database, 201.0, 30.0) == [job_id], "asking is not ringing"
    jobs.rung(database, [job_id], 201.0)
    assert jobs.to_ring(database, 230.0, 30.0) == []
    assert jobs.to_ring(database, 231.0, 30.0) == [job_id]
    assert jobs.to_ring(database, 150.0, 30.0) == [job_id], "a clock set back must not silence the bell"
    jobs.rung(database, [], 202.0)


def test_the_oldest_job_is_rung_first(database: Database) -> None:
    ids = routed(database, now=200.0)
    studies.register(database, [received(3, at=300.0)])
    studies.complete(database, STUDY, 400.0, "quiet")
    newer = new_job(revision=2)
    studies.routed(database, STUDY, 2, [newer], "routed", 400.0)
    assert jobs.to_ring(database, 500.0, 30.0) == [*ids, newer.job_id]
    assert jobs.to_ring(database, 500.0, 30.0, limit=1) == ids


def test_a_claim_carries_the_whole_order(database: Database) -> None:
    claimed = running(database, now=200.0)
    assert claimed == jobs.Claimed(**vars(new_job()), id=new_job().job_id, fence=1, attempts=1)


def test_only_one_worker_gets_a_job(database: Database) -> None:
    claimed = running(database)
    assert jobs.claim(database, claimed.id, "w2", 200.0) is None
    assert jobs.claim(database, claimed.id, "w1", 200.0) is None
    assert jobs.claim(database, "no such job", "w1", 200.0) is None
    assert jobs.to_ring(database, 999.0, 30.0) == []


def test_a_heartbeat_keeps_the_lease(database: Database) -> None:
    claimed = running(database, now=200.0)
    assert jobs.heartbeat(database, claimed.id, "w1", claimed.fence, 225.0)
    assert jobs.expire(database, 254.0) == 0
    assert not jobs.heartbeat(database, claimed.id, "w2", claimed.fence, 225.0)
    assert not jobs.heartbeat(database, claimed.id, "w1", claimed.fence + 1, 225.0)
    assert jobs.expire(database, 255.5) == 1
    assert not jobs.heartbeat(database, claimed.id, "w1", claimed.fence, 256.0)


def test_a_heartbeat_that_comes_at_the_last_moment_counts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed = running(database, now=200.0)
    lapsed = leases.lapsed

    def lapsed_but_alive(*arguments: Any) -> list[dict[str, Any]]:
        found = lapsed(*arguments)
        assert jobs.heartbeat(database, claimed.id, "w1", claimed.fence, 231.0)
        return found

    monkeypatch.setattr(leases, "lapsed", lapsed_but_alive)
    assert jobs.expire(database, 231.0) == 0
    assert state_of(database, "job", claimed.id) == "RUNNING"


def test_a_worker_that_lost_its_lease_changes_nothing(database: Database) -> None:
    stale = running(database, now=200.0)
    assert jobs.expire(database, 231.0) == 1
    fresh = jobs.claim(database, stale.id, "w1", 231.0)  # even the same worker: the fence tells the two apart
    assert fresh is not None
    assert (fresh.fence, fresh.attempts) == (2, 2)
    before = jobs.show(database, stale.id)
    assert not jobs.reported(database, stale, "w1", [document("stale")], "stale", 232.0)
    assert not jobs.unsuitable(database, stale, "w1", "stale", 232.0)
    assert jobs.failed(database, stale, "w1", "stale", 232.0, transient=True) is None
    assert not jobs.released(database, stale, "w1", "stale", 232.0)
    assert not jobs.reported(database, fresh, "w2", [document("not mine")], "", 232.0)
    assert jobs.show(database, stale.id) == before
    assert deliveries.listing(database) == []


def test_reporting_files_everything_in_one_go(database: Database) -> None:
    claimed = running(database, send_to=("pacs", "archive"))
    assert jobs.reported(database, claimed, "w1", [document("sr"), document("seg", "SEG")], "3.1 mL", 210.0)
    shown = jobs.show(database, claimed.id)
    assert (shown["state"], shown["summary"], shown["leased_by"]) == ("REPORTED", "3.1 mL", None)
    assert {e["kind"] for e in shown["evidence"]} == {"SR", "SEG"}
    assert sorted((d["destination"], d["state"]) for d in shown["deliveries"]) == [
        *[("archive", "PENDING")] * 2,
        *[("pacs", "PENDING")] * 2,
    ]
    assert not jobs.reported(database, claimed, "w1", [document("sr"), document("seg", "SEG")], "3.1 mL", 211.0)
    assert jobs.show(database, claimed.id) == shown


def test_a_failure_while_filing_files_nothing(database: Database) -> None:
    claimed = running(database)
    broken = replace(document("seg"), kind=None)  # type: ignore[arg-type]
    with pytest.raises(Exception, match=r"(?i)not.null"):
        jobs.reported(database, claimed, "w1", [document("sr"), broken], "", 210.0)
    shown = jobs.show(database, claimed.id)
    assert (shown["state"], shown["evidence"], shown["deliveries"]) == ("RUNNING", [], [])


def test_a_job_for_nobody_is_done_when_reported(database: Database) -> None:
    claimed = running(database, send_to=())
    assert jobs.reported(database, claimed, "w1", [document("sr")], "", 210.0)
    assert studies.settle(database, 211.0) == 2
    assert state_of(database, "study", STUDY) == "DONE"


def test_an_unsuitable_series_is_an_answer(database: Database) -> None:
    claimed = running(database)
    assert jobs.unsuitable(database, claimed, "w1", "2 slices are missing", 210.0)
    shown = jobs.show(database, claimed.id)
    assert (shown["state"], shown["reason"]) == ("UNSUITABLE", "2 slices are missing")
    assert not jobs.unsuitable(database, claimed, "w1", "2 slices are missing", 211.0)


def test_a_transient_failure_rests_longer_each_time_and_ends_dead(database: Database) -> None:
    (job_id,) = routed(database)
    now, rests = 200.0, []
    for _ in range(4):
        claimed = jobs.claim(database, job_id, "w1", now)
        assert claimed is not None
        assert jobs.failed(database, claimed, "w1", "GPU busy", now, True, max_attempts=5) == "QUEUED"
        due = jobs.show(database, job_id)["not_before"]
        rests.append(due - now)
        assert jobs.claim(database, job_id, "w1", due - 0.1) is None
        assert jobs.to_ring(database, due - 0.1, 30.0) == []
        now = due
    assert rests == [5.0, 15.0, 60.0, 300.0]
    claimed = jobs.claim(database, job_id, "w1", now)
    assert claimed is not None
    assert jobs.failed(database, claimed, "w1", "GPU busy", now, True, max_attempts=5) == "DEAD"
    assert jobs.show(database, job_id)["reason"] == "GPU busy (tried 5 times)"
    assert jobs.to_ring(database, now + 1e6, 30.0) == []


def test_a_permanent_failure_is_dead_at_once(database: Database) -> None:
    claimed = running(database)
    assert jobs.failed(database, claimed, "w1", "digest differs", 201.0, transient=False) == "DEAD"
    assert jobs.failed(database, claimed, "w1", "digest differs", 201.0, transient=False) is None


def test_a_job_that_kills_its_worker_each_time_ends_dead(database: Database) -> None:
    (job_id,) = routed(database)
    states = []
    for attempt in range(3):
        now = 200.0 + 100 * attempt
        assert jobs.claim(database, job_id, f"w{attempt}", now) is not None
        assert jobs.expire(database, now + 30.5, max_attempts=3) == 1
        states.append(state_of(database, "job", job_id))
    assert states == ["QUEUED", "QUEUED", "DEAD"]
    assert jobs.show(database, job_id)["reason"] == "w2 fell silent on attempt 3 (tried 3 times)"
    assert jobs.expire(database, 9999.0) == 0


def test_a_worker_that_stops_gives_the_attempt_back(database: Database) -> None:
    claimed = running(database)
    assert jobs.released(database, claimed, "w1", "the worker was stopped", 205.0)
    again = jobs.claim(database, claimed.id, "w2", 205.0)
    assert again is not None
    assert (again.attempts, again.fence) == (1, 2)


def test_a_person_retries_or_drops_only_what_is_dead(database: Database) -> None:
    claimed = running(database)
    assert not jobs.retry(database, claimed.id, 201.0)
    assert not jobs.drop(database, claimed.id, 201.0)
    jobs.failed(database, claimed, "w1", "broken", 202.0, transient=False)
    assert jobs.retry(database, claimed.id, 203.0)
    again = jobs.claim(database, claimed.id, "w2", 203.0)
    assert again is not None
    assert (again.attempts, again.fence) == (1, 2), "all attempts anew, but the fence never goes back"
    jobs.failed(database, again, "w2", "broken", 204.0, transient=False)
    assert jobs.drop(database, claimed.id, 205.0)
    assert state_of(database, "job", claimed.id) == "DROPPED"
    assert not jobs.retry(database, claimed.id, 206.0)


def test_predecessors_are_the_structured_reports_of_the_last_revision_that_has_any(database: Database) -> None:
    for revision in (1, 2):
        studies.register(database, [received(revision, at=revision * 1000.0)])
        studies.complete(database, STUDY, revision * 1000.0 + 100, "quiet")
        job = new_job(revision=revision)
        studies.routed(database, STUDY, revision, [job], "routed", revision * 1000.0 + 200)
        claimed = jobs.claim(database, job.job_id, "w1", revision * 1000.0 + 200)
        assert claimed is not None
        made = [document(f"sr {revision}"), document(f"seg {revision}", "SEG")]
        assert jobs.reported(database, claimed, "w1", made, "", revision * 1000.0 + 300)

    def before(revision: int, bundle: str = "hippocampus") -> list[str]:
        return jobs.predecessors(database, STUDY, SERIES, bundle, revision)

    assert before(1) == []
    assert before(2) == [document("sr 1").path]
    assert before(3) == before(9) == [document("sr 2").path]
    assert before(3, bundle="lung_fields") == []


def test_a_document_that_is_known_keeps_its_first_bytes(database: Database) -> None:
    first = running(database)
    jobs.reported(database, first, "w1", [document("sr")], "", 210.0)
    studies.register(database, [received(3, at=300.0)])
    studies.complete(database, STUDY, 400.0, "quiet")
    studies.routed(database, STUDY, 2, [new_job(revision=2, send_to=("pacs", "archive"))], "routed", 401.0)
    second = jobs.claim(database, new_job(revision=2).job_id, "w1", 401.0)
    assert second is not None
    other_bytes = replace(document("sr"), path=document("other").path, sha256=document("other").sha256)
    assert jobs.reported(database, second, "w1", [other_bytes], "", 410.0)
    found = deliveries.listing(database)
    assert sorted(d["destination"] for d in found) == ["archive", "pacs"]
    assert {d["sha256"] for d in found} == {document("sr").sha256}


def test_listing_and_unknown_jobs(database: Database) -> None:
    claimed = running(database)
    assert [job["id"] for job in jobs.listing(database, state="RUNNING")] == [claimed.id]
    assert jobs.listing(database, state="DEAD") == []
    with pytest.raises(NotFound, match="no job x"):
        jobs.show(database, "x")


def test_six_workers_that_race_for_the_same_jobs_share_them_out(database_url: str) -> None:
    db = Database(database_url)
    ids = routed(db, *(new_job(bundle=f"bundle {n}") for n in range(30)))
    start = threading.Barrier(6)
    got: dict[str, list[str]] = {f"w{n}": [] for n in range(6)}

    def work(worker: str) -> None:
        own = Database(database_url)  # as another process would
        start.wait()
        for job_id in ids:
            claimed = jobs.claim(own, job_id, worker, 200.0)
            if claimed is not None:
                got[worker].append(claimed.id)
                assert jobs.unsuitable(own, claimed, worker, "no", 200.0)
        own.close()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(job_id for claimed in got.values() for job_id in claimed) == sorted(ids)
    assert {job["attempts"] for job in jobs.listing(db)} == {1}
    db.close()


def test_what_is_urgent_is_rung_and_read_first_whatever_message_comes(database: Database) -> None:
    routine, high, stat = (
        new_job(bundle="routine"), new_job(bundle="high", priority=1), new_job(bundle="stat", priority=2)
    )  # fmt: skip
    routed(database, routine, high, stat)
    assert jobs.to_ring(database, 200.0, 30) == [stat.job_id, high.job_id, routine.job_id]

    def message(job_id: str) -> str | None:
        claimed = jobs.claim_most_urgent(database, job_id, "w1", 200.0)
        return claimed.bundle if claimed else None

    assert message(routine.job_id) == "stat"
    assert [message(stat.job_id), message(stat.job_id)] == ["high", "routine"]
    assert message(high.job_id) is None


def test_of_equally_urgent_jobs_the_one_that_was_rung_for_is_read(database: Database) -> None:
    ids = routed(database, new_job(bundle="a"), new_job(bundle="b"))
    claimed = jobs.claim_most_urgent(database, ids[1], "w1", 200.0)
    assert claimed is not None
    assert claimed.id == ids[1]


def test_two_routes_that_order_one_job_get_the_higher_priority(database: Database) -> None:
    (job_id,) = set(routed(database, new_job(route="a", priority=2), new_job(route="b")))
    assert jobs.show(database, job_id)["priority"] == 2


def test_a_declined_series_may_have_a_report_and_its_study_waits_for_it(database: Database) -> None:
    claimed = running(database)
    assert jobs.unsuitable(database, claimed, "w1", "it is lateral", 210.0, [document("notice")])
    shown = jobs.show(database, claimed.id)
    assert (shown["state"], len(shown["evidence"]), len(shown["deliveries"])) == ("UNSUITABLE", 1, 1)
    assert settling.settle(database, 211.0) == 0
    sent = deliveries.claim(database, shown["deliveries"][0]["id"], "w1", 212.0)
    assert sent is not None
    deliveries.sent(database, sent, "w1", "0000", "sent", 213.0)
    assert settling.settle(database, 214.0) == 1
    assert studies.show(database, STUDY)["state"] == "DONE"


def test_of_two_routes_the_one_that_says_more_holds(database: Database) -> None:
    routed(database, new_job(), new_job(decline="report"))
    assert [job["decline"] for job in jobs.listing(database)] == ["report"]
