"""Whether each stage of the node works, as `/readyz` and `/metrics` show it."""

from __future__ import annotations

import threading

STAGES = ("start", "inquire", "fetch", "assemble", "route", "bundles", "doorbell", "settle", "retention")
"""The loops of the node, in the order of the pipeline, after the start, which may wait for the database."""


class Health:
    """The latest word of every stage: the empty string is good, anything else says what is wrong. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stages: dict[str, str] = {}

    def good(self, stage: str) -> None:
        """Note that `stage` works."""
        self._set(stage, "")

    def bad(self, stage: str, why: str) -> None:
        """Note why `stage` does not work now."""
        self._set(stage, why)

    def stages(self) -> dict[str, str]:
        """Return stage → what is wrong with it, by name."""
        with self._lock:
            return dict(sorted(self._stages.items()))

    def _set(self, stage: str, word: str) -> None:
        with self._lock:
            self._stages[stage] = word
