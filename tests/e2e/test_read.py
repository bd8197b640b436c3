"""`wetread read`: a folder of DICOM in, objects out; or status 3, the reason, and no file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydicom
import pytest

ROOT = Path(__file__).resolve().parents[2]


def read(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node.cli", "read", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def out(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A study with one series for the hippocampus, read: the folder, and what was said."""
    folder = tmp_path_factory.mktemp("read") / "out"
    study = shared_data / "dicom" / "mr_brain_pgbm003_hippocrop"
    done = read(study, "--model", "hippocampus", "--out", folder, "--json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_one_series_of_five_is_read(out: tuple[Path, dict[str, Any]]) -> None:
    folder, found = out
    (reading,) = found["readings"]
    assert len([line for line in found["left_out"] if "Rows is" in line]) == 4
    files = {d["kind"]: Path(d["file"]) for d in reading["documents"]}
    assert {p.name for p in folder.iterdir()} == {p.name for p in files.values()}
    for path in files.values():
        ds = pydicom.dcmread(path)
        assert ds.StudyInstanceUID == reading["study_instance_uid"]
    assert pydicom.dcmread(files["SEG"]).SegmentSequence[0].SegmentLabel == "Anterior hippocampus"


def test_the_same_again_has_the_same_uids(out: tuple[Path, dict[str, Any]], shared_data: Path, tmp_path: Path) -> None:
    study = shared_data / "dicom" / "mr_brain_pgbm003_hippocrop"
    assert read(study, "--model", "hippocampus", "--out", tmp_path / "two", "--results", "SR,SEG").returncode == 0
    again = sorted(p.name for p in (tmp_path / "two").iterdir())
    (reading,) = out[1]["readings"]
    assert again == sorted(Path(d["file"]).name for d in reading["documents"] if d["kind"] in ("SR", "SEG"))
    assert len(again) == 2


@pytest.mark.parametrize(
    ("study", "model", "reason"),
    [
        ("ct_head_ge_tilt28", "hippocampus", "Modality is CT, not MR"),
        ("nonimage_and_odd", "chest_xray", "was read by chest_xray"),
        ("mg", "lung_fields", "not an acquired image"),
    ],
)
def test_unsuitable_input_is_status_3_with_the_reason_and_no_file(
    shared_data: Path, tmp_path: Path, study: str, model: str, reason: str
) -> None:
    done = read(shared_data / "dicom" / study, "--model", model, "--out", tmp_path / "out")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert reason in done.stderr
    assert not (tmp_path / "out").exists()
