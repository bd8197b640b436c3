"""Security alerts that a stranger can cause at will: the first of a minute are lines of the trail, the rest a count.

PS3.15 §A.5.3.11 wants each told; a trail that a port scanner can fill with millions of lines tells nobody anything.
"""

from __future__ import annotations

import threading
import time
from collections import Counter

from node.audit import Audit, AuditEvent, Outcome

LINES, WINDOW_S = 20, 60.0
"""Lines that may be written one by one within so many seconds; what comes more is one line at their end."""


class Alerts:
    """Alerts of one kind: failed TLS handshakes."""

    def __init__(self, audit: Audit, lines: int = LINES, window_s: float = WINDOW_S) -> None:
        self._audit, self._lines, self._window_s = audit, lines, window_s
        self._lock = threading.Lock()
        self._since, self._written = float("-inf"), 0
        self._more: Counter[str] = Counter()

    def note(self, address: str) -> None:
        """Write a line, or count where there were enough of them."""
        with self._lock:
            self._turn(time.monotonic())
            if self._written < self._lines:
                self._written += 1
                self._write("TLS handshake failed", address, 1)
            else:
                self._more[address if address in self._more or len(self._more) < self._lines else "others"] += 1

    def settle(self) -> None:
        """Write the line of what was counted, once its time is over; cheap, and to be called again and again."""
        with self._lock:
            self._turn(time.monotonic())

    def close(self) -> None:
        """Write what was counted."""
        with self._lock:
            self._turn(float("inf"))

    def _turn(self, now: float) -> None:
        if now - self._since < self._window_s:
            return
        for address, count in self._more.items():
            self._write(f"TLS handshake failed, {count} times more", address, count)
        self._since, self._written = now, 0
        self._more.clear()

    def _write(self, reason: str, address: str, count: int) -> None:
        self._audit.write(
            AuditEvent.ASSOCIATION_REJECTED, Outcome.SERIOUS_FAILURE, reason=reason, address=address, count=count
        )
