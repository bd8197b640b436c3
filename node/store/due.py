"""Where a delivery goes, and which is the next for that destination."""

from __future__ import annotations

from node.store.db import Database, rows


def destination_of(db: Database, delivery_id: str) -> str | None:
    """Return where a delivery goes, None where there is none of this id."""
    with db.reader() as connection:
        found = rows(connection, "SELECT destination FROM delivery WHERE id = :id", id=delivery_id)
    return str(found[0]["destination"]) if found else None


def next_due(db: Database, destination: str, now: float) -> str | None:
    """Return the id of the oldest delivery that is due for a destination, None where nothing is."""
    with db.reader() as connection:
        found = rows(
            connection,
            "SELECT id FROM delivery WHERE state = 'PENDING' AND not_before <= :now AND destination = :destination "
            "ORDER BY created_at, id LIMIT 1",
            destination=destination,
            now=now,
        )
    return str(found[0]["id"]) if found else None
