"""DCMTK's programs by their names, which pynetdicom gives to its own scripts in the folder of an environment, too."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path


def find(name: str) -> str | None:
    """Return the path of DCMTK's `name`, never that of this environment's scripts; None where it is absent."""
    ours = Path(sysconfig.get_path("scripts")).resolve()
    folders = [folder for folder in os.get_exec_path() if folder and Path(folder).resolve() != ours]
    return shutil.which(name, path=os.pathsep.join(folders))


def program(name: str) -> str:
    """Return the path of DCMTK's `name`; raises FileNotFoundError where it is absent."""
    found = find(name)
    if found is None:
        raise FileNotFoundError(f"DCMTK's {name} is not on PATH; on Debian: apt-get install dcmtk")
    return found
