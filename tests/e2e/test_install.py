"""`pip install .` brings the bundles, the default configuration and the pages along, away from the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `wetread` of an environment of its own; the libraries are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = [folder / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "--no-deps", ROOT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    packages = next((folder / "venv" / "lib").glob("python*/site-packages"))
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "venv" / "bin" / "wetread"


def run(wetread: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run([wetread, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_finds_bundles_configuration_and_workers(installed: Path, tmp_path: Path) -> None:
    bundles = json.loads(run(installed, tmp_path, "models", "list", "--json"))
    assert {"chest_xray", "hippocampus", "lung_fields"} <= {bundle["name"] for bundle in bundles}
    assert {bundle["trust"] for bundle in bundles} == {"trusted"}, "each file of each bundle is as it was pinned"
    folder = json.loads(run(installed, tmp_path, "models", "show", "hippocampus", "--json"))["folder"]
    assert Path(folder).is_relative_to(installed.parent.parent)
    run(installed, tmp_path, "models", "check", "lung_fields")
    settings = json.loads(run(installed, tmp_path, "config", "show", "--json"))
    assert settings["spool"]["url"] == str(tmp_path / "state" / "spool")
    assert len(settings["route"]) >= 2
    run(installed, tmp_path, "config", "init", "etc")
    run(installed, tmp_path, "check", "--no-echo", "--config", "etc/wetread.toml")


def test_it_reads(installed: Path, tmp_path: Path, shared_data: Path) -> None:
    study = shared_data / "dicom" / "mr_brain_pgbm003_hippocrop"
    out = json.loads(run(installed, tmp_path, "read", str(study), "--model", "hippocampus", "--out", "out", "--json"))
    (reading,) = out["readings"]
    assert sorted(d["kind"] for d in reading["documents"]) == ["SC", "SEG", "SR"]
    assert all((tmp_path / d["file"]).is_file() for d in reading["documents"])
