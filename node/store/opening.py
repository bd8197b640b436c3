"""At start: waiting for a database that is not up yet, as after a power cut, when every host starts at its own pace."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from node import clock
from node.errors import Transient

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 5.0


def patiently(
    attempt: Callable[[], None],
    stopping: threading.Event,
    meanwhile: str,
    told: Callable[[str], None] = lambda why: None,
) -> bool:
    """Call `attempt` until it works; False: told to stop before. Raises what is not `Transient`: waiting is no use.

    The log says once what is waited for, and what happens `meanwhile`; `told` hears the reason of every failure.
    """
    failures = 0
    while not stopping.is_set():
        try:
            attempt()
        except Transient as error:
            failures += 1
            told(str(error))
            if failures == 1:
                extra = {"action": "database_awaited"}
                log.warning("%s The start waits and goes on by itself; %s", error, meanwhile, extra=extra)
            stopping.wait(clock.pause(0.5, failures, LONGEST_PAUSE_S))
            continue
        if failures:
            log.info("The database is there; the start goes on.", extra={"action": "database_there"})
        return True
    return False
