"""Importing torch and MONAI for less: what they make while they are imported stays, so nobody need look for garbage."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import within this without the garbage collector, and spare it what was imported ever after.

    It would walk through all of a million objects again and again: a quarter of the CPU time of `import monai`.
    Once that has been imported nothing changes: what is garbage by then shall be found.
    """
    if "monai" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
