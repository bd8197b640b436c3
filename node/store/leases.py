"""What jobs and deliveries share as queues: ring, claim, heartbeat, expire.

A claim hands out a lease and a fence, a number that only grows. Whoever holds neither changes nothing: every later
statement of a worker carries its name and its fence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from node.states import DeliveryState, JobState
from node.store.db import Database, record, rows


@dataclass(frozen=True)
class Queue:
    """A table with leases: where its rows wait, where they are worked on."""

    entity: str
    waiting: str
    working: str
    order: str = "created_at, id"


JOBS = Queue("job", JobState.QUEUED, JobState.RUNNING, "priority DESC, created_at, id")
DELIVERIES = Queue("delivery", DeliveryState.PENDING, DeliveryState.SENDING)

FREE: dict[str, Any] = {"leased_by": None, "leased_until": None, "rung_at": 0.0}
"""The columns of a row that nobody holds and that the broker has not been told of."""


def to_ring(db: Database, queue: Queue, now: float, again_after: float, limit: int) -> list[str]:
    """Return the ids that are due and that the broker was not told of in the last `again_after` seconds, in order.

    A `rung_at` in the future (the clock was set back) counts as never.
    """
    with db.reader() as connection:
        found = rows(
            connection,
            f"SELECT id FROM {queue.entity} WHERE state = :waiting AND not_before <= :now "  # noqa: S608 - constant
            f"AND (rung_at <= :before OR rung_at > :now) ORDER BY {queue.order} LIMIT :limit",
            waiting=str(queue.waiting),
            now=now,
            before=now - again_after,
            limit=limit,
        )
    return [row["id"] for row in found]


def rung(db: Database, queue: Queue, ids: Sequence[str], now: float) -> None:
    """Note that the broker has been told of `ids`."""
    if not ids:
        return
    statement = sa.text(
        f"UPDATE {queue.entity} SET rung_at = :now WHERE id IN :ids AND state = :waiting"  # noqa: S608 - constant
    ).bindparams(sa.bindparam("ids", expanding=True))
    with db.transaction() as connection:
        connection.execute(statement, {"now": now, "ids": sorted(ids), "waiting": str(queue.waiting)})


def claim(
    connection: sa.Connection, queue: Queue, row_id: str, worker: str, now: float, lease: float
) -> dict[str, Any] | None:
    """Lease a due row to `worker` for `lease` seconds: attempts + 1, fence + 1. None when it is not to be had."""
    row = (
        connection.execute(
            sa.text(
                f"UPDATE {queue.entity} SET state = :working, attempts = attempts + 1, "  # noqa: S608 - constant
                "fence = fence + 1, leased_by = :worker, leased_until = :until, updated_at = :now "
                "WHERE id = :id AND state = :waiting AND not_before <= :now RETURNING *"
            ),
            {
                "id": row_id,
                "working": str(queue.working),
                "waiting": str(queue.waiting),
                "worker": worker,
                "until": now + lease,
                "now": now,
            },
        )
        .mappings()
        .first()
    )
    if row is None:
        return None
    reason = f"claimed by {worker}, attempt {row['attempts']}, fence {row['fence']}"
    record(connection, queue.entity, row_id, queue.waiting, queue.working, now, reason)
    return dict(row)


def heartbeat(db: Database, queue: Queue, row_id: str, worker: str, fence: int, now: float, lease: float) -> bool:
    """Extend the lease; False when it is lost, and then the worker must stop and discard what it has."""
    statement = sa.text(
        f"UPDATE {queue.entity} SET leased_until = :until "  # noqa: S608 - constant
        "WHERE id = :id AND state = :working AND leased_by = :worker AND fence = :fence"
    )
    values = {"until": now + lease, "id": row_id, "working": str(queue.working), "worker": worker, "fence": fence}
    with db.transaction() as connection:
        return connection.execute(statement, values).rowcount == 1


def lapsed(db: Database, queue: Queue, now: float) -> list[dict[str, Any]]:
    """Return the rows (id, fence, attempts, leased_by) whose lease has run out."""
    with db.reader() as connection:
        return rows(
            connection,
            f"SELECT id, fence, attempts, leased_by, leased_until FROM {queue.entity} "  # noqa: S608 - constant
            "WHERE state = :working AND leased_until < :now ORDER BY id",
            working=str(queue.working),
            now=now,
        )
