"""The measuring scripts run, and find what must be so whatever the machine: everything stored, the same answer."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest

from tests import dcmtk
from tests.bench import completeness, ingest, limits, organs, reading, stages


@pytest.mark.skipif(dcmtk.find("storescu") is None, reason="DCMTK is absent (no storescu)")
def test_receivers_are_measured_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--rounds", "1", "--megabytes", "2", "--sizes", "64", "--associations", "2", "--folder", str(tmp_path)]
    ingest.main([*asked, "--warm-up", "5", "--receivers", "wetread", "dcmtk", "pynetdicom", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert [run["instances"] for run in told["runs"]] == [30] * 3
    assert [line["receiver"] for line in told["summary"]] == ["wetread", "dcmtk", "pynetdicom"]
    assert all(line["ratio"][0] > 0 for line in told["summary"])
    assert told["summary"][0]["cpu_s_per_gb"][0] > 0
    assert list(tmp_path.iterdir()) == []


def test_ratios_are_taken_within_a_round() -> None:
    case = ingest.Case(64, 1)
    seconds = {"wetread": (1.0, 2.0, 8.0), "dcmtk": (2.0, 4.0, 8.0)}
    runs = [ingest.Run(name, case, i, 10, 100.0, s, 0.5) for name, of in seconds.items() for i, s in enumerate(of)]
    ours, other = ingest.summarize(runs)
    assert ours.ratio == (1.0, 1.0, 1.0)
    assert other.ratio == (2.0, 1.0, 2.0)
    assert other.megabytes_per_s == (25.0, 12.5, 50.0)
    assert other.cpu_s_per_gb == (5.0, 5.0, 5.0)


def test_every_stage_of_an_instance_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    stages.main(["--sizes", "64", "--megabytes", "5"])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 5 + len(stages.BATCHES)
    assert all(line.startswith("64 KiB: ") for line in lines)


def test_both_ways_of_reading_agree(capsys: pytest.CaptureFixture[str]) -> None:
    reading.main(["--rounds", "1", "--cases", "hippocampus", "--json"])
    [pair] = json.loads(capsys.readouterr().out)
    assert (pair["differing_voxels"], pair["mean_dice"]) == (0, 1.0)
    assert all(pair[way][stage] > 0 for way in ("usual_s", "wetread_s") for stage in reading.STAGES)


def test_organs_are_drawn_learned_and_read_alike_in_both_ways(tmp_path: Path) -> None:
    shape, spacing_mm = (40, 48, 48), (1.6, 1.4, 1.4)
    bundle = organs.bundle(tmp_path / "bundle", shape, spacing_mm, steps=10)
    case = reading.Case("organs", bundle, organs.series(tmp_path / "ct", shape, spacing_mm))
    [pair] = reading.measure(case, rounds=1, warm_up=0, scratch=tmp_path)
    assert (pair.differing_voxels, pair.mean_dice) == (0, 1.0)
    [written] = pydicom.dcmread(tmp_path / "1.dcm").SegmentSequence[:1]
    assert written.SegmentLabel == "Organ 1"


def test_limits_of_a_node_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--instances", "1000", "--per-association", "4", "--large-mb", "32", "--study", "100"]
    limits.main([*small, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["listener_mb"]["rest"] <= found["listener_mb"]["eight"] < 300
    assert found["listener_mb"]["large_adds"] < 64
    assert found["archive_s"]["page_s"] < 1


def test_a_study_with_full_evidence_is_queued_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    completeness.main(["--studies", "2", "--slices", "16", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert 0.5 <= found["median_s"] <= found["worst_s"] < 10, "long before the quiet period of 60 s"
