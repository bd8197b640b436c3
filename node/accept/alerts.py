"""Security alerts that a stranger can cause at will: the first of a minute are lines of the trail, the rest a count.

PS3.15 §A.5.3.11 wants each told; a trail that a port scanner can fill with millions of lines tells nobody anything.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Unpack

from node.audit import Audit, AuditEvent, Details, Outcome

LINES, WINDOW_S = 20, 60.0
"""Lines that may be written one by one within so many seconds; what comes more is one line at their end."""


class Alerts:
    """Alerts of one kind, `what`: failed TLS handshakes, or rejected associations."""

    def __init__(self, audit: Audit, what: str, lines: int = LINES, window_s: float = WINDOW_S) -> None:
        self._audit, self._what, self._lines, self._window_s = audit, what, lines, window_s
        self._lock = threading.Lock()
        self._since, self._written = float("-inf"), 0
        self._more: Counter[str] = Counter()

    def note(self, **details: Unpack[Details]) -> bool:
        """Write a line and return True, or count by `address` where there were enough; `reason` is `what` by itself."""
        with self._lock:
            self._turn(time.monotonic())
            address = details.get("address", "")
            if self._written >= self._lines:
                self._more[address if address in self._more or len(self._more) < self._lines else "others"] += 1
                return False
            self._written += 1
            details.setdefault("reason", self._what)
            details.setdefault("count", 1)
            self._write(details)
            return True

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
            reason = f"{self._what}, {count} times more"
            self._write({"reason": reason, "address": address, "count": count})
        self._since, self._written = now, 0
        self._more.clear()

    def _write(self, details: Details) -> None:
        self._audit.write(AuditEvent.ASSOCIATION_REJECTED, Outcome.SERIOUS_FAILURE, **details)
