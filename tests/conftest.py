"""Fixtures that several test files need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real DICOM studies beside the checkout, or `WETREAD_DATA`; absent outside the project's CI."""
    folder = Path(os.environ.get("WETREAD_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("real DICOM studies are absent (set WETREAD_DATA)")
    return folder
