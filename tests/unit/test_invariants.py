"""The checker: a node's state is clean through the life of a study; an invariant broken on purpose is named."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from node import clock, uids
from node.errors import Permanent
from node.store import deliveries, invariants, jobs, studies
from node.store.db import Database
from node.store.invariants import Finding
from node.store.jobs import Document
from node.store.spool import Spool, dataset_sha256
from tests.unit.headers import header, part10, received, store
from tests.unit.test_retention import OLD, House

SR_CLASS = "1.2.840.10008.5.1.4.1.1.88.34"
NOW = clock.now()


class Ward(House):
    """A node with real Evidence Documents, and the checker at hand."""

    def sr(self, **changes: Any) -> Dataset:
        ds = header(SOPClassUID=SR_CLASS, StudyInstanceUID=self.uid, Modality="SR", VerificationFlag="UNVERIFIED")
        reference = Dataset()
        reference.ReferencedSOPInstanceUID = self.images[0].SOPInstanceUID
        ds.ContentSequence = [reference]
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
        return ds

    def report(self, job_id: str, at: float = OLD, ds: Dataset | None = None) -> str:
        claimed = jobs.claim(self.db, job_id, "w", at)
        assert claimed is not None
        ds = ds or self.sr()
        stored = self.spool.store_result(part10(ds, "WETREAD"))
        row = (ds.SOPInstanceUID, ds.SeriesInstanceUID, stored.path, stored.sha256, stored.size)
        assert jobs.reported(self.db, claimed, "w", [Document("SR", SR_CLASS, *row)], "", at)
        return stored.path

    def check(self, now: float = NOW, **options: Any) -> list[Finding]:
        return invariants.check(self.db, self.spool, now, **options)

    def says(self, **options: Any) -> list[tuple[str, str]]:
        return [(finding.invariant, finding.what) for finding in self.check(**options)]

    def write(self, *statements: str) -> None:
        """Change the database behind the node's back."""
        with self.db.transaction() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)


@pytest.fixture
def ward(database: Database, tmp_path: Path) -> Ward:
    return Ward(database, tmp_path, commits=True)


def test_a_state_is_clean_through_the_whole_life_of_a_study(ward: Ward) -> None:
    assert ward.check() == []
    ward.receive(*ward.images)
    assert ward.check() == []
    job = ward.route()
    claimed = jobs.claim(ward.db, job, "w", OLD)
    assert claimed is not None
    assert ward.check(now=OLD) == []
    jobs.failed(ward.db, claimed, "w", "no memory", OLD, transient=True)
    ward.report(job, at=OLD + 60)
    assert ward.check() == []
    ward.send(at=OLD + 60)
    (asked,) = deliveries.to_commit(ward.db, "pacs")
    deliveries.committing(ward.db, [asked.id], "2.25.9", OLD + 60)
    deliveries.committed(ward.db, "2.25.9", [asked.sop_instance_uid], {}, OLD + 60)
    assert ward.settle() == "DONE"
    assert ward.check() == []
    ward.receive(ward.image(), header(SOPInstanceUID=ward.images[0].SOPInstanceUID, StudyInstanceUID=ward.uid))
    assert ward.check() == []  # late, and one with other bytes under a known UID
    other = ward.route()
    jobs.unsuitable(ward.db, jobs.claim(ward.db, other, "w", OLD), "w", "gap", OLD)  # type: ignore[arg-type]
    assert ward.settle() == "DONE"
    assert ward.check() == []
    os.utime(ward.spool.path(jobs.show(ward.db, job)["evidence"][0]["path"]), (OLD, OLD))
    assert ward.tick() == 6
    assert ward.check() == []
    ward.receive(*ward.images, at=NOW)
    assert ward.check() == []


def test_i1_what_was_acknowledged_is_there(ward: Ward, tmp_path: Path) -> None:
    rows = [received(ward.spool, image, OLD) for image in ward.images]
    studies.register(ward.db, rows[:2])  # the third is durable and waits for the index
    sent = [{"sop_instance_uid": r.sop_instance_uid, "sha256": r.sha256, "status": 0} for r in rows]
    refused = {"sop_instance_uid": "1.2.3", "sha256": "a" * 64, "status": 0xA700}
    unanswered = {"sop_instance_uid": "1.2.4", "sha256": "b" * 64, "status": None}
    ledger = tmp_path / "sent.jsonl"
    ledger.write_text("".join(json.dumps(e) + "\n" for e in (*sent, refused, unanswered)) + '{"cut of')
    assert ward.check(sent=ledger) == []
    with ledger.open("w") as file:
        for entry in (*sent[:2], {"sop_instance_uid": "1.2.5", "sha256": "c" * 64, "status": 0xB000}):
            file.write(json.dumps(entry) + "\n")
    assert ward.says(sent=ledger) == [("I1", "data set cccccccccccc was acknowledged and is not there")]
    ledger.write_text(json.dumps(sent[0]) + "\n")
    ((invariant, what),) = ward.says(sent=ledger)
    assert (invariant, what) == ("I2", f"data set {rows[1].sha256[:12]} is there and the ledger does not have it")
    ledger.write_text("no ledger\n")
    with pytest.raises(Permanent, match=r"sent\.jsonl:1"):
        ward.check(sent=ledger)


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (
            (
                "INSERT INTO job (id, study_instance_uid, revision, series_instance_uid, bundle, bundle_version, "
                "bundle_digest, route, results, send_to, state, created_at, updated_at) SELECT 'x', "
                "study_instance_uid, revision, series_instance_uid, bundle, '2', "
                "bundle_digest, route, results, send_to, 'QUEUED', 1, 1 "
                "FROM job",
            ),
            {("I3", "2 jobs of revision 1"), ("I3", "its id does not belong"), ("I9", "no history")},
        ),
        (("UPDATE job SET leased_until = 1",), {("I3", "holds it though its lease ran out")}),
        (("UPDATE job SET state = 'QUEUED'",), {("I3", "still held by w"), ("I9", "history ends with RUNNING")}),
        (("UPDATE job SET fence = 7",), {("I9", "its fence is 7 after 1 claims with the fences 1")}),
        (
            ("UPDATE event SET reason = 'claimed by w, attempt 1, fence 2' WHERE entity = 'job' AND number = 2",),
            {("I9", "its fence is 1 after 1 claims with the fences 2")},
        ),
        (("DELETE FROM event WHERE entity = 'job' AND number = 1",), {("I9", "event 1 is missing")}),
        (
            ("UPDATE event SET to_state = 'REPORTED' WHERE entity = 'job' AND number = 2",),
            {("I9", "event 2, QUEUED → REPORTED, is no legal move from QUEUED")},
        ),
        (
            ("INSERT INTO event (entity, entity_id, number, at, from_state, to_state) "
             "VALUES ('delivery', 'gone', 1, 1, '', 'PENDING')",),
            {("I9", "it has a history and no row")},
        ),
        (("UPDATE study SET state = 'ASLEEP'",), {("I9", "ASLEEP is no state"), ("I9", "history ends with ROUTED")}),
        (("UPDATE study SET revision = 0",), {("I3", "not reached"), ("I3", "has no job"), ("I5", "not those")}),
        (
            ("UPDATE study SET state = 'DONE'",),
            {("I3", "it is RUNNING though its study is DONE"), ("I9", "history ends with ROUTED")},
        ),
        (("UPDATE instance SET revision = 9 WHERE size > 0",), {("I5", "not those that were read")}),
        (("UPDATE instance SET removed_at = 1",), {("I7", "contradict"), ("I7", "the database does not know it")}),
        (
            ("INSERT INTO evidence (sop_instance_uid, job_id, kind, sop_class_uid, series_instance_uid, path, sha256, "
             "size, created_at) SELECT '2.25.1', id, 'SR', '1', '1', '../../etc/passwd', 'a', 1, 1 FROM job",),
            {("I4", "its job is RUNNING"), ("I4", "no delivery to pacs"), ("I7", "is not the name of a file"),
             ("I5", "not readable")},
        ),
    ],
)  # fmt: skip
def test_rows_that_contradict_each_other_are_named(
    ward: Ward, statements: tuple[str, ...], expected: set[tuple[str, str]]
) -> None:
    ward.receive(*ward.images)
    assert jobs.claim(ward.db, ward.route(), "w", NOW) is not None
    assert ward.check() == []
    ward.write(*statements)
    found = ward.says()
    unnamed = {(i, part) for i, part in expected if not any(i == f and part in what for f, what in found)}
    assert not unnamed, found
    unexpected = [(f, what) for f, what in found if not any(i == f and part in what for i, part in expected)]
    assert not unexpected


def test_a_second_data_set_that_nothing_noted_is_named(ward: Ward) -> None:
    ward.receive(ward.images[0])
    ward.receive(header(SOPInstanceUID=ward.images[0].SOPInstanceUID, StudyInstanceUID=ward.uid))
    assert ward.check() == []
    ward.write("DELETE FROM event WHERE entity = 'instance'")
    assert ward.says() == [("I1", "2 different data sets came under this UID, which nothing has noted")]


@pytest.mark.parametrize("kind", ["instance", "evidence"])
def test_i7_every_row_has_its_file(ward: Ward, kind: str) -> None:
    images = ward.receive(*ward.images)
    result = ward.report(ward.route())
    path = ward.spool.path(images[0] if kind == "instance" else result)
    whole = path.read_bytes()
    changed = [bytes([whole[-1] ^ 1]), whole[-1:] + b"more"]
    path.write_bytes(whole[:-1] + changed[0])
    first = ward.says()
    assert first[0][0] == "I7"
    assert "does not hold the bytes" in first[0][1]
    assert ward.check(quick=True) == []
    path.write_bytes(whole[:-1] + changed[1])
    assert f"has {len(whole) + 4} bytes instead of {len(whole)}" in ward.says()[0][1]
    path.unlink()
    (finding,) = ward.check()
    assert finding.entity.startswith(kind)
    assert "is missing" in finding.what


def test_i7_every_file_has_its_row_and_nothing_is_left_behind(ward: Ward) -> None:
    now = clock.now()  # files carry the time of the disk; the module may have been imported long ago
    stored, result = store(ward.spool, header()), ward.spool.store_result(b"result")
    half = ward.spool.root / "tmp" / "half.part"
    half.write_bytes(b"half")
    assert ward.check(now) == []  # just stored, just being written
    assert {f.entity for f in ward.check(now=now + 120)} == {stored.path}
    later = {f.entity for f in ward.check(now=now + 7200)}
    assert later == {stored.path, result.path, "tmp/half.part"}
    ward.spool.set_aside([stored.path], now + 60)
    assert f"removing/instances-{stored.sha256}.dcm" in {f.entity for f in ward.check(now=now + 7200)}
    (ward.spool.root / "quarantine").mkdir()
    (ward.spool.root / "quarantine" / "x.dcm").write_bytes(b"x")
    assert "quarantine/x.dcm" in {f.entity for f in ward.check()}


def test_what_retention_has_in_hand_is_no_fault(ward: Ward) -> None:
    images = ward.receive(*ward.images)
    ward.spool.set_aside(images, NOW)
    assert ward.check() == []
    ward.spool.put_back(images[0])
    ward.spool.discard(images[1])
    assert [finding.invariant for finding in ward.check()] == ["I7"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"VerificationFlag": "VERIFIED"}, "VerificationFlag"),
        ({"StudyInstanceUID": "1.2.3"}, "StudyInstanceUID"),
        ({"ReferencedSOPInstanceUID": "1.2.3.4"}, "it refers to 1.2.3.4"),
    ],
)
def test_i5_what_a_document_says_of_itself(ward: Ward, changes: dict[str, str], expected: str) -> None:
    ward.receive(*ward.images)
    ward.report(ward.route(), ds=ward.sr(**changes))
    ((invariant, what),) = ward.says()
    assert invariant == "I5"
    assert expected in what


def test_i4_an_archive_got_what_was_filed_and_nothing_else(ward: Ward, tmp_path: Path) -> None:
    ward.receive(*ward.images)
    path = ward.spool.path(ward.report(ward.route()))
    data = path.read_bytes()
    good = {"sop_instance_uid": pydicom.dcmread(path).SOPInstanceUID, "sha256": dataset_sha256(path), "status": 0}
    good["calling_ae"] = "WETREAD"
    ledger = tmp_path / "ledger.jsonl"

    def says(*entries: dict[str, Any]) -> list[tuple[str, str]]:
        ledger.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return ward.says(archive=ledger, ae_title="WETREAD")

    assert says(good, good, {**good, "sop_instance_uid": "1.2", "calling_ae": "CT1"}) == []
    assert says(good, {**good, "sha256": "f" * 64})[0] == ("I4", "the archive got 2 different data sets under this UID")
    assert says({**good, "sha256": "f" * 64}) == [("I4", "the archive got other bytes than were filed")]
    assert says({**good, "sop_instance_uid": "1.2"}) == [("I4", "the archive got it and no job reported it")]
    assert path.read_bytes() == data


def test_i11_the_database_is_sound(tmp_path: Path) -> None:
    ward = Ward(Database(f"sqlite:///{tmp_path}/wetread.db"), tmp_path)
    ward.receive(*ward.images)
    with sqlite3.connect(tmp_path / "wetread.db") as behind:
        behind.execute(f"DELETE FROM study WHERE study_instance_uid = '{ward.uid}'")  # noqa: S608 - our own
    assert ("I11", "row 1 of instance names a study that is not there") in ward.says()


def test_ids_are_those_that_the_store_makes(ward: Ward) -> None:
    ward.receive(*ward.images)
    ward.report(ward.route())
    (delivery,) = deliveries.listing(ward.db)
    assert delivery["id"] == uids.derive_id("delivery", delivery["sop_instance_uid"], "pacs")


def test_an_empty_spool_beside_a_full_database_is_told_in_full(ward: Ward, tmp_path: Path) -> None:
    ward.receive(*ward.images)
    elsewhere = Spool(tmp_path / "other" / "spool", 0)
    found = invariants.check(ward.db, elsewhere, NOW)
    assert [finding.invariant for finding in found] == ["I7"] * 3
