"""Retention: only what is delivered, confirmed and past its time goes; a crash between any two steps is understood."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from node import clock, uids
from node.accept.precheck import identify
from node.assemble.recover import recover
from node.settings import Destination, Settings, SpoolSettings
from node.store import deliveries, jobs, retention, studies
from node.store.db import Database, rows
from node.store.jobs import Document, NewJob
from node.store.spool import Spool
from tests.unit.headers import header, received, store

DAY = 86400.0
NOW = clock.now()
OLD = NOW - 100 * DAY


class House:
    """A node's database and spool, with a study of three images that was read 100 days ago."""

    def __init__(self, db: Database, folder: Path, commits: bool = False) -> None:
        self.db, self.spool = db, Spool(folder / "spool", 0)
        pacs = Destination.model_validate({"host": "h", "port": 104, "ae_title": "PACS", "commitment": commits})
        kept = SpoolSettings.model_validate({"keep_images": "7 d", "keep_results": "30 d"})
        self.settings = Settings(destination={"pacs": pacs}, spool=kept)
        self.uid, self.series = header().StudyInstanceUID, header().SeriesInstanceUID
        self.images = [self.image() for _ in range(3)]

    def image(self) -> Dataset:
        return header(StudyInstanceUID=self.uid, SeriesInstanceUID=self.series)

    def receive(self, *images: Dataset, at: float = OLD, late: Any = "reread") -> list[str]:
        found = [received(self.spool, image, at) for image in images]
        for row in found:
            os.utime(self.spool.path(row.path), (at, at))
        studies.register(self.db, found, late)
        return [row.path for row in found]

    def route(self, at: float = OLD) -> str:
        revision = studies.complete(self.db, self.uid, at, "quiet")
        assert revision is not None
        job = NewJob(self.uid, revision, self.series, "hippocampus", "1", "d", "head", ("SR",), ("pacs",))
        assert studies.routed(self.db, self.uid, revision, [job], "routed", at)
        return job.job_id

    def report(self, job_id: str, at: float = OLD) -> str:
        claimed = jobs.claim(self.db, job_id, "w", at)
        assert claimed is not None
        data = f"SR of {job_id}".encode()
        stored = self.spool.store_result(data)
        os.utime(self.spool.path(stored.path), (at, at))
        uid = uids.derive_uid(job_id)
        sr = Document("SR", "1.2.840.10008.5.1.4.1.1.88.34", uid, "2.25.7", stored.path, stored.sha256, stored.size)
        assert jobs.reported(self.db, claimed, "w", [sr], "", at)
        return stored.path

    def send(self, at: float = OLD) -> None:
        for delivery_id in deliveries.to_ring(self.db, at, 30):
            claimed = deliveries.claim(self.db, delivery_id, "w", at)
            assert claimed is not None
            assert deliveries.sent(self.db, claimed, "w", "0000", "", at)

    def settle(self, at: float = OLD) -> str:
        committing = [n for n, d in self.settings.destination.items() if d.commitment]
        studies.settle(self.db, at, committing)
        return str(studies.show(self.db, self.uid)["state"])

    def done(self) -> tuple[list[str], str]:
        images = self.receive(*self.images)
        result = self.report(self.route())
        self.send()
        assert self.settle() == "DONE"
        return images, result

    def tick(self, now: float = NOW, **limit: int) -> int:
        return retention.tick(self.db, self.spool, self.settings, now, **limit)

    def files(self) -> int:
        return len(list(self.spool.root.rglob("*.dcm")))

    def removed(self) -> int:
        with self.db.reader() as connection:
            return len(rows(connection, "SELECT 1 FROM instance WHERE removed_at IS NOT NULL"))


@pytest.fixture
def house(database: Database, tmp_path: Path) -> House:
    return House(database, tmp_path)


def test_what_is_delivered_and_past_its_time_goes_and_its_rows_stay(house: House) -> None:
    house.done()
    assert house.files() == 4
    assert house.tick() == 4
    assert house.files() == 0
    assert house.removed() == 3
    assert len(studies.manifest(house.db, house.uid, 1)) == 3
    (series,) = studies.show(house.db, house.uid)["series"]
    assert (series["instances"], series["removed"]) == (3, 3)
    assert house.tick() == 0
    report = recover(house.db, house.spool, identify)
    assert (report.registered, report.missing, report.swept) == (0, (), 0)


def test_nothing_goes_before_its_time(house: House) -> None:
    images, result = house.done()
    assert house.tick(OLD + 7 * DAY - 1) == 0
    assert house.tick(OLD + 7 * DAY) == 3
    assert not any(house.spool.path(path).exists() for path in images)
    assert house.tick(OLD + 30 * DAY - 1) == 0
    assert house.spool.path(result).exists()
    assert house.tick(OLD + 30 * DAY) == 1
    assert not house.spool.path(result).exists()


def test_what_waits_or_is_dead_stays(house: House) -> None:
    house.receive(*house.images)
    assert house.tick() == 0  # RECEIVING
    job = house.route()
    assert house.tick() == 0  # a job waits
    house.report(job)
    assert house.tick() == 0  # nothing was sent
    delivery = deliveries.claim(house.db, deliveries.to_ring(house.db, OLD, 30)[0], "w", OLD)
    assert delivery is not None
    deliveries.dead(house.db, delivery, "w", "0122", "refused", OLD)
    assert house.settle() == "FAILED"
    assert house.tick() == 0
    deliveries.drop(house.db, delivery.id, OLD)
    assert house.settle() == "DONE"
    assert house.tick() == 4


def test_a_destination_that_commits_has_to(database: Database, tmp_path: Path) -> None:
    house = House(database, tmp_path, commits=True)
    house.receive(*house.images)
    house.report(house.route())
    house.send()
    house.settle()
    assert house.tick() == 0  # SENT is not the end there
    (asked,) = deliveries.to_commit(house.db, "pacs")
    deliveries.committing(house.db, [asked.id], "2.25.9", OLD)
    assert house.tick() == 0
    deliveries.committed(house.db, "2.25.9", [asked.sop_instance_uid], {}, OLD)
    assert house.settle() == "DONE"
    assert house.tick() == 4


def test_a_job_of_an_earlier_revision_keeps_the_images(house: House) -> None:
    house.receive(*house.images)
    house.route()  # stays queued
    house.receive(house.image())
    house.report(house.route())
    house.send()
    assert house.settle() == "DONE"
    assert house.tick() == 0


def test_one_tick_deletes_a_bounded_number(house: House) -> None:
    house.done()
    assert [house.tick(limit=3), house.tick(limit=3), house.tick(limit=3)] == [3, 1, 0]
    assert house.files() == 0


def test_a_full_page_that_must_stay_does_not_hold_up_the_next(house: House) -> None:
    images, _ = house.done()
    for path in images[:2]:
        os.utime(house.spool.path(path))  # sent again yesterday, the same bytes
    assert house.tick(limit=2) == 2
    assert house.removed() == 1


def test_the_same_bytes_again_prolong_the_time(house: House) -> None:
    house.done()
    store(house.spool, house.images[0])
    assert house.tick() == 3
    assert house.removed() == 2
    assert house.tick(NOW + 8 * DAY) == 1


def test_our_own_result_of_a_study_we_never_had_goes(house: House) -> None:
    own = replace(received(house.spool, house.images[0], OLD), is_own_result=True)
    os.utime(house.spool.path(own.path), (OLD, OLD))
    studies.register(house.db, [own])
    assert house.tick() == 0
    assert studies.complete(house.db, house.uid, OLD, "our own results alone") == 1
    assert studies.routed(house.db, house.uid, 1, [], "nothing to read", OLD)
    assert house.tick() == 1


def test_a_removed_instance_that_comes_again_is_a_new_instance(house: House) -> None:
    house.done()
    house.tick()
    house.receive(*house.images, at=NOW)
    assert studies.show(house.db, house.uid)["state"] == "RECEIVING"
    assert studies.complete(house.db, house.uid, NOW, "quiet") == 2
    again = studies.manifest(house.db, house.uid, 2)
    assert len(again) == 3
    assert all(house.spool.verify(row.path, row.sha256) for row in again)
    assert studies.removed_before(house.db, house.uid, 2) == {}


def test_a_late_instance_after_the_removal_is_read_without_the_removed(house: House) -> None:
    house.done()
    house.tick()
    house.receive(house.image(), at=NOW)
    studies.complete(house.db, house.uid, NOW, "quiet")
    assert len(studies.manifest(house.db, house.uid, 2)) == 1
    assert studies.removed_before(house.db, house.uid, 2) == {house.series: 3}
    assert len(studies.manifest(house.db, house.uid, 1)) == 3


def test_where_late_instances_are_ignored_it_only_comes_back(house: House) -> None:
    house.done()
    frozen = studies.show(house.db, house.uid)["manifest_sha256"]
    house.tick()
    house.receive(*house.images, at=NOW, late="ignore")
    shown = studies.show(house.db, house.uid)
    assert (shown["state"], shown["revision"], house.removed()) == ("DONE", 1, 0)
    assert studies.manifest_sha256(studies.manifest(house.db, house.uid, 1)) == frozen
    assert house.tick(NOW + 8 * DAY) == 3


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("point", ["set_aside", "mark", "first discard"])
def test_a_crash_between_leaves_nothing_or_what_recovery_understands(
    house: House, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    images, _ = house.done()
    spool, crashes = house.spool, []

    def crash(*_: object) -> None:
        crashes.append(1)
        raise Crash

    with monkeypatch.context() as patch:
        if point == "set_aside":  # files are out of their places, no row says so
            patch.setattr(retention, "_mark", crash)
        elif point == "mark":  # the transaction is undone
            marking = retention._mark
            patch.setattr(retention, "_mark", lambda *a: (marking(*a), crash()))
        else:  # the rows say removed, the files are still set aside
            patch.setattr(Spool, "discard", crash)
        with pytest.raises(Crash):
            house.tick()
    assert crashes
    assert len(spool.aside()) == 3
    committed = house.removed()
    assert committed == (3 if point == "first discard" else 0)
    report = recover(house.db, Spool(spool.root, 0), identify)
    assert (report.registered, report.missing, spool.aside()) == (0, (), [])
    assert sum(spool.path(path).exists() for path in images) == 3 - committed
    assert studies.show(house.db, house.uid)["state"] == "DONE"
    assert house.tick() == 4 - committed
    assert house.files() == 0


def test_received_again_and_killed_before_the_row_it_is_still_there(house: House) -> None:
    house.done()
    house.tick()
    stored = store(house.spool, house.images[0])  # acknowledged; then the node was killed
    report = recover(house.db, house.spool, identify)
    assert report.registered == 1
    assert house.spool.verify(stored.path, stored.sha256)
    assert studies.show(house.db, house.uid)["state"] == "RECEIVING"


@pytest.mark.parametrize("registered", [False, True])
def test_received_again_while_it_is_being_removed_it_is_kept(
    house: House, monkeypatch: pytest.MonkeyPatch, registered: bool
) -> None:
    images, _ = house.done()
    again, marking = house.images[0], retention._mark

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(retention, "_mark", marking)
        store(house.spool, again)  # the door: its old file is set aside, so this is a new one
        return marking(*arguments)

    monkeypatch.setattr(retention, "_mark", meanwhile)
    house.tick()
    if registered:
        studies.register(house.db, [received(house.spool, again, NOW)])
    (path,) = [path for path in images if house.spool.path(path).exists()]
    assert house.removed() == 2
    assert house.spool.verify(path, Path(path).stem)
    assert house.spool.aside() == []


def test_a_study_reopened_while_it_is_being_removed_keeps_everything(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = house.done()
    set_aside = Spool.set_aside

    def meanwhile(spool: Spool, relatives: Any, before: float) -> list[str]:
        monkeypatch.setattr(Spool, "set_aside", set_aside)
        gone = set_aside(spool, relatives, before)
        house.receive(house.image(), at=NOW)
        return gone

    monkeypatch.setattr(Spool, "set_aside", meanwhile)
    assert house.tick() == 1  # the result of revision 1, long delivered
    assert all(house.spool.path(path).exists() for path in images)


def test_a_removed_sr_is_no_predecessor_and_the_same_document_can_be_filed_again(house: House) -> None:
    _, result = house.done()
    assert jobs.predecessors(house.db, house.uid, house.series, "hippocampus", 2) == [result]
    house.tick()
    assert jobs.predecessors(house.db, house.uid, house.series, "hippocampus", 2) == []


def test_a_result_that_no_job_reported_x_and_a_young_one_stays(house: House) -> None:
    _, result = house.done()
    old, young = house.spool.store_result(b"old"), house.spool.store_result(b"young")
    os.utime(house.spool.path(old.path), (OLD, OLD))
    assert recover(house.db, house.spool, identify).unreported == 1
    assert not house.spool.path(old.path).exists()
    assert house.spool.path(young.path).exists()
    assert house.spool.path(result).exists()
