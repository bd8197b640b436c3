from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from node.assemble import assembler
from node.route import router
from node.settings import Routes, Settings
from node.store import completion, invariants, studies
from node.store.db import Database
from node.store.registration import Late
from node.store.spool import Spool
from tests.unit.headers import header, received

SETTINGS = Settings.model_validate({"completeness": {"quiet_period": "60 s", "max_wait": "10 min"}})


def test_a_quiet_study_becomes_complete_once_with_its_reason(database: Database, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 0)
    instance = received(spool, header(), at=1000)
    studies.register(database, [instance])
    assert assembler.tick(database, spool, SETTINGS, 1059) == 0
    assert assembler.tick(database, spool, SETTINGS, 1061) == 1
    assert assembler.tick(database, spool, SETTINGS, 1062) == 0
    study = studies.show(database, instance.study_instance_uid)
    assert (study["state"], study["revision"]) == ("COMPLETE", 1)
    assert study["reason"] == "no further instance for 61 s"


@pytest.mark.parametrize("late", ["reread", "ignore"])
def test_a_study_of_our_own_results_alone_comes_to_its_end_and_images_reopen_it(
    database: Database, tmp_path: Path, late: Late
) -> None:
    spool = Spool(tmp_path / "spool", 0)
    own, image = header(), header()
    image.StudyInstanceUID = uid = str(own.StudyInstanceUID)
    studies.register(database, [replace(received(spool, own, at=1000), is_own_result=True)], late)
    assert assembler.tick(database, spool, SETTINGS, 1059) == 0
    assert assembler.tick(database, spool, SETTINGS, 1061) == 1
    assert router.tick(database, spool, SETTINGS, Routes(), {}, lambda: 1062.0) == 1
    study = studies.show(database, uid)
    assert (study["state"], study["jobs"]) == ("DONE", [])
    assert "our own results" in study["reason"]
    assert completion.own_alone(database, 9999, 0) == [], "nobody looks at it any more"
    studies.register(database, [received(spool, image, at=2000)], late)
    assert assembler.tick(database, spool, SETTINGS, 2061) == 1
    assert [row.sop_instance_uid for row in studies.manifest(database, uid, 2)] == [image.SOPInstanceUID]
    assert invariants.check(database, spool, 2062) == []


def test_a_late_instance_makes_the_next_revision(database: Database, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 0)
    first = header()
    late = header(StudyInstanceUID=first.StudyInstanceUID)
    studies.register(database, [received(spool, first, at=1000)])
    assembler.tick(database, spool, SETTINGS, 1100)
    studies.register(database, [received(spool, late, at=2000)])
    assert assembler.tick(database, spool, SETTINGS, 2059) == 0
    assert assembler.tick(database, spool, SETTINGS, 2060) == 1
    assert studies.show(database, first.StudyInstanceUID)["revision"] == 2
    assert len(studies.manifest(database, first.StudyInstanceUID, 1)) == 1
    assert len(studies.manifest(database, first.StudyInstanceUID, 2)) == 2


def test_a_study_that_never_falls_quiet_is_taken_after_the_longest_wait(database: Database, tmp_path: Path) -> None:
    spool, study_uid = Spool(tmp_path / "spool", 0), header().StudyInstanceUID
    for at in range(0, 620, 20):
        studies.register(database, [received(spool, header(StudyInstanceUID=study_uid), at=1000 + at)])
        done = assembler.tick(database, spool, SETTINGS, 1000 + at)
        assert done == (1 if at == 600 else 0)
    assert "the longest wait is over" in studies.show(database, study_uid)["reason"]
