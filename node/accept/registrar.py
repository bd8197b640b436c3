"""The registrar: what is durable gets its file and its row, in batches, and its sender does not wait for either."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from node.crashpoints import reach
from node.errors import NoRoom, Transient
from node.log import describe
from node.store.studies import Received

logger = logging.getLogger(__name__)

MAX_BATCH = 200
GATHER_S = 0.05
"""How long the first instance of a batch waits for others: each transaction costs a sync, as much as an instance."""
STREAM, GATHER_STREAM_S = 5, 0.3
"""After a batch of so many the next one is waited for longer: its transaction costs as much for one as for fifty."""

Register = Callable[[Sequence[Received]], int]


@dataclass(frozen=True)
class _Waiting:
    """An instance that waits for the registrar, and how its file comes into its place if it is not there."""

    received: Received
    lay_out: Callable[[], None] | None


@dataclass(frozen=True)
class Release:
    """An association that brought instances has ended at `at` (seconds since the epoch), by a release or not."""

    number: int
    is_released: bool
    at: float


class Registrar:
    """Lays durable instances out and registers them, in batches, on a thread of its own that never gives up.

    Both are tried again with growing pauses while the disk is full or the database does not answer. An instance that
    the database refuses for good is named in the log and set aside; it stays in the spool, where recovery finds it.
    """

    def __init__(
        self,
        register: Register,
        longest_pause_s: float = 5.0,
        released: Callable[[Release], None] = lambda release: None,
    ) -> None:
        self._register, self._longest_pause_s, self._released = register, longest_pause_s, released
        self._queue: deque[_Waiting | Release | None] = deque()
        self._urgent = 0
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._ended = False
        self._gather_s = GATHER_S
        self._waiting = 0
        self._thread = threading.Thread(target=self._run, name="registrar", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Instances that are durable and acknowledged but not in the index yet."""
        return self._waiting

    def put(self, received: Received, lay_out: Callable[[], None] | None = None) -> None:
        """Hand over one instance that is durable; `lay_out` where its file is not in the spool yet."""
        self._add(_Waiting(received, lay_out))

    def release(self, release: Release) -> None:
        """Hand over that an association has ended; noted once all that came before it is registered."""
        self._add(release)

    def close(self, timeout_s: float) -> bool:
        """Register what waits and end; False when time ran out (recovery registers the rest)."""
        self._add(None)
        self._thread.join(timeout_s)
        self._stopping.set()
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._ended:
            taken = self._take()
            batch = [item for item in taken if isinstance(item, _Waiting)]
            self._register_batch([waiting.received for waiting in batch if self._lay_out(waiting)])
            with self._changed:
                self._waiting -= len(batch)
            for item in taken:
                if isinstance(item, Release):
                    self._note(item)

    def _note(self, release: Release) -> None:
        """Note a release once; where the database is away, the quiet period decides as if there had been none."""
        try:
            self._released(release)
        except Exception as error:  # a border: the listener must live
            extra = {"action": "release_not_noted", "error": describe(error)}
            logger.warning("The release of an association was not noted.", extra=extra)

    def _lay_out(self, waiting: _Waiting) -> bool:
        """Return True when the file is in its place; False when the node stops before (the log has it)."""
        pause_s = 0.05
        while waiting.lay_out is not None:
            try:
                waiting.lay_out()
                break
            except (NoRoom, OSError) as error:
                logger.warning("The spool is behind.", extra=_failed([waiting.received], error))
                if self._stopping.wait(pause_s):
                    return False
                pause_s = min(pause_s * 2, self._longest_pause_s)
        return True

    def _take(self) -> list[_Waiting | Release]:
        """Wait for the first instance and take with it what comes soon after, asleep meanwhile; None is the end."""
        batch: list[_Waiting | Release] = []
        with self._changed:
            self._changed.wait_for(lambda: bool(self._queue))
            self._changed.wait_for(self._is_due, self._gather_s)
            while self._queue and len(batch) < MAX_BATCH:
                item = self._queue.popleft()
                self._urgent -= not isinstance(item, _Waiting)
                if item is None:
                    self._ended = True
                    break
                batch.append(item)
                if isinstance(item, Release):
                    break
        self._gather_s = GATHER_STREAM_S if len(batch) >= STREAM else GATHER_S
        return batch

    def _is_due(self) -> bool:
        """Evidence that a study is whole is not kept waiting, nor is a full batch or the end."""
        return self._urgent > 0 or len(self._queue) >= MAX_BATCH

    def _add(self, item: _Waiting | Release | None) -> None:
        with self._changed:
            self._queue.append(item)
            self._waiting += isinstance(item, _Waiting)
            self._urgent += not isinstance(item, _Waiting)
            if len(self._queue) == 1 or self._is_due():
                self._changed.notify()

    def _register_batch(self, batch: Sequence[Received]) -> None:
        if not batch or self._attempt(batch) or len(batch) == 1:
            return
        for received in batch:  # one that the database refuses must not hold back the others
            if not self._stopping.is_set():
                self._attempt([received])

    def _attempt(self, batch: Sequence[Received]) -> bool:
        """Return True when `batch` is registered, False when the database refuses it for good."""
        pause_s = 0.05
        while batch:
            try:
                reach("register.before")
                self._register(batch)
                return True
            except Transient as error:
                logger.warning("The index is behind.", extra=_failed(batch, error))
                if self._stopping.wait(pause_s):
                    return False
                pause_s = min(pause_s * 2, self._longest_pause_s)
            except Exception as error:  # a border: the listener must live, and recovery has the file
                if len(batch) == 1:
                    extra = _failed(batch, error) | {"sop_instance_uid": batch[0].sop_instance_uid}
                    logger.error("The index refuses an instance; it stays in the spool.", extra=extra)
                return False
        return True


def _failed(batch: Sequence[Received], error: BaseException) -> dict[str, object]:
    return {"action": "register_failed", "count": len(batch), "error": describe(error)}
