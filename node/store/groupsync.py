"""One sync for all who wait: while one runs, others write and queue, and the next one serves them together.

Everybody who waits is woken once, to be told how it ended or to sync for those behind. With a condition that wakes all
of them after each sync, eight associations spent more time waking each other than in the sync.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class _Turn:
    """One who waits; once woken, either `followers` wait for this one's sync, or another's has `ended`."""

    gate: threading.Lock = field(default_factory=threading.Lock)
    followers: Sequence[_Turn] = ()
    ended: bool = False
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self.gate.acquire()

    def end(self, error: BaseException | None) -> None:
        """Wake it: what it waited for has been done, or has failed with `error`."""
        self.ended, self.error = True, error
        self.gate.release()


class GroupSync:
    """Calls `sync` for everybody who writes and then calls this; never two at a time."""

    def __init__(self, sync: Callable[[], None]) -> None:
        self._sync = sync
        self._lock = threading.Lock()
        self._is_syncing = False
        self._waiting: list[_Turn] = []

    def __call__(self) -> None:
        """Return when a sync that began after this call has ended; raises what it raised."""
        turn = _Turn()
        with self._lock:
            leads, self._is_syncing = not self._is_syncing, True
            if not leads:
                self._waiting.append(turn)
        if not leads:
            turn.gate.acquire()
        if not turn.ended:
            self._lead(turn)
        elif turn.error is not None:
            raise turn.error

    def _lead(self, turn: _Turn) -> None:
        error = None
        try:
            self._sync()
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._hand_over()
            for follower in turn.followers:
                follower.end(error)

    def _hand_over(self) -> None:
        """Let the first of those who came meanwhile sync for all of them, before anybody else is woken."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            self._is_syncing = bool(waiting)
        if waiting:
            waiting[0].followers = waiting[1:]
            waiting[0].gate.release()
