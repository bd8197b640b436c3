"""The garbage collector rests while torch and MONAI are imported, and looks at all that comes after."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_LOOK = """
import gc, sys
from workers.imports import uncollected

with uncollected():
    states = [gc.isenabled()]
    kept = [[] for _ in range(100_000)]
states += [gc.isenabled(), gc.get_freeze_count() > 100_000]
sys.modules["monai"] = sys
more = [[] for _ in range(100_000)]
before = gc.get_freeze_count()
with uncollected():
    states += [gc.isenabled(), gc.get_freeze_count() == before]
gc.disable()
del sys.modules["monai"]
with uncollected():
    pass
print(*states, gc.isenabled())
"""


def test_the_collector_rests_once_and_what_was_imported_is_spared() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOOK], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["False", "True", "True", "True", "True", "False"]
