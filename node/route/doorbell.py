"""Due jobs and deliveries are announced to the broker; what a dead worker held goes back into the queue.

The broker is only a doorbell: a message that gets lost is sent again, one that arrives twice finds nothing to claim.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from node.crashpoints import reach
from node.errors import BrokerUnavailable
from node.settings import Settings
from node.store import deliveries, jobs
from node.store.db import Database

Ring = Callable[[str, str], None]
"""`ring("read" | "send", id)`; raises `BrokerUnavailable`. `broker.Bell` is one, and says in the log when it fails."""

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
    """Ring until the broker fails; ids that it did not take stay unrung and come again with the next tick."""
    told: list[str] = []
    try:
        for row_id in store.to_ring(db, now, AGAIN_AFTER_S):
            reach("ring.before")
            ring(kind, row_id)
            reach("ring.after")
            told.append(row_id)
    except BrokerUnavailable:
        pass  # the ring has said so, once
    store.rung(db, told, now)
    return len(told)
