"""What lies in the spool, by name: a start looks at all of it.

Names are text. 100,000 paths as objects cost a start many seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from node.store.syncing import fsync_folder


def files(root: Path, kind: str) -> Iterator[str]:
    """Yield what lies one folder below `root`/`kind`, in order, by names below `root`."""
    for folder in _listed(root, kind):
        yield from _listed(root, folder)


def flatten(root: Path, kind: str) -> int:
    """Move files that an earlier version put two folders below `root`/`kind` to where they belong; return how many.

    Killed in between, it goes on at the next start: a file is in one of its two places, and its name is the same.
    """
    moved = 0
    for folder in _listed(root, kind):
        inner = [name for name in _listed(root, folder) if len(name) == len(folder) + len("/00")]
        for name in inner:
            for file in _listed(root, name):
                (root / file).rename(root / folder / file.rpartition("/")[2])
                moved += 1
            (root / name).rmdir()
        if inner:
            fsync_folder(root / folder)
    return moved


def _listed(root: Path, folder: str) -> list[str]:
    return [f"{folder}/{name}" for name in sorted(os.listdir(f"{root}/{folder}"))]  # noqa: PTH208 - paths are slow


def touched(path: Path) -> bool:
    """Note that these bytes came again, so that retention counts from now; False when retention was quicker."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
