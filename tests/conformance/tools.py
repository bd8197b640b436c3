"""The independent tools that judge our objects: dicom3tools, dcmqi and, where it is installed, DCMTK."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest


def tool(name: str) -> str:
    """Return the path of a validator: on PATH, or beside the interpreter where PyPI put it; skip where it is absent."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.prefix) / "bin"))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(name: str, *arguments: str | Path) -> tuple[int, str]:
    """Run a tool and return its exit status and all it printed."""
    done = subprocess.run(
        [tool(name), *map(str, arguments)], capture_output=True, text=True, errors="replace", timeout=120, check=False
    )
    return done.returncode, done.stdout + done.stderr


def errors(output: str) -> list[str]:
    """Return the lines in which dicom3tools reports an error."""
    return [line for line in output.splitlines() if line.startswith(("Error", "Abort"))]


def entity_errors(files: Sequence[Path]) -> list[str]:
    """Return what dcentvfy finds different between files of one study, patient, series or frame of reference."""
    return errors(run("dcentvfy", *files)[1])
