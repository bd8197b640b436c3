"""I6: what is due is done; after a fault has passed, nothing may stay due for longer than the caller allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import sqlalchemy as sa

from node.store.db import rows
from node.store.invariants.finding import Finding

_REMEDY = "See that node, broker and worker run; `wetread studies show` tells where it stopped."
_QUERIES = (
    "SELECT 'study ' || study_instance_uid AS entity, 'it is RECEIVING and nothing came any more' AS what FROM study s "
    "WHERE state = 'RECEIVING' AND last_received_at < :before AND EXISTS (SELECT 1 FROM instance i WHERE "
    "i.study_instance_uid = s.study_instance_uid AND i.revision > s.revision AND i.is_own_result = 0 "
    "AND i.removed_at IS NULL)",
    "SELECT 'study ' || study_instance_uid AS entity, 'it is COMPLETE and was not routed' AS what FROM study "
    "WHERE state = 'COMPLETE' AND completed_at < :before",
    "SELECT 'study ' || study_instance_uid AS entity, 'it is ROUTED though every job has ended' AS what FROM study s "
    "WHERE state = 'ROUTED' AND completed_at < :before AND NOT EXISTS (SELECT 1 FROM job j WHERE "
    "j.study_instance_uid = s.study_instance_uid AND j.revision = s.revision AND "
    "(j.state IN ('QUEUED', 'RUNNING', 'REPORTED') OR j.updated_at >= :before))",
    "SELECT 'job ' || id AS entity, 'it is ' || state || ' and due' AS what FROM job "
    "WHERE state IN ('QUEUED', 'RUNNING') AND not_before < :before AND updated_at < :before",
    "SELECT 'delivery ' || id AS entity, 'it is ' || state || ' and due' AS what FROM delivery "
    "WHERE state IN ('PENDING', 'SENDING', 'COMMITTING') AND not_before < :before AND updated_at < :before",
)


def check(connection: sa.Connection, waiting: Mapping[str, int], now: float, drained_s: float) -> Iterator[Finding]:
    """Yield what has been due for longer than `drained_s` seconds at `now`, and queues that are not empty."""
    for query in _QUERIES:
        for row in rows(connection, query, before=now - drained_s):
            yield Finding("I6", row["entity"], row["what"], _REMEDY)
    for queue, count in sorted(waiting.items()):
        if count:
            yield Finding("I6", f"queue {queue}", f"{count} messages wait in the broker", "See that a worker runs.")
