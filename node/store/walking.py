"""What lies in the spool, by name: a start looks at all of it.

Names are text. 100,000 paths as objects cost a start many seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def files(root: Path, kind: str) -> Iterator[str]:
    """Yield what lies two folders below `root`/`kind`, in order, by names below `root`."""
    for first in _listed(root, kind):
        for second in _listed(root, first):
            yield from _listed(root, second)


def _listed(root: Path, folder: str) -> list[str]:
    return [f"{folder}/{name}" for name in sorted(os.listdir(f"{root}/{folder}"))]  # noqa: PTH208 - paths are slow
