"""A step of a training that hangs, so that the process it runs in cannot notice by itself that nobody waits for it."""

from __future__ import annotations

import os
import time
from pathlib import Path

HANGS_S = 3000


class Stuck:
    """Leaves `PID.pid` in `folder`, and hangs."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def __call__(self, case: object) -> object:
        """Return `case`, much later."""
        (self._folder / f"{os.getpid()}.pid").touch()
        time.sleep(HANGS_S)
        return case
