from __future__ import annotations

import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from node import clock
from node.bundles import Bundle
from node.store import jobs
from node.store.jobs import Claimed
from tests.unit.jobs_on_disk import make_bundle, open_desk, queue_job, settings_in
from workers import app, room, tasks
from workers.tasks import Desk


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path)


@contextmanager
def desk_in(folder: Path, mode: str = "good", job_timeout: str = "30 s", **options: Any) -> Iterator[Desk]:
    desk = open_desk(settings_in(folder, job_timeout=job_timeout), mode, **options)
    try:
        yield desk
    finally:
        desk.readers.stop()
        desk.db.close()


def run(desk: Desk, job_id: str) -> dict[str, Any]:
    tasks.read(desk, job_id)
    return jobs.show(desk.db, job_id)


def test_a_job_is_read_and_its_results_filed(tmp_path: Path, bundle: Bundle) -> None:
    with desk_in(tmp_path) as desk:
        job = run(desk, queue_job(desk.db, desk.spool, bundle))
        assert (job["state"], job["attempts"]) == ("REPORTED", 1)
        assert job["summary"].startswith("pid ")
        (evidence,) = job["evidence"]
        assert desk.spool.verify(evidence["path"], evidence["sha256"])
        assert (evidence["kind"], evidence["series_instance_uid"]) == ("SR", "2.25.2")
        assert [d["destination"] for d in job["deliveries"]] == ["pacs"]
        assert list((tmp_path / "reading").iterdir()) == []


def test_the_reading_gets_its_series_and_no_other(tmp_path: Path, bundle: Bundle) -> None:
    with desk_in(tmp_path) as desk:
        for wanted, count in ((0, 3), (2, 2)):
            job = run(desk, queue_job(desk.db, desk.spool, bundle, wanted=wanted))
            told = json.loads(desk.spool.path(job["evidence"][0]["path"]).read_bytes())
            assert len(told["files"]) == count
            assert all(Path(file).is_file() for file in told["files"])


def test_the_request_names_bundle_manifest_and_series_numbers(tmp_path: Path, bundle: Bundle) -> None:
    with desk_in(tmp_path) as desk:
        claimed = jobs.claim(desk.db, queue_job(desk.db, desk.spool, bundle), "w", clock.now())
        assert claimed
        request = tasks._request(desk, claimed, tmp_path)
        assert (request.bundle, request.digest) == (str(bundle.folder), bundle.digest)
        assert (request.highest_series_number, len(request.key), request.predecessors) == (12, 64, ())


@pytest.mark.parametrize(("policy", "named"), [("supersede", 1), ("reread", 0)])
def test_a_report_names_its_predecessor_where_it_supersedes_it(
    tmp_path: Path, bundle: Bundle, policy: str, named: int
) -> None:
    with desk_in(tmp_path) as desk:
        rules = desk.settings.completeness.model_copy(update={"late_instances": policy})
        desk.settings = desk.settings.model_copy(update={"completeness": rules})
        job = run(desk, queue_job(desk.db, desk.spool, bundle))
        again = Claimed(**{field.name: job[field.name] for field in fields(Claimed)} | {"revision": 2})
        assert len(tasks._request(desk, again, tmp_path).predecessors) == named


def test_a_message_that_comes_twice_is_read_once(tmp_path: Path, bundle: Bundle) -> None:
    with desk_in(tmp_path) as desk:
        job_id = queue_job(desk.db, desk.spool, bundle)
        assert run(desk, job_id)["history"] == run(desk, job_id)["history"]


@pytest.mark.parametrize(
    "value", [None, 3, "", "x", "../../etc/passwd", {"id": 1}, "5FD1457D-410B-4234-BE56-FCBD00CBA2E5"]
)
def test_a_message_without_an_id_is_dropped(tmp_path: Path, value: Any, caplog: pytest.LogCaptureFixture) -> None:
    with desk_in(tmp_path) as desk:
        tasks.read(desk, value)
        tasks.send(desk, value)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "passwd" not in caplog.text


def test_an_unknown_id_is_dropped_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with desk_in(tmp_path) as desk:
        tasks.read(desk, str(uuid.uuid4()))
        tasks.send(desk, str(uuid.uuid4()))
    assert caplog.records == []


def test_a_permanent_failure_waits_for_a_person_with_its_reason(tmp_path: Path, bundle: Bundle) -> None:
    with desk_in(tmp_path, "raise") as desk:
        job = run(desk, queue_job(desk.db, desk.spool, bundle))
        assert (job["state"], job["attempts"]) == ("DEAD", 1)
        assert job["reason"].startswith("The reading failed: ValueError")


def test_a_reading_that_hangs_uses_up_its_attempts_and_is_dead(tmp_path: Path, bundle: Bundle) -> None:
    at = [clock.now()]
    with desk_in(tmp_path, "hang", job_timeout="300 ms", now=lambda: at[0]) as desk:
        job_id = queue_job(desk.db, desk.spool, bundle)
        states = []
        for _ in range(3):
            states.append(run(desk, job_id)["state"])
            at[0] += 100
        job = jobs.show(desk.db, job_id)
    assert states == ["QUEUED", "QUEUED", "DEAD"]
    assert "job_timeout (0.3 s)" in job["reason"]
    assert job["reason"].endswith("(tried 3 times)")


def test_a_bundle_with_another_digest_is_not_run(tmp_path: Path, bundle: Bundle) -> None:
    with desk_in(tmp_path) as desk:
        job_id = queue_job(desk.db, desk.spool, bundle)
        (bundle.folder / "configs" / "inference.json").write_text('{"swapped": true}')
        job = run(desk, job_id)
        assert job["state"] == "DEAD"
        assert f"digest {bundle.digest[:12]}; this worker has fake 1.0.0 with digest" in job["reason"]
        assert not desk.readers.pids


def test_a_bundle_that_is_gone_is_named(tmp_path: Path, bundle: Bundle) -> None:
    with desk_in(tmp_path) as desk:
        job_id = queue_job(desk.db, desk.spool, bundle)
        (bundle.folder / "configs" / "metadata.json").unlink()
        assert 'There is no Model Bundle "fake"' in run(desk, job_id)["reason"]


def test_a_spool_without_room_leaves_the_job_queued(tmp_path: Path, bundle: Bundle) -> None:
    with desk_in(tmp_path) as desk:
        job_id = queue_job(desk.db, desk.spool, bundle)
        shutil.rmtree(tmp_path / "spool" / "results")
        (tmp_path / "spool" / "results").write_text("in the way")
        job = run(desk, job_id)
        assert (job["state"], job["attempts"]) == ("QUEUED", 0)
        assert "The spool refused a write" in job["reason"]


def test_a_reading_that_finds_the_disk_full_waits_for_room_and_is_no_attempt(tmp_path: Path, bundle: Bundle) -> None:
    """A disk that was full for a minute made a dead letter of every job that was queued."""
    with desk_in(tmp_path, "full") as desk:
        job_id = queue_job(desk.db, desk.spool, bundle)
        for hour in range(5):
            desk.now = lambda hour=hour: 1e10 + 3600.0 * hour  # type: ignore[misc]
            job = run(desk, job_id)
            assert (job["state"], job["attempts"]) == ("QUEUED", 0), job["reason"]
            assert job["not_before"] == desk.now() + room.REST_S
        assert "no space left" in job["reason"]


def test_no_reading_begins_without_room_and_the_log_says_so_once(
    tmp_path: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with desk_in(tmp_path) as desk:
        job_id = queue_job(desk.db, desk.spool, bundle)
        desk.room = room.Room(least=2**62)
        with caplog.at_level("INFO", logger="workers.room"):
            for _ in range(3):
                assert run(desk, job_id)["state"] == "QUEUED"
            assert len(run(desk, job_id)["history"]) == 1, "it was not even claimed"
            desk.room._least = 0
            assert run(desk, job_id)["state"] == "REPORTED"
        assert [(r.levelname, r.message.partition(":")[2]) for r in caplog.records if r.name == "workers.room"] == [
            ("ERROR", " readings wait, and no attempt counts. Free some space."),
            ("INFO", " readings go on."),
        ]


def test_a_lost_lease_ends_the_reading_and_discards_it(tmp_path: Path, bundle: Bundle) -> None:
    with desk_in(tmp_path, "hang", lease_s=0.3) as desk:
        job_id = queue_job(desk.db, desk.spool, bundle)
        thread = threading.Thread(target=tasks.read, args=(desk, job_id))
        thread.start()
        while not jobs.show(desk.db, job_id)["leased_by"]:
            time.sleep(0.01)
        with desk.db.transaction() as connection:  # as if the lease had lapsed and another worker had taken over
            connection.exec_driver_sql("UPDATE job SET leased_by = 'other', fence = fence + 1")
        thread.join(5)
        assert not thread.is_alive()
        job = jobs.show(desk.db, job_id)
        assert (job["state"], job["leased_by"], job["evidence"]) == ("RUNNING", "other", [])


def test_a_long_reading_keeps_its_lease(tmp_path: Path, bundle: Bundle) -> None:
    with desk_in(tmp_path, "slow", lease_s=0.6) as desk:
        job_id = queue_job(desk.db, desk.spool, bundle)
        thread = threading.Thread(target=tasks.read, args=(desk, job_id))
        thread.start()
        expired = 0
        while thread.is_alive():
            expired += jobs.expire(desk.db, clock.now())
            time.sleep(0.05)
        assert expired == 0
        assert jobs.show(desk.db, job_id)["state"] == "REPORTED"


def test_a_worker_that_stops_gives_the_job_back_without_counting_the_attempt(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "GRACE_S", 0.2)
    with desk_in(tmp_path, "hang") as desk:
        job_id = queue_job(desk.db, desk.spool, bundle)
        threading.Timer(0.5, desk.stopping.set).start()
        job = run(desk, job_id)
        assert (job["state"], job["attempts"], job["reason"]) == ("QUEUED", 0, "the worker was told to stop")
        assert run(desk, job_id)["state"] == "QUEUED"


def test_what_killed_workers_left_behind_goes_and_a_reading_in_hand_stays(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, job_timeout="10 s")
    assert tasks.sweep_scratch(settings, clock.now()) == 0
    left, in_hand = tmp_path / "reading" / "left", tmp_path / "reading" / "in hand"
    for folder in (left, in_hand):
        folder.mkdir(parents=True)
        (folder / "sr.dcm").write_bytes(b"x")
    os.utime(left, (0, 0))
    (tmp_path / "reading" / "gone").symlink_to(tmp_path / "swept by another")  # there when listed, gone when looked at
    assert tasks.sweep_scratch(settings, clock.now()) == 1
    assert (left.exists(), in_hand.exists()) == (False, True)


def test_a_fault_of_ours_ends_at_the_border(
    tmp_path: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with desk_in(tmp_path) as desk:
        job_id = queue_job(desk.db, desk.spool, bundle)
        monkeypatch.setattr(Desk, "spool", None, raising=False)
        monkeypatch.delattr(desk, "spool")
        tasks.read(desk, job_id)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert job_id in record.getMessage()


def test_the_app_has_the_two_tasks_and_no_other(tmp_path: Path) -> None:
    with desk_in(tmp_path) as desk:
        names = {name for name in app.make_app("memory://", desk).tasks if not name.startswith("celery.")}
    assert names == {"wetread.read", "wetread.send"}
