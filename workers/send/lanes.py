"""Lanes: so many deliveries to one destination are in hand at a time, so that one that hangs holds up no other.

Without them a few hundred results for an archive that takes connections and says nothing would keep every thread busy,
and what is for another archive would wait behind them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from node.clock import Clock
from node.store import due as queue
from node.store.db import Database

WIDTH = 2


class Lanes:
    """The lanes of one process; a message for a full lane is left to those who are in it."""

    def __init__(self, width: int = WIDTH) -> None:
        self._width, self._lock = width, threading.Lock()
        self._inside: Counter[str] = Counter()

    def run(
        self, db: Database, delivery_id: str, deliver: Callable[[str], None], now: Clock, stopping: threading.Event
    ) -> None:
        """Have delivered what a message names, then what else is due for its destination, until nothing is.

        Raises `DatabaseUnavailable`, and whatever `deliver` does: what is left is announced again.
        """
        destination = queue.destination_of(db, delivery_id)
        if destination is None or not self._enter(destination):
            return
        due: str | None = delivery_id
        try:
            while due is not None:
                deliver(due)
                due = self._next(db, destination, now, stopping)
        finally:
            if due is not None:
                self._leave(destination)

    def _enter(self, destination: str) -> bool:
        with self._lock:
            has_room = self._inside[destination] < self._width
            self._inside[destination] += has_room
            return has_room

    def _next(self, db: Database, destination: str, now: Clock, stopping: threading.Event) -> str | None:
        """Return what is due; where nothing is, leave in the same step: no message may find a lane full of nobody."""
        with self._lock:
            due = None if stopping.is_set() else queue.next_due(db, destination, now())
            self._inside[destination] -= due is None
            return due

    def _leave(self, destination: str) -> None:
        with self._lock:
            self._inside[destination] -= 1
