"""A clock that was set back: what it left in the future would wait until time has caught up, a day or a year.

A host may start with a wrong clock (its hardware's runs in local time, or its battery is empty) and take studies before
the right time reaches it. What then lies in the future is brought back to now; nothing else is changed by it. A clock
that jumps for a moment and comes back needs nothing.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import sqlalchemy as sa

from node.clock import Clock
from node.store.db import Database, rows

log = logging.getLogger(__name__)

STEADY_S = 60.0
"""How long something must lie in the future before it is brought back."""
FAR_S = 3600.0
"""No lease and no rest is as long; one that ends later was given by a clock that ran ahead."""


@dataclass(frozen=True)
class _Kind:
    """Rows of one table that wait for a time, and what becomes of them; `ahead` is how far ahead nothing can be."""

    table: str
    ahead: float
    where: str
    sets: str


_KINDS = (
    _Kind(
        "study",
        STEADY_S,
        "state IN ('RECEIVING', 'CONFLICT') AND last_received_at > :far",
        "last_received_at = :now, opened_at = CASE WHEN opened_at > :now THEN :now ELSE opened_at END",
    ),
    _Kind("job", FAR_S, "state = 'QUEUED' AND not_before > :far", "not_before = :now"),
    _Kind("job", FAR_S, "state = 'RUNNING' AND leased_until > :far", "leased_until = :now + 60"),
    _Kind(
        "delivery",
        FAR_S,
        "state IN ('PENDING', 'SENT') AND not_before > :far",
        "not_before = :now, created_at = CASE WHEN created_at > :now THEN :now ELSE created_at END",
    ),
    # How long one is tried counts from its making: made in the future, it would be tried for so much longer.
    _Kind("delivery", FAR_S, "state = 'PENDING' AND created_at > :far", "created_at = :now"),
    _Kind("delivery", FAR_S, "state = 'SENDING' AND leased_until > :far", "leased_until = :now + 60"),
    _Kind("delivery", FAR_S, "state = 'COMMITTING' AND updated_at > :far", "updated_at = :now"),
)


class TurnedBack:
    """Looks for what lies in the future, and brings it back once it has been there for `STEADY_S`."""

    def __init__(self, monotonic: Clock = time.monotonic) -> None:
        self._monotonic = monotonic
        self._since: float | None = None

    def tick(self, db: Database, now: float) -> int:
        """Bring back what has lain in the future; return how many rows that were. Raises `DatabaseUnavailable`."""
        with db.reader() as connection:
            found = [kind for kind in _KINDS if rows(connection, _select(kind), far=now + kind.ahead)]
        if not found:
            self._since = None
            return 0
        since = self._since = self._monotonic() if self._since is None else self._since
        if self._monotonic() - since < STEADY_S:
            return 0
        with db.transaction() as connection:
            count = sum(
                connection.execute(sa.text(_update(kind)), {"now": now, "far": now + kind.ahead}).rowcount
                for kind in found
            )
        self._since = None
        extra = {"action": "clock_set_back", "count": count}
        log.warning("The clock was set back; %d rows lay in the future. Let NTP keep it.", count, extra=extra)
        return count


def _select(kind: _Kind) -> str:
    return f"SELECT 1 AS there FROM {kind.table} WHERE {kind.where} LIMIT 1"  # noqa: S608 - constants


def _update(kind: _Kind) -> str:
    return f"UPDATE {kind.table} SET {kind.sets} WHERE {kind.where}"  # noqa: S608 - constants
