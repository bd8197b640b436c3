from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ComprehensiveSRStorage

from node import bundles
from node.bundles import Bundle
from node.route import router
from node.settings import Route, Routes, Settings
from node.store import jobs, studies
from node.store.db import Database
from node.store.spool import Spool
from node.study import scan
from tests.unit.headers import bundle, header, received, series_of, study_of

ROOT = Path(__file__).resolve().parent.parent.parent
BUNDLES: dict[str, Bundle] = {
    "brain": bundle("brain", series={"Modality": "MR"}),
    "chest": bundle("chest", dimensions=2, series={"Modality": "DX", "ViewPosition": {"not": "LL"}}),
}
ROUTES = Routes.model_validate(
    {
        "route": [
            {"name": "heads", "when": {"ModalitiesInStudy": "MR"}, "models": ["brain"], "send_to": ["pacs"]},
            {"name": "films", "when": {"Modality": "DX"}, "models": ["chest"], "send_to": ["pacs"], "results": ["SR"]},
        ]
    }
)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", 0)


def complete(db: Database, spool: Spool, *keywords: Mapping[str, object]) -> str:
    study_uid = str(header().StudyInstanceUID)
    studies.register(db, [received(spool, header(StudyInstanceUID=study_uid, **k)) for k in keywords])
    assert studies.complete(db, study_uid, 2000.0, "quiet") == 1
    return study_uid


def tick(db: Database, spool: Spool, routes: Routes = ROUTES) -> int:
    return router.tick(db, spool, Settings(), routes, BUNDLES, lambda: 3000.0)


def test_a_complete_study_becomes_its_jobs(database: Database, spool: Spool) -> None:
    slices = {"SeriesInstanceUID": "1.2.3.4", "SeriesDescription": "T1"}
    study_uid = complete(database, spool, slices, slices, {"SOPClassUID": ComprehensiveSRStorage, "Modality": "SR"})
    assert tick(database, spool) == 1
    assert tick(database, spool) == 0
    study = studies.show(database, study_uid)
    assert study["state"] == "ROUTED"
    assert study["reason"] == "brain reads MR T1 (1.2.3.4): Modality is MR"
    (job,) = study["jobs"]
    assert (job["bundle"], job["series_instance_uid"], job["revision"]) == ("brain", "1.2.3.4", 1)
    assert (job["bundle_digest"], job["route"]) == (BUNDLES["brain"].digest, "heads")
    assert (job["results"], job["send_to"], job["instances"]) == (("SR", "SEG", "SC"), ("pacs",), ())


def test_a_job_names_its_instances_where_it_does_not_read_the_whole_series(database: Database, spool: Spool) -> None:
    film = {"SeriesInstanceUID": "1.2.3.4", "Modality": "DX"}
    study_uid = complete(database, spool, film | {"ViewPosition": "PA"}, film | {"ViewPosition": "LL"})
    tick(database, spool)
    (job,) = studies.show(database, study_uid)["jobs"]
    rows = {row.sop_instance_uid: row for row in studies.manifest(database, study_uid, 1)}
    assert len(job["instances"]) == 1
    path = spool.path(rows[job["instances"][0]].path)
    assert b"PA" in path.read_bytes()


def test_without_a_route_the_study_is_done_and_says_why(database: Database, spool: Spool) -> None:
    study_uid = complete(database, spool, {"Modality": "CT"})
    assert tick(database, spool) == 1
    study = studies.show(database, study_uid)
    assert (study["state"], study["jobs"]) == ("DONE", [])
    assert "heads leaves the study: ModalitiesInStudy is CT, not MR" in study["reason"]
    assert "films leaves the study: Modality is CT, not DX" in study["reason"]


def test_a_study_waits_for_the_bundle_of_its_route_and_the_others_go_on(database: Database, spool: Spool) -> None:
    film, head = complete(database, spool, {"Modality": "DX"}), complete(database, spool, {})
    here, held = {"brain": BUNDLES["brain"]}, {}
    for routed in (1, 0):
        assert router.tick(database, spool, Settings(), ROUTES, here, lambda: 3000.0, held) == routed
    assert studies.show(database, head)["state"] == "ROUTED"
    waits = studies.show(database, film)
    assert waits["state"] == "COMPLETE"
    assert waits["reason"].startswith("waits for Model Bundle chest, which is not there")
    assert held == {(film, 1): frozenset({"chest"})}
    assert router.tick(database, spool, Settings(), ROUTES, BUNDLES, lambda: 3000.0, held) == 1
    assert [job["bundle"] for job in studies.show(database, film)["jobs"]] == ["chest"]
    assert held == {}


def test_two_routes_to_the_same_reading_make_one_job_for_both(database: Database, spool: Spool) -> None:
    twice = Routes.model_validate(
        {
            "route": [
                {"name": "a", "models": ["brain"], "send_to": ["pacs"], "results": ["SR"]},
                {"name": "b", "models": ["brain"], "send_to": ["research"], "results": ["SEG"]},
            ]
        }
    )
    study_uid = complete(database, spool, {})
    tick(database, spool, twice)
    (job,) = studies.show(database, study_uid)["jobs"]
    assert (job["route"], job["results"], job["send_to"]) == ("a, b", ("SR", "SEG"), ("pacs", "research"))


def test_one_study_that_cannot_be_read_is_done_and_the_next_is_routed(database: Database, spool: Spool) -> None:
    broken, good = complete(database, spool, {}), complete(database, spool, {})
    (row,) = studies.manifest(database, broken, 1)
    spool.path(row.path).unlink()
    assert tick(database, spool) == 2
    assert "is not a readable DICOM Part 10 file" in studies.show(database, broken)["reason"]
    assert len(studies.show(database, good)["jobs"]) == 1


def test_a_late_instance_gets_jobs_of_its_own_revision(database: Database, spool: Spool) -> None:
    study_uid = complete(database, spool, {"SeriesInstanceUID": "1.2.3.4"})
    tick(database, spool)
    late = header(StudyInstanceUID=study_uid, SeriesInstanceUID="1.2.3.4")
    studies.register(database, [received(spool, late, at=4000.0)])
    assert studies.complete(database, study_uid, 5000.0, "quiet") == 2
    assert tick(database, spool) == 1
    assert [job["revision"] for job in studies.show(database, study_uid)["jobs"]] == [1, 2]
    assert len(jobs.to_ring(database, 6000.0, 30.0)) == 2


def test_explain_tells_of_each_route_bundle_and_series(tmp_path: Path) -> None:
    film = series_of(tmp_path, 1, Modality="DX", ViewPosition="PA")
    lateral = series_of(tmp_path, 1, Modality="DX", ViewPosition="LL")
    decisions = router.explain(study_of(film, lateral), ROUTES, BUNDLES)
    told = [(d.route, d.bundle, d.series_instance_uid, d.read, d.reasons) for d in decisions]
    excluded = ("ViewPosition is LL, which is excluded (not LL)",)
    met = ("Modality is DX", "ViewPosition is PA")
    assert told == [
        ("heads", "", "", False, ("ModalitiesInStudy is DX, not MR",)),
        ("films", "chest", film.series_instance_uid, True, met),
        ("films", "chest", lateral.series_instance_uid, False, excluded),
    ]


def test_a_route_with_a_fault_is_told_and_does_not_stop_the_others(tmp_path: Path) -> None:
    faulty = Routes.model_validate(
        {
            "route": [
                {"name": "typo", "when": {"Modalty": "MR"}, "models": ["brain"], "send_to": []},
                {"name": "gone", "models": ["nowhere"], "send_to": []},
                {"name": "heads", "models": ["brain"], "send_to": []},
            ]
        }
    )
    decisions = router.explain(study_of(series_of(tmp_path, 2)), faulty, BUNDLES)
    assert [d.read for d in decisions] == [False, False, True]
    assert 'did you mean "Modality"?' in decisions[0].reasons[0]
    assert decisions[1].reasons == ('there is no Model Bundle "nowhere"; see `wetread models list`',)


def test_a_study_condition_sees_all_series_and_the_counts(tmp_path: Path) -> None:
    study = study_of(series_of(tmp_path, 2, Modality="MR"), series_of(tmp_path, 1, Modality="SR"))
    found = router.study_attributes(study)
    assert found["ModalitiesInStudy"] == ("MR", "SR")
    assert (found["NumberOfStudyRelatedSeries"], found["NumberOfStudyRelatedInstances"]) == ((2.0,), (3.0,))


@pytest.mark.parametrize(
    ("folder", "read"),
    [
        ("mr_brain_pgbm003_hippocrop", {("hippocampus", "MR HippoCrop")}),
        ("mr_brain_pgbm001_1991", set()),
        ("ct_head_ge_tilt28", set()),
        ("cxr/nih", {("chest_xray", "DX"), ("lung_fields", "DX")}),
        ("cxr/fuji_cr", {("chest_xray", "CR"), ("lung_fields", "CR")}),
    ],
)
def test_the_shipped_routes_read_what_the_shipped_bundles_are_for(
    shared_data: Path, folder: str, read: set[tuple[str, str]]
) -> None:
    routes = Routes.model_validate(tomllib.loads((ROOT / "config" / "routes.toml").read_text(encoding="utf-8")))
    shipped = {one.name: one for one in bundles.available()}
    studies_there, _ = scan(shared_data / "dicom" / folder)
    for study in studies_there:
        decisions = router.explain(study, routes, shipped)
        assert {(d.bundle, d.series) for d in decisions if d.read} == read
        assert all(d.reasons for d in decisions)


def test_a_volume_of_which_a_part_was_removed_is_left_and_says_so(database: Database, spool: Spool) -> None:
    study_uid = complete(database, spool, {"SeriesInstanceUID": "1.2.3.4"})
    tick(database, spool)
    with database.transaction() as connection:  # what retention notes
        connection.exec_driver_sql("UPDATE instance SET removed_at = 1, last_revision = 1")
    late = header(StudyInstanceUID=study_uid, SeriesInstanceUID="1.2.3.4")
    studies.register(database, [received(spool, late)])
    assert studies.complete(database, study_uid, 5000.0, "quiet") == 2
    tick(database, spool)
    study = studies.show(database, study_uid)
    assert [job["revision"] for job in study["jobs"]] == [1]
    assert "1 of its instances were removed by retention" in study["reason"]


@pytest.mark.parametrize(
    ("keywords", "asked", "expected"),
    [
        ({}, "routine", 0),
        ({}, "stat", 2),
        ({"RequestedProcedurePriority": "STAT"}, "routine", 2),
        ({"StudyPriorityID": "HIGH"}, "routine", 1),
        ({"StudyPriorityID": "LOW"}, "high", 1),
    ],
)
def test_the_images_or_the_route_say_how_urgent_a_study_is(
    tmp_path: Path, keywords: dict[str, str], asked: Any, expected: int
) -> None:
    study = study_of(series_of(tmp_path, 2, **keywords))
    route = Route(name="r", models=("one",), send_to=("pacs",), priority=asked)
    assert router.priority(study, route) == expected
