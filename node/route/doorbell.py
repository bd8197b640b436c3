"""Due jobs and deliveries are announced to the broker; what a dead worker held goes back into the queue.

The broker is only a doorbell: a message that gets lost is sent again, one that arrives twice finds nothing to claim.
"""

from __future__ import annotations

from types import ModuleType
from typing import Protocol

from node.crashpoints import reach
from node.errors import BrokerUnavailable
from node.settings import Settings
from node.store import deliveries, jobs
from node.store.db import Database


class Ring(Protocol):
    """`broker.Bell` is one, and says in the log when it fails."""

    def takes(self, kind: str) -> bool:
        """Say whether the queue "read" or "send" takes messages; raises `BrokerUnavailable`."""

    def __call__(self, kind: str, row_id: str) -> None:
        """Ring for a job or a delivery; raises `BrokerUnavailable`."""


AGAIN_AFTER_S = 30.0
"""How long after a ring without a claim the id is rung again."""

_KINDS: tuple[tuple[str, ModuleType], ...] = (("read", jobs), ("send", deliveries))


def tick(db: Database, ring: Ring, settings: Settings, now: float) -> int:
    """Take back lapsed leases, then ring for all that is due at `now`; return how many rang.

    Raises `DatabaseUnavailable`. A broker that fails is no error here: what was not rung comes again.
    """
    jobs.expire(db, now, settings.worker.max_attempts)
    deliveries.expire(db, now)
    return sum(_ring(db, ring, kind, store, now) for kind, store in _KINDS)


def _ring(db: Database, ring: Ring, kind: str, store: ModuleType, now: float) -> int:
    """Ring until the broker fails or has enough; ids that it did not take stay unrung and come again with the next."""
    told: list[str] = []
    try:
        if not ring.takes(kind):
            return 0
        for row_id in store.to_ring(db, now, AGAIN_AFTER_S):
            reach("ring.before")
            ring(kind, row_id)
            reach("ring.after")
            told.append(row_id)
    except BrokerUnavailable:
        pass  # the ring has said so, once
    store.rung(db, told, now)
    return len(told)
