"""A loop of the node: one thread that asks its stage what is due, again and again, and outlives every failure."""

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
        failures = 0
        while not self._stop.is_set():
            try:
                self._tick()
                failures = 0
                self._health.good(self._name)
            except WetreadError as error:
                failures += 1
                self._failed(str(error), failures)
            except Exception as error:  # a fault in one stage must not silence the others
                failures += 1
                log.exception("Stage %s failed; it goes on.", self._name, extra={"action": "tick_failed"})
                self._failed(f"unexpected {type(error).__name__}", failures, logged=True)
            self._stop.wait(clock.pause(self._period, failures + 1, MAX_PAUSE_S) if failures else self._period)

    def _failed(self, why: str, failures: int, logged: bool = False) -> None:
        self._health.bad(self._name, why)
        if failures == 1 and not logged:  # a database that is away for an hour is one line, not a thousand
            log.warning("Stage %s: %s", self._name, why, extra={"action": "tick_failed"})
