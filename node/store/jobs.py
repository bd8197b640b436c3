"""Jobs: one Model Bundle × one series × one study revision; claimed with a lease and a fence, ended exactly once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import sqlalchemy as sa

from node import uids
from node.crashpoints import reach
from node.errors import NotFound
from node.states import DeliveryState, JobState
from node.store import leases
from node.store.db import Database, history, move, record, rows
from node.store.leases import FREE, JOBS
from node.store.ordering import LISTS
from node.store.ordering import NewJob as NewJob
from node.store.settling import revived

BACK_OFF_S = (5.0, 15.0, 60.0, 300.0, 900.0)
"""How long a job rests after its first, second, … failed attempt; the last value holds from then on."""
LEASE_S = 30.0
MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Claimed(NewJob):
    """A job in the hands of one worker; `fence` proves it, `attempts` counts this attempt too."""

    id: str
    fence: int
    attempts: int


@dataclass(frozen=True)
class Document:
    """One Evidence Document in the spool: `kind` is SR, SEG or SC, `sha256` and `size` are of the file."""

    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    path: str
    sha256: str
    size: int


def to_ring(db: Database, now: float, again_after: float, limit: int = 1000) -> list[str]:
    """Return the ids of due jobs that the broker should be told of (again), the most urgent and then oldest first."""
    return leases.to_ring(db, JOBS, now, again_after, limit)


def rung(db: Database, ids: Sequence[str], now: float) -> None:
    """Note that the broker was told of `ids`."""
    leases.rung(db, JOBS, ids, now)


def claim(db: Database, job_id: str, worker: str, now: float, lease: float = LEASE_S) -> Claimed | None:
    """Take a due job for `lease` seconds; None when there is none or another worker has it."""
    with db.transaction() as connection:
        row = leases.claim(connection, JOBS, job_id, worker, now, lease)
    return _claimed(row)


def claim_most_urgent(db: Database, rung_id: str, worker: str, now: float, lease: float = LEASE_S) -> Claimed | None:
    """Take the most urgent due job, of equally urgent ones the one that was rung for.

    The broker hands out its messages in the order of their coming, and a STAT job may have come last: a message says
    that there is work, and the database says which is next. None when nothing is due.
    """
    with db.transaction() as connection:
        found = rows(
            connection,
            "SELECT id FROM job WHERE state = 'QUEUED' AND not_before <= :now ORDER BY priority DESC, "
            "CASE WHEN id = :rung THEN 0 ELSE 1 END, created_at, id LIMIT 20",
            now=now,
            rung=rung_id,
        )
        for candidate in found:  # on PostgreSQL another worker may take one between the two statements
            if row := leases.claim(connection, JOBS, candidate["id"], worker, now, lease):
                return _claimed(row)
    return None


def heartbeat(db: Database, job_id: str, worker: str, fence: int, now: float, lease: float = LEASE_S) -> bool:
    """Extend the lease; False: it is lost, so kill the reader and discard what it made."""
    return leases.heartbeat(db, JOBS, job_id, worker, fence, now, lease)


def expire(db: Database, now: float, max_attempts: int = MAX_ATTEMPTS) -> int:
    """Take jobs back whose worker fell silent: QUEUED again, or DEAD after `max_attempts`; return how many."""
    taken = 0
    for row in leases.lapsed(db, JOBS, now):
        silent = f"{row['leased_by']} fell silent on attempt {row['attempts']}"
        to, reason = _after_failure(row["attempts"], max_attempts, silent)
        # A heartbeat may have come since the row was read: its lease is part of the guard.
        where = {"fence": row["fence"], "leased_until": row["leased_until"]}
        with db.transaction() as connection:
            changes = {"not_before": now, "reason": reason, "updated_at": now, **FREE}
            taken += move(connection, "job", row["id"], JobState.RUNNING, to, now, reason, where=where, changes=changes)
    return taken


def reported(
    db: Database, claimed: Claimed, worker: str, documents: Sequence[Document], summary: str, now: float
) -> bool:
    """File the results: evidence, deliveries and REPORTED in one transaction. False: the lease was lost, file nothing.

    The files must be in the spool already. A document that is known keeps the bytes that were filed first, unless
    retention removed them since; a destination that got those is still not sent others under the same UID.
    """
    reach("report.before")
    with db.transaction() as connection:
        reason = f"{len(documents)} Evidence Documents for {', '.join(claimed.send_to) or 'nobody'}"
        if not _end(connection, claimed, worker, JobState.REPORTED, reason, now, summary=summary):
            return False
        for document in documents:
            _file(connection, claimed, document, now)
        reach("report.before_commit")
    reach("report.after")
    return True


def unsuitable(
    db: Database, claimed: Claimed, worker: str, reason: str, now: float, documents: Sequence[Document] = ()
) -> bool:
    """End the job with the answer that the bundle must not read this series. False: the lease was lost.

    `documents`: the report that says so, where the route wants one; filed and delivered as any other.
    """
    with db.transaction() as connection:
        if not _end(connection, claimed, worker, JobState.UNSUITABLE, reason, now):
            return False
        for document in documents:
            _file(connection, claimed, document, now)
    return True


def failed(
    db: Database,
    claimed: Claimed,
    worker: str,
    reason: str,
    now: float,
    transient: bool,
    max_attempts: int = MAX_ATTEMPTS,
) -> JobState | None:
    """Note a failed attempt: QUEUED with back-off, or DEAD when permanent or out of attempts. None: lease lost."""
    to, told = _after_failure(claimed.attempts, max_attempts if transient else 0, reason)
    rest = BACK_OFF_S[min(max(claimed.attempts, 1), len(BACK_OFF_S)) - 1] if to == JobState.QUEUED else 0.0
    with db.transaction() as connection:
        return to if _end(connection, claimed, worker, to, told, now, not_before=now + rest) else None


def released(db: Database, claimed: Claimed, worker: str, reason: str, now: float, rest_s: float = 0.0) -> bool:
    """Give a job back untouched, as a worker does that is told to stop; the attempt is not counted."""
    changes = {"attempts": max(claimed.attempts - 1, 0), "not_before": now + rest_s}
    with db.transaction() as connection:
        return _end(connection, claimed, worker, JobState.QUEUED, reason, now, **changes)


def retry(db: Database, job_id: str, now: float) -> bool:
    """Queue a DEAD job again with all its attempts, as a person asks. False: it is not DEAD."""
    changes = {"attempts": 0, "not_before": now, "updated_at": now, **FREE}
    return _revive(db, job_id, JobState.QUEUED, now, "retried by a person", changes)


def drop(db: Database, job_id: str, now: float) -> bool:
    """Give a DEAD job up, as a person asks. False: it is not DEAD."""
    return _revive(db, job_id, JobState.DROPPED, now, "dropped by a person", {"updated_at": now})


def _revive(db: Database, job_id: str, to: JobState, now: float, reason: str, changes: Mapping[str, Any]) -> bool:
    with db.transaction() as connection:
        moved = move(connection, "job", job_id, JobState.DEAD, to, now, reason, changes=changes)
        if moved:
            revived(connection, job_id, now, f"a job was {reason}")
        return moved


def predecessors(
    db: Database, study_instance_uid: str, series_instance_uid: str, bundle: str, before_revision: int
) -> list[str]:
    """Return the spool paths of the SRs of the latest earlier revision that has any.

    They are what the Predecessor Documents Sequence (PS3.3 §C.17.2) of the new SR names; each of them names its own.
    Those that retention removed are left out.
    """
    with db.reader() as connection:
        found = rows(
            connection,
            "SELECT e.path, j.revision FROM evidence e JOIN job j ON j.id = e.job_id "
            "WHERE j.study_instance_uid = :study AND j.series_instance_uid = :series AND j.bundle = :bundle "
            "AND j.revision < :revision AND e.kind = 'SR' AND e.removed_at IS NULL "
            "ORDER BY e.created_at, e.sop_instance_uid",
            study=study_instance_uid,
            series=series_instance_uid,
            bundle=bundle,
            revision=before_revision,
        )
    latest = max((row["revision"] for row in found), default=0)
    return [row["path"] for row in found if row["revision"] == latest]


def listing(db: Database, state: str | None = None, limit: int = 100, offset: int = 0) -> list[dict[str, Any]]:
    """Return jobs, the most recently changed first."""
    with db.reader() as connection:
        found = rows(
            connection,
            "SELECT * FROM job WHERE :state = '' OR state = :state "
            "ORDER BY updated_at DESC, id LIMIT :limit OFFSET :offset",
            state=state or "",
            limit=limit,
            offset=offset,
        )
    return [_decoded(row) for row in found]


def show(db: Database, job_id: str) -> dict[str, Any]:
    """Return one job with its `evidence`, `deliveries` and `history`; raises `NotFound`."""
    with db.reader() as connection:
        found = rows(connection, "SELECT * FROM job WHERE id = :id", id=job_id)
        if not found:
            raise NotFound(f"There is no job {job_id}. `wetread jobs list` names them.")
        evidence = rows(connection, "SELECT * FROM evidence WHERE job_id = :id ORDER BY sop_instance_uid", id=job_id)
        deliveries = rows(
            connection,
            "SELECT d.* FROM delivery d JOIN evidence e ON e.sop_instance_uid = d.sop_instance_uid "
            "WHERE e.job_id = :id ORDER BY d.destination, d.sop_instance_uid",
            id=job_id,
        )
        events = history(connection, "job", job_id)
    return {**_decoded(found[0]), "evidence": evidence, "deliveries": deliveries, "history": events}


def of_study(connection: sa.Connection, study_instance_uid: str) -> list[dict[str, Any]]:
    """Return the jobs of all revisions of a study, in the order of their making."""
    statement = "SELECT * FROM job WHERE study_instance_uid = :uid ORDER BY revision, created_at, id"
    return [_decoded(row) for row in rows(connection, statement, uid=study_instance_uid)]


def _claimed(row: dict[str, Any] | None) -> Claimed | None:
    if row is None:
        return None
    names = {field.name for field in fields(Claimed)}
    return Claimed(**{name: value for name, value in _decoded(row).items() if name in names})


def _end(
    connection: sa.Connection, claimed: Claimed, worker: str, to: JobState, reason: str, now: float, **changes: Any
) -> bool:
    where = {"leased_by": worker, "fence": claimed.fence}
    changes = {"reason": reason, "updated_at": now, **FREE, **changes}
    return move(connection, "job", claimed.id, JobState.RUNNING, to, now, reason, where=where, changes=changes)


def _after_failure(
    attempts: int, max_attempts: int, reason: str
) -> tuple[Literal[JobState.QUEUED, JobState.DEAD], str]:
    if attempts < max_attempts:
        return JobState.QUEUED, reason
    tried = f" (tried {attempts} times)" if attempts > 1 else ""
    return JobState.DEAD, f"{reason}{tried}"


def _file(connection: sa.Connection, claimed: Claimed, document: Document, now: float) -> None:
    connection.execute(
        sa.text(
            "INSERT INTO evidence (sop_instance_uid, job_id, kind, sop_class_uid, series_instance_uid, path, sha256, "
            "size, created_at) VALUES (:sop_instance_uid, :job_id, :kind, :sop_class_uid, :series_instance_uid, :path, "
            ":sha256, :size, :now) ON CONFLICT (sop_instance_uid) DO UPDATE SET path = :path, sha256 = :sha256, "
            "size = :size, created_at = :now, removed_at = NULL WHERE evidence.removed_at IS NOT NULL"
        ),
        {**asdict(document), "job_id": claimed.id, "now": now},
    )
    for destination in claimed.send_to:
        delivery_id = uids.derive_id("delivery", document.sop_instance_uid, destination)
        values = {"id": delivery_id, "uid": document.sop_instance_uid, "destination": destination, "now": now}
        made = connection.execute(
            sa.text(
                "INSERT INTO delivery (id, sop_instance_uid, destination, state, created_at, updated_at) "
                "VALUES (:id, :uid, :destination, 'PENDING', :now, :now) ON CONFLICT DO NOTHING"
            ),
            values,
        )
        if made.rowcount == 1:
            reason = f"{document.kind} for {destination}"
            record(connection, "delivery", delivery_id, "", DeliveryState.PENDING, now, reason)


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, **{name: tuple(json.loads(row[name])) for name in LISTS}}
