"""The clock of a node on many hosts is its database's: leases, rests and quiet periods of different hosts are compared.

A worker whose own clock lagged by more than a lease would lose every job that it claims, and each would be dead after
three times.
"""

from __future__ import annotations

import time

import sqlalchemy as sa

from node import clock
from node.clock import Clock

LOOK_EVERY_S = 60.0


def _steady() -> float:
    """Return seconds that no setting of a clock changes, and that go on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class ServerTime:
    """The server's time, carried on by this host between two looks; this host's own until there was one."""

    def __init__(self, steady: Clock = _steady) -> None:
        self._steady = steady
        self._last: tuple[float, float] | None = None

    def now(self) -> float:
        """Return the time in seconds since the epoch; asks nobody."""
        return clock.now() if self._last is None else self._last[0] + self._steady() - self._last[1]

    def look(self, connection: sa.Connection) -> None:
        """Ask the server, if it has not been asked for a minute."""
        before = self._steady()
        if self._last is None or before - self._last[1] >= LOOK_EVERY_S:
            told = connection.exec_driver_sql("SELECT EXTRACT(EPOCH FROM clock_timestamp())").scalar_one()
            self._last = float(told), (before + self._steady()) / 2
