"""Stages 4 to 6 in one call: what is written, what is refused, and that the same request gives the same bytes."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydicom
import pytest

from node.bundles import SHIPPED, Bundle
from node.bundles import load as load_bundle
from node.clock import to_datetime
from node.codes import AREA, PIXELS, Code
from node.findings import Algorithm, Finding, Measurement, Reading, Segment, Segmentation, Source
from tests.unit.phantom import LAYER, SPOT, body, bright_spot, film, save, segmenter, stack
from workers import pipeline
from workers.pipeline import Outcome, Request, read, summary


def request(bundle: Bundle, files: list[Path], out: Path, **changes: Any) -> Request:
    first = pydicom.dcmread(files[0], stop_before_pixels=True)
    asked = Request(
        job_id="7",
        study_instance_uid=first.StudyInstanceUID,
        series_instance_uid=first.SeriesInstanceUID,
        revision=1,
        files=tuple(map(str, files)),
        bundle=str(bundle.folder),
        digest=bundle.digest,
        results=("SR", "SEG", "SC"),
        out=str(out),
        device="cpu",
        key="0" * 64,
        started=1_700_000_000.0,
    )
    return dataclasses.replace(asked, **changes)


@pytest.fixture
def asked(tmp_path: Path) -> Request:
    return request(segmenter(tmp_path / "phantom"), save(stack(body()), tmp_path / "in"), tmp_path / "out")


def test_a_series_becomes_evidence_documents(asked: Request) -> None:
    outcome = read(asked)
    assert (outcome.kind, outcome.reason) == ("reported", "")
    assert outcome.summary == "Part 1: 0.294 mL; Part 2: absent"
    assert {document["kind"] for document in outcome.documents} == {"SR", "SEG", "SC"}
    for document in outcome.documents:
        ds = pydicom.dcmread(document["file"], stop_before_pixels=True)
        assert ds.SOPClassUID == document["sop_class_uid"]
        assert ds.SOPInstanceUID == document["sop_instance_uid"]
        assert ds.SeriesInstanceUID == document["series_instance_uid"]
        assert ds.StudyInstanceUID == asked.study_instance_uid
    assert len(list(Path(asked.out).iterdir())) == len(outcome.documents)


def test_a_disk_that_is_full_is_told_apart_from_other_faults_of_files(asked: Request) -> None:
    out = Path(asked.out)
    out.mkdir()
    for number, kind in itertools.product((1, 2, 3), ("SR", "SEG", "SC")):
        (out / f"phantom-{number}-{kind}.dcm").symlink_to("/dev/full")
    outcome = read(asked)
    assert (outcome.kind, outcome.transient, outcome.is_full) == ("failed", True, True), outcome.reason
    gone = read(dataclasses.replace(asked, out=str(out / "phantom-1-SR.dcm" / "x")))
    assert (gone.kind, gone.transient, gone.is_full) == ("failed", True, False), gone.reason


def test_the_same_request_gives_the_same_bytes(asked: Request, tmp_path: Path) -> None:
    one = read(asked)
    two = read(dataclasses.replace(asked, out=str(tmp_path / "again")))
    assert [d["sop_instance_uid"] for d in one.documents] == [d["sop_instance_uid"] for d in two.documents]
    for first, second in zip(one.documents, two.documents, strict=True):
        assert Path(first["file"]).read_bytes() == Path(second["file"]).read_bytes()


def test_a_saliency_map_is_made_only_for_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, files = bright_spot(tmp_path / "phantom", LAYER), save([film(SPOT)], tmp_path / "in")
    asked = request(bundle, files, tmp_path / "map", results=("SALIENCY", "SR"))
    outcome = read(asked)
    assert [document["kind"] for document in outcome.documents] == ["SALIENCY", "SR"]
    assert outcome.figures["explain_s"] > 0
    again = read(dataclasses.replace(asked, out=str(tmp_path / "again")))
    for one, two in zip(outcome.documents, again.documents, strict=True):
        assert Path(one["file"]).read_bytes() == Path(two["file"]).read_bytes()
    monkeypatch.setattr("workers.predict.explain.explain", None)
    plain = read(request(bundle, files, tmp_path / "plain"))
    assert {document["kind"] for document in plain.documents} == {"SR", "SC"}
    assert "explain_s" not in plain.figures


def test_unsuitable_input_is_an_outcome_and_leaves_no_file(asked: Request, tmp_path: Path) -> None:
    files = (*asked.files[:5], *asked.files[7:])
    outcome = read(dataclasses.replace(asked, files=files))
    assert outcome.kind == "unsuitable"
    assert outcome.reason == (
        "Series 1.2.3.4 was not read by phantom 1.0.0: 2 slices are missing between z = 11.0 mm and z = 14.0 mm."
    )
    assert not Path(asked.out).exists()


def test_a_changed_bundle_fails_for_good(asked: Request) -> None:
    outcome = read(dataclasses.replace(asked, digest="f" * 64))
    assert (outcome.kind, outcome.transient) == ("failed", False)
    assert "Bundle phantom 1.0.0 has changed" in outcome.reason


def test_a_bundle_that_is_gone_fails_for_good(asked: Request, tmp_path: Path) -> None:
    outcome = read(dataclasses.replace(asked, bundle=str(tmp_path / "gone")))
    assert (outcome.kind, outcome.transient) == ("failed", False)


def test_a_file_that_is_gone_may_come_back(asked: Request, tmp_path: Path) -> None:
    outcome = read(dataclasses.replace(asked, files=(str(tmp_path / "gone.dcm"),)))
    assert (outcome.kind, outcome.transient) == ("failed", True)
    assert "gone.dcm" in outcome.reason


def test_nothing_is_written_when_the_gate_says_no(asked: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    from node.errors import NonConformant
    from workers.report import gate

    def refuse(*args: Any) -> None:
        raise NonConformant("rule 11: SRT")

    monkeypatch.setattr(gate, "check", refuse)
    outcome = read(asked)
    assert (outcome.kind, outcome.transient, outcome.reason) == ("failed", False, "rule 11: SRT")
    assert not Path(asked.out).exists()


def test_a_network_stays_warm_until_its_bundle_changes(asked: Request, tmp_path: Path) -> None:
    pipeline._warm.cache_clear()
    read(asked)
    read(asked)
    other = segmenter(tmp_path / "other")
    read(dataclasses.replace(asked, bundle=str(other.folder), digest=other.digest))
    assert (pipeline._warm.cache_info().hits, pipeline._warm.cache_info().misses) == (1, 2)


def test_requests_and_outcomes_travel_as_json(asked: Request) -> None:
    assert Request.from_json(asked.to_json()) == asked
    outcome = Outcome("reported", "", False, "Part 1: 2 ml", ({"kind": "SR", "file": "a.dcm"},))
    assert Outcome.from_json(outcome.to_json()) == outcome
    assert "\n" not in asked.to_json() + outcome.to_json()


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"job_id": 1}', "null"])
def test_what_is_no_request_is_refused(line: str) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        Request.from_json(line)
    with pytest.raises((ValueError, TypeError, KeyError)):
        Outcome.from_json(line)


def test_the_supervisor_imports_request_and_outcome_without_torch() -> None:
    code = "import sys, workers.pipeline; print(sorted({'torch', 'monai', 'highdicom', 'pydicom'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SHIPPED.parent)
    assert done.stdout.strip() == "[]"


def test_the_summary_of_findings_and_films() -> None:
    lung = Code("39607008", "SCT", "Lung")
    named = Algorithm("x", "1", "X", "wetread", "2.25.1", "0")
    here = Source("1.2")
    found = Finding("Abnormal", lung, None, 0.914, 0.5, True, here)
    score = Finding("Odd", lung, None, 0.25, 0.5, False, here)
    part = Segment(1, "Lung fields", lung, lung, None, "#ffffff", (Measurement(AREA, 123456.0, PIXELS),))
    maps = (Segmentation(None, (here,), (part,)),)  # type: ignore[arg-type]
    reading = Reading(named, to_datetime(0), (found, score), maps)
    assert summary(reading) == "Abnormal: present (91.4%); Odd: absent (score 0.25); Lung fields: 123,456 pixels"
    assert len(summary(Reading(named, to_datetime(0), (found,) * 100))) == 500


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("hippocampus", "mr_brain_pgbm003_hippocrop/11_HCropVolume"),
        ("lung_fields", "cxr/nih"),
        ("chest_xray", "cxr/nih"),
        ("chest_xray", "cxr/philips_cr"),
        ("lung_fields", "cxr/fuji_cr"),
    ],
)
def test_the_shipped_bundles_read_real_series(name: str, folder: str, shared_data: Path, tmp_path: Path) -> None:
    files = sorted((shared_data / "dicom" / folder).glob("*.dcm"))[: 1 if name != "hippocampus" else None]
    outcome = read(request(load_bundle(SHIPPED / name), files, tmp_path / "out"))
    assert outcome.kind == "reported", outcome.reason
    assert "SR" in {document["kind"] for document in outcome.documents}
