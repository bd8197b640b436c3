"""One sync for many files: the whole file system at once where the kernel reports its failures, else file by file."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable
from pathlib import Path

from node.store.mounts import NETWORK, file_system

_REPORTS_FAILURES = (5, 8)
"""From this Linux on syncfs(2) returns an error of writing back that came after the descriptor was opened."""


class Syncer:
    """Makes files below `root` durable; opened before they are written, so that it hears of every failure."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._at_once = _kernel() >= _REPORTS_FAILURES and file_system(root)[1] not in NETWORK
        self._syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None) if self._at_once else None

    def __call__(self, names: Iterable[str]) -> None:
        """Return when the files `names`, relative to the root, and their folders are durable; raises `OSError`."""
        if self._syncfs is None:
            self._one_by_one(names)
        elif self._syncfs(self._descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def close(self) -> None:
        """Let the descriptor go."""
        os.close(self._descriptor)

    def _one_by_one(self, names: Iterable[str]) -> None:
        paths = {self._root / name for name in names}
        folders = {path.parent for path in paths}
        for path in [*sorted(paths), *sorted(folders)]:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # retention was quicker
                continue
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _kernel() -> tuple[int, int]:
    if os.uname().sysname != "Linux":
        return 0, 0
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)
