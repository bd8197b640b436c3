"""A loop of the node or of a worker: one thread that asks its stage what is due, again and again, and outlives every
failure. The log says once that it fails, and once that it works again: an hour without a database is two lines."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from node import clock
from node.errors import WetreadError
from node.web.health import Health

log = logging.getLogger(__name__)

MAX_PAUSE_S = 30.0
"""The longest wait after failures in a row; the usual pace returns with the first success."""


class Loop:
    """One thread that calls `tick` every `period` seconds until stopped, slower while it fails."""

    def __init__(self, name: str, period: float, tick: Callable[[], object], health: Health) -> None:
        self._name, self._period, self._tick, self._health = name, period, tick, health
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """End after the tick in hand."""
        self._stop.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        failures, told = 0, set[type[Exception]]()
        while not self._stop.is_set():
            try:
                self._tick()
                self._health.good(self._name)
                if failures:
                    log.info("Stage %s works again.", self._name, extra={"action": "tick_works_again"})
                failures, told = 0, set()
            except Exception as error:  # a fault in one stage must not silence the others
                failures += 1
                self._failed(error, is_new=type(error) not in told)
                told.add(type(error))
            self._stop.wait(clock.pause(self._period, failures + 1, MAX_PAUSE_S) if failures else self._period)

    def _failed(self, error: Exception, is_new: bool) -> None:
        is_ours = isinstance(error, WetreadError)
        self._health.bad(self._name, str(error) if is_ours else f"unexpected {type(error).__name__}")
        if is_new and is_ours:
            log.warning("Stage %s: %s", self._name, error, extra={"action": "tick_failed"})
        elif is_new:
            log.error("Stage %s failed; it goes on.", self._name, exc_info=error, extra={"action": "tick_failed"})
