"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One violation: of which invariant, by which entity (a row or a file), what it is, and what to do about it."""

    invariant: str
    entity: str
    what: str
    remedy: str
