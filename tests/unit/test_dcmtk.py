"""DCMTK's programs are found behind the scripts of the same names that pynetdicom brings."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests import dcmtk


@pytest.mark.parametrize("name", ["echoscu", "storescu", "storescp"])
def test_scripts_of_an_activated_environment_are_passed_over(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = sysconfig.get_path("scripts")
    monkeypatch.setenv("PATH", os.pathsep.join([scripts, os.environ["PATH"]]))
    found = dcmtk.find(name)
    if found is None:
        pytest.skip(f"DCMTK's {name} is not on PATH")
    assert Path(found).parent != Path(scripts)
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    assert "$dcmtk:" in told.stdout


def test_where_only_those_scripts_are_dcmtk_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = Path(sysconfig.get_path("scripts"))
    assert (scripts / "storescu").exists()
    monkeypatch.setenv("PATH", str(scripts))
    assert dcmtk.find("storescu") is None
    with pytest.raises(FileNotFoundError, match="DCMTK's storescu is not on PATH"):
        dcmtk.program("storescu")
