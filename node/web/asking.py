"""What a page asks of the database or of the spool: on a thread of its own, and no page waits long for it.

A server that was stopped, a network that swallows packets or a share that hangs answers nothing, for minutes. A page
that waited as long would keep its thread from all others, and a scrape of Prometheus has ended long before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from node.errors import Transient

Answer = TypeVar("Answer")

WITHIN_S = 4.0
"""How long a page waits for an answer, of the database and then of the spool; Prometheus gives up after 10 s."""
AT_ONCE = 8
"""Questions that may be open at the same time, those among them for whose answer nobody waits any more."""


class Asker:
    """Asks `whom`, such as `The database`; from any thread, and never more than `AT_ONCE` questions at a time."""

    def __init__(self, whom: str) -> None:
        self._whom, self._places = whom, threading.BoundedSemaphore(AT_ONCE)

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """Return what `question` does, or raise what it raises; `Transient` where that takes too long."""
        until = time.monotonic() + WITHIN_S
        answer: Future[Answer] = Future()
        if self._places.acquire(timeout=WITHIN_S):
            threading.Thread(target=self._put, args=(question, answer), name="page", daemon=True).start()
        try:
            return answer.result(max(0.0, until - time.monotonic()))
        except TimeoutError:
            if answer.done():  # the question's own
                raise
            raise Transient(f"{self._whom} did not answer within {WITHIN_S:.0f} s.") from None

    def _put(self, question: Callable[[], Answer], answer: Future[Answer]) -> None:
        try:
            answer.set_result(question())
        except BaseException as error:  # belongs to who asked
            answer.set_exception(error)
        finally:
            self._places.release()
