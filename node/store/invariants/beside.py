"""What a node leaves beside its database and spool, and how quiet it must be: what I6, I7, I8, I10 and I12 look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Beside:
    """What the caller has at hand; whatever is left out is not judged.

    `logs`: files, or folders of them. `pages`: what the node's own addresses answered, by name. `canaries`: strings
    that no patient but the caller made up, and that must be nowhere. `trails`: audit trails, of each host its own.
    `waiting`: messages in the broker, by queue. `drained_s`: nothing may have been due for longer than so many seconds.
    """

    state: Path | None = None
    logs: tuple[Path, ...] = ()
    pages: Mapping[str, bytes] = field(default_factory=dict)
    canaries: tuple[str, ...] = ()
    trails: tuple[Path, ...] = ()
    waiting: Mapping[str, int] = field(default_factory=dict)
    drained_s: float | None = None

    @property
    def log_files(self) -> list[Path]:
        """Every file of `logs`, folders walked."""
        return [file for path in self.logs for file in files_below(path)]


def files_below(path: Path) -> list[Path]:
    """Return `path` if it is a file, else every file below it."""
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and not p.is_symlink())
