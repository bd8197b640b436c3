"""The one clock: seconds since the epoch, UTC, as a float. Functions that depend on time take a `Clock`."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], float]


def now() -> float:
    """Return the current time in seconds since 1970-01-01T00:00:00Z."""
    return time.time()


def to_datetime(seconds: float) -> datetime:
    """Return `seconds` since the epoch as an aware UTC datetime."""
    return datetime.fromtimestamp(seconds, tz=UTC)


def to_iso(seconds: float | None) -> str | None:
    """Return `seconds` as ISO 8601 with second precision and `Z`, or None."""
    return None if seconds is None else to_datetime(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_iso(text: str) -> float:
    """Return the seconds since the epoch that ISO 8601 `text` means; raises `ValueError`."""
    return datetime.fromisoformat(text).timestamp()


def pause(first_s: float, failures: int, longest_s: float) -> float:
    """Return how long to wait after `failures` in a row: `first_s` after one, twice as long after each more.

    Never more than `longest_s`, however many there were: 1,024 doublings are more than a float holds.
    """
    return min(first_s * 2.0 ** min(failures - 1, 64), longest_s)
