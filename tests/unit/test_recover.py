from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from node.accept.filemeta import part10_header
from node.accept.precheck import identify, inspect
from node.accept.receive import Arrival
from node.assemble.recover import recover
from node.errors import Unsuitable
from node.store import studies
from node.store.db import Database
from node.store.spool import Spool, dataset_offset, digest
from node.study import read_instance
from tests.unit.headers import header, received, store


def test_an_instance_that_only_the_spool_knows_is_registered_again(database: Database, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 0)
    known, lost = header(), header()
    studies.register(database, [received(spool, known)])
    stored = store(spool, lost)
    report = recover(database, spool, identify)
    assert (report.registered, report.quarantined, report.missing) == (1, (), ())
    (row,) = studies.manifest(database, lost.StudyInstanceUID, 1)
    assert (row.sop_instance_uid, row.series_instance_uid) == (lost.SOPInstanceUID, lost.SeriesInstanceUID)
    assert (row.path, row.sha256, row.size) == (stored.path, stored.sha256, stored.size)
    assert abs(row.received_at - time.time()) < 60
    assert recover(database, spool, identify).registered == 0


def test_the_calling_ae_comes_from_the_file(database: Database, tmp_path: Path) -> None:
    spool, lost = Spool(tmp_path / "spool", 0), header()
    store(spool, lost)
    recover(database, spool, identify)
    (event,) = studies.show(database, lost.StudyInstanceUID)["history"]
    assert event["reason"] == "first instance from SCANNER"


def test_a_damaged_file_goes_to_quarantine_and_is_named(database: Database, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 0)
    stored = store(spool, header())
    path = spool.path(stored.path)
    damaged = path.read_bytes()[:-1] + b"\xff"
    path.write_bytes(damaged)
    report = recover(database, spool, identify)
    assert report.quarantined == (stored.path,)
    assert report.registered == 0
    assert not path.exists()
    assert (spool.root / "quarantine" / path.name).read_bytes() == damaged


@pytest.mark.parametrize(
    "odd",
    [
        b"\x08\x00\x05\x00CS\x08\x00GB\x00 8030",  # a Specific Character Set that pydicom cannot look up
        b"\x08\x00\x05\x00ZZ\x00\x00\x02\x00\x00\x00ab",  # a VR of the future (PS3.5 §7.1.2)
        b"\x08\x00\x05\x00SL\x03\x001\\2",
    ],
)
def test_what_the_door_took_is_registered_though_other_readers_stumble_over_it(
    database: Database, tmp_path: Path, odd: bytes
) -> None:
    spool, ds = Spool(tmp_path / "spool", 0), header()
    plain = spool.path(store(spool, ds).path)
    dataset = odd + plain.read_bytes()[dataset_offset(plain.read_bytes()) :]
    plain.unlink()
    arrival = Arrival(ds.SOPClassUID, ds.SOPInstanceUID, ExplicitVRLittleEndian, "SCANNER")
    taken = inspect(dataset, arrival.transfer_syntax_uid, arrival.sop_class_uid, arrival.sop_instance_uid)
    spool.store_instance(part10_header(taken, arrival), dataset, digest(dataset))
    with pytest.raises(Unsuitable):
        read_instance(next(spool.instances()))
    report = recover(database, spool, identify)
    assert (report.registered, report.quarantined) == (1, ())
    (row,) = studies.manifest(database, ds.StudyInstanceUID, 1)
    assert (row.sop_instance_uid, row.series_instance_uid) == (ds.SOPInstanceUID, ds.SeriesInstanceUID)
    assert row.transfer_syntax_uid == ExplicitVRLittleEndian


def test_a_file_that_is_no_dicom_goes_to_quarantine(database: Database, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 0)
    dataset = b"no data set at all"
    stored = spool.store_instance(b"\0" * 128 + b"DICM\x02\0\0\0UL\x04\0\0\0\0\0", dataset, digest(dataset))
    assert recover(database, spool, identify).quarantined == (stored.path,)


def test_a_file_that_went_missing_is_named(database: Database, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 0)
    row = received(spool, header())
    studies.register(database, [row])
    spool.path(row.path).unlink()
    assert recover(database, spool, identify).missing == (row.path,)


def test_stray_temporary_files_go_and_young_ones_stay(database: Database, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 0)
    old, young = (spool.root / "tmp" / name for name in ("old.part", "young.part"))
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (time.time() - 86400, time.time() - 86400))
    assert recover(database, spool, identify).swept == 1
    assert (old.exists(), young.exists()) == (False, True)


def test_a_lost_database_is_made_anew_from_the_spool(database: Database, tmp_path: Path) -> None:
    spool, study_uid = Spool(tmp_path / "spool", 0), header().StudyInstanceUID
    for _ in range(20):
        store(spool, header(StudyInstanceUID=study_uid))
    assert recover(database, spool, identify).registered == 20
    assert len(studies.manifest(database, study_uid, 1)) == 20


def test_a_spool_of_an_earlier_version_is_moved_one_folder_up(database_url: str, tmp_path: Path) -> None:
    spool, ds, db = Spool(tmp_path / "spool", 0), header(), Database(database_url)
    studies.register(db, [received(spool, ds)])
    result = spool.store_result(b"a result")
    with db.transaction() as connection:
        for table in ("instance", "evidence"):
            deeper = "substr(path, 1, length(path) - 68) || substr(path, length(path) - 65, 2) || '/' "
            connection.exec_driver_sql(f"UPDATE {table} SET path = {deeper} || substr(path, length(path) - 67)")  # noqa: S608
        connection.exec_driver_sql("UPDATE schema_version SET version = 3")
    db.close()
    for path in [*spool.instances(), *spool.results()]:
        inner = path.parent / path.name[2:4]
        inner.mkdir()
        path.rename(inner / path.name)
    assert not [*spool.instances(), *spool.results()]

    for _ in range(2):  # and starting again changes nothing
        db = Database(database_url)
        report = recover(db, spool, identify)
        (row,) = studies.manifest(db, ds.StudyInstanceUID, 1)
        assert (report.registered, report.quarantined, report.missing) == (0, (), ())
        assert spool.verify(row.path, row.sha256)
        assert spool.verify(result.path, result.sha256)
        assert not [path for kind in ("instances", "results") for path in (spool.root / kind).glob("*/??")]
        db.close()
