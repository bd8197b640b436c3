"""Deliveries: one Evidence Document to one destination; sent with the bytes that were filed, however often.

Which answer of a destination means what, and how long to rest, is decided by the sender; here it is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa

from node.errors import NotFound
from node.states import DeliveryState as D
from node.store import leases
from node.store.db import Database, history, move, rows
from node.store.leases import DELIVERIES, FREE
from node.store.settling import revived

LEASE_S = 60.0
MAX_COMMIT_ATTEMPTS = 5
"""How often storage commitment is asked for before a person must look."""

NO_SUCH_OBJECT = 0x0112
"""Failure Reason (0008,1197): the destination has no such SOP Instance (PS3.3 §C.14.1.1)."""
_REFUSED = frozenset({0x0119, 0x0122})
"""Class-instance conflict and SOP Class not supported: asking or sending again changes nothing."""

_SELECT = (
    "SELECT d.*, e.job_id, e.kind, e.sop_class_uid, e.series_instance_uid, e.path, e.sha256, e.size, "
    "j.study_instance_uid FROM delivery d JOIN evidence e ON e.sop_instance_uid = d.sop_instance_uid "
    "JOIN job j ON j.id = e.job_id "
)


@dataclass(frozen=True)
class ClaimedDelivery:
    """A delivery in the hands of one worker.

    `path`, `sha256` and `size` are of the Part 10 file in the spool; `attempts` counts this attempt too; how long a
    delivery is tried counts from `created_at`, which a person's retry sets anew.
    """

    id: str
    fence: int
    attempts: int
    destination: str
    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    job_id: str
    path: str
    sha256: str
    size: int
    created_at: float
    commit_attempts: int


@dataclass(frozen=True)
class ToCommit:
    """A SENT delivery whose destination should be asked for storage commitment (PS3.4 Annex J)."""

    id: str
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    commit_attempts: int


def to_ring(db: Database, now: float, again_after: float, limit: int = 1000) -> list[str]:
    """Return the ids of due deliveries that the broker should be told of (again), oldest first."""
    return leases.to_ring(db, DELIVERIES, now, again_after, limit)


def rung(db: Database, ids: Sequence[str], now: float) -> None:
    """Note that the broker was told of `ids`."""
    leases.rung(db, DELIVERIES, ids, now)


def claim(db: Database, delivery_id: str, worker: str, now: float, lease: float = LEASE_S) -> ClaimedDelivery | None:
    """Take a due delivery for `lease` seconds; None when there is none or another worker has it."""
    with db.transaction() as connection:
        if leases.claim(connection, DELIVERIES, delivery_id, worker, now, lease) is None:
            return None
        row = rows(connection, _SELECT + "WHERE d.id = :id", id=delivery_id)[0]
    return ClaimedDelivery(**{field.name: row[field.name] for field in fields(ClaimedDelivery)})


def heartbeat(db: Database, delivery_id: str, worker: str, fence: int, now: float, lease: float = LEASE_S) -> bool:
    """Extend the lease; False: it is lost and another worker may be sending."""
    return leases.heartbeat(db, DELIVERIES, delivery_id, worker, fence, now, lease)


def expire(db: Database, now: float) -> int:
    """Put deliveries back whose worker fell silent; whether they arrived is unknown, so the same bytes go again."""
    taken = 0
    for row in leases.lapsed(db, DELIVERIES, now):
        reason = f"{row['leased_by']} fell silent on attempt {row['attempts']}; the same bytes are sent again"
        where = {"fence": row["fence"], "leased_until": row["leased_until"]}
        changes = {"not_before": now, "reason": reason, "updated_at": now, **FREE}
        with db.transaction() as connection:
            taken += move(
                connection, "delivery", row["id"], D.SENDING, D.PENDING, now, reason, where=where, changes=changes
            )
    return taken


def sent(db: Database, delivery: ClaimedDelivery, worker: str, status: str, reason: str, now: float) -> bool:
    """Note that the destination has it (0000H or a warning). False: the lease was lost."""
    return _end(db, delivery, worker, D.SENT, status, reason, now, not_before=now)


def postponed(
    db: Database, delivery: ClaimedDelivery, worker: str, status: str, reason: str, now: float, not_before: float
) -> bool:
    """Note a failure that may pass; due again at `not_before`. False: the lease was lost."""
    return _end(db, delivery, worker, D.PENDING, status, reason, now, not_before=not_before)


def dead(db: Database, delivery: ClaimedDelivery, worker: str, status: str, reason: str, now: float) -> bool:
    """Note a refusal for good, or that it was tried long enough; waits for a person. False: the lease was lost."""
    return _end(db, delivery, worker, D.DEAD, status, reason, now)


def to_commit(db: Database, destination: str, limit: int = 500, now: float = math.inf) -> list[ToCommit]:
    """Return SENT deliveries of a destination to ask commitment for; with `now`, only those whose rest is over."""
    with db.reader() as connection:
        found = rows(
            connection,
            _SELECT + "WHERE d.state = 'SENT' AND d.destination = :destination AND d.not_before <= :now "
            "ORDER BY j.study_instance_uid, d.created_at, d.id LIMIT :limit",
            destination=destination,
            now=now,
            limit=limit,
        )
    return [ToCommit(**{field.name: row[field.name] for field in fields(ToCommit)}) for row in found]


def committing(db: Database, ids: Sequence[str], transaction_uid: str, now: float) -> int:
    """Note before the N-ACTION that these are being asked for; return how many still were SENT.

    Before, because the N-EVENT-REPORT may arrive ahead of the N-ACTION's own answer (PS3.4 §J.3.3).
    """
    reason = f"commitment asked for in transaction {transaction_uid}"
    moved = 0
    with db.transaction() as connection:
        for row in rows(connection, "SELECT id, commit_attempts FROM delivery WHERE id IN :ids ORDER BY id", ids=ids):
            attempts = row["commit_attempts"] + 1
            changes = {"transaction_uid": transaction_uid, "commit_attempts": attempts, "updated_at": now}
            moved += move(connection, "delivery", row["id"], D.SENT, D.COMMITTING, now, reason, changes=changes)
    return moved


def committed(
    db: Database,
    transaction_uid: str,
    stored: Sequence[str],
    failed: Mapping[str, int],
    now: float,
    max_attempts: int = MAX_COMMIT_ATTEMPTS,
) -> int:
    """Take in an N-EVENT-REPORT: SOP Instance UIDs `stored`, and `failed` with their Failure Reason.

    Returns how many deliveries moved; 0 for an unknown or already settled transaction. What the report does not name
    keeps waiting. Not there (0112H) → sent again; busy or out of resources → asked again; refused → DEAD.
    """
    moved = 0
    with db.transaction() as connection:
        for row in _in_transaction(connection, transaction_uid):
            if row["sop_instance_uid"] in failed:
                code = failed[row["sop_instance_uid"]]
                moved += _not_committed(connection, row, code, now, max_attempts)
            elif row["sop_instance_uid"] in stored:
                reason = f"{row['destination']} has committed to keep it"
                moved += _commit_move(connection, row, D.COMMITTED, reason, now)
    return moved


def not_asked(
    db: Database, transaction_uid: str, reason: str, now: float, not_before: float, counts: bool = True
) -> int:
    """Take back `committing` when the N-ACTION did not get through or was refused; asked again at `not_before`.

    An attempt that did not reach the destination does not count: patience with its answers is not used up by its rests.
    """
    with db.transaction() as connection:
        found = _in_transaction(connection, transaction_uid)
        return sum(
            _commit_move(
                connection,
                row,
                D.SENT,
                reason,
                now,
                not_before=not_before,
                commit_attempts=row["commit_attempts"] - (not counts),
            )
            for row in found
        )


def uncommitted(db: Database, now: float, older_than: float, max_attempts: int = MAX_COMMIT_ATTEMPTS) -> int:
    """Stop waiting for N-EVENT-REPORTs asked for `older_than` seconds ago: SENT, to ask anew, or DEAD in the end."""
    with db.reader() as connection:
        statement = "SELECT * FROM delivery WHERE state = 'COMMITTING' AND updated_at <= :before ORDER BY id"
        found = rows(connection, statement, before=now - older_than)
    moved = 0
    for row in found:
        last = row["commit_attempts"] >= max_attempts
        reason = f"no N-EVENT-REPORT within {older_than:.0f} s" + (f", {max_attempts} times" if last else "")
        with db.transaction() as connection:
            moved += _commit_move(connection, row, D.DEAD if last else D.SENT, reason, now, not_before=now)
    return moved


def retry(db: Database, delivery_id: str, now: float) -> bool:
    """Send a DEAD delivery again, with all its time and attempts, as a person asks. False: it is not DEAD."""
    changes = {"attempts": 0, "commit_attempts": 0, "not_before": now, "created_at": now, "updated_at": now, **FREE}
    return _revive(db, delivery_id, D.PENDING, now, "retried by a person", changes)


def drop(db: Database, delivery_id: str, now: float) -> bool:
    """Give a DEAD delivery up, as a person asks. False: it is not DEAD."""
    return _revive(db, delivery_id, D.DROPPED, now, "dropped by a person", {"updated_at": now})


def _revive(db: Database, delivery_id: str, to: D, now: float, reason: str, changes: Mapping[str, Any]) -> bool:
    with db.transaction() as connection:
        moved = move(connection, "delivery", delivery_id, D.DEAD, to, now, reason, changes=changes)
        if moved:
            (row,) = rows(connection, _SELECT + "WHERE d.id = :id", id=delivery_id)
            revived(connection, row["job_id"], now, f"a delivery was {reason}")
        return moved


def listing(db: Database, state: str | None = None, limit: int = 100, offset: int = 0) -> list[dict[str, Any]]:
    """Return deliveries with what they carry, the most recently changed first."""
    with db.reader() as connection:
        return rows(
            connection,
            _SELECT + "WHERE :state = '' OR d.state = :state "
            "ORDER BY d.updated_at DESC, d.id LIMIT :limit OFFSET :offset",
            state=state or "",
            limit=limit,
            offset=offset,
        )


def show(db: Database, delivery_id: str) -> dict[str, Any]:
    """Return one delivery with what it carries and its `history`; raises `NotFound`."""
    with db.reader() as connection:
        found = rows(connection, _SELECT + "WHERE d.id = :id", id=delivery_id)
        if not found:
            raise NotFound(f"There is no delivery {delivery_id}. `wetread deliveries list` names them.")
        return {**found[0], "history": history(connection, "delivery", delivery_id)}


def of_study(connection: sa.Connection, study_instance_uid: str) -> list[dict[str, Any]]:
    """Return the deliveries of all revisions of a study, in the order of their making."""
    statement = _SELECT + "WHERE j.study_instance_uid = :uid ORDER BY d.created_at, d.id"
    return rows(connection, statement, uid=study_instance_uid)


def _end(
    db: Database, delivery: ClaimedDelivery, worker: str, to: D, status: str, reason: str, now: float, **changes: Any
) -> bool:
    where = {"leased_by": worker, "fence": delivery.fence}
    changes = {"last_status": status, "reason": reason, "updated_at": now, **FREE, **changes}
    told = f"{status}: {reason}" if status else reason
    with db.transaction() as connection:
        return move(connection, "delivery", delivery.id, D.SENDING, to, now, told, where=where, changes=changes)


def _in_transaction(connection: sa.Connection, transaction_uid: str) -> list[dict[str, Any]]:
    statement = "SELECT * FROM delivery WHERE transaction_uid = :uid AND state = 'COMMITTING' ORDER BY id"
    return rows(connection, statement, uid=transaction_uid)


def _not_committed(connection: sa.Connection, row: dict[str, Any], code: int, now: float, max_attempts: int) -> bool:
    """Send again what is not there, ask again for the rest, give up in the end.

    What is not there counts by how often it got lost, not by how often it was asked for: the bytes are here.
    """
    reason = f"{row['destination']} does not commit to keep it: Failure Reason {code:04X}H"
    lost = code == NO_SUCH_OBJECT
    spent = _losses(connection, row["id"]) + 1 if lost else row["commit_attempts"]
    if code in _REFUSED or spent >= max_attempts:
        return _commit_move(connection, row, D.DEAD, reason, now)
    changes = {"not_before": now + 5.0 * row["commit_attempts"], **({"commit_attempts": 0} if lost else {})}
    return _commit_move(connection, row, D.PENDING if lost else D.SENT, reason, now, **changes)


def _losses(connection: sa.Connection, delivery_id: str) -> int:
    """Return how often a destination did not have what it had taken, since a person last had it sent again."""
    found = rows(
        connection,
        "SELECT COUNT(*) AS times FROM event WHERE entity = 'delivery' AND entity_id = :id AND from_state = "
        "'COMMITTING' AND to_state = 'PENDING' AND number > (SELECT COALESCE(MAX(number), 0) FROM event WHERE "
        "entity = 'delivery' AND entity_id = :id AND from_state = 'DEAD')",
        id=delivery_id,
    )
    return int(found[0]["times"])


def _commit_move(
    connection: sa.Connection, row: dict[str, Any], to: D, reason: str, now: float, **changes: Any
) -> bool:
    where = {"transaction_uid": row["transaction_uid"]}
    changes = {"reason": reason, "updated_at": now, "rung_at": 0.0, **changes}
    return move(connection, "delivery", row["id"], D.COMMITTING, to, now, reason, where=where, changes=changes)
