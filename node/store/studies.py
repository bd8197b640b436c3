"""Studies: frozen when complete, routed once; `settle` derives that they are done."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa

from node.crashpoints import reach
from node.errors import NotFound
from node.states import StudyState as S
from node.store import completion, deliveries, jobs
from node.store.db import Database, history, move, rows
from node.store.ordering import NewJob, insert
from node.store.registration import Received as Received
from node.store.registration import hold
from node.store.registration import register as register
from node.store.registration import registered as registered
from node.store.settling import settle as settle


@dataclass(frozen=True)
class InstanceRow:
    """One instance of a manifest; `revision` is the first one that has it."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    study_instance_uid: str
    series_instance_uid: str
    path: str
    sha256: str
    size: int
    received_at: float
    revision: int


def complete(
    db: Database,
    study_uid: str,
    now: float,
    reason: str,
    seen_last_received_at: float | None = None,
    rerun: bool = True,
) -> int | None:
    """Take the study as complete: revision + 1, its manifest frozen. Returns the revision; None if another won.

    With `seen_last_received_at`, an instance that arrived since somebody looked is waited for, too (also None).
    Without `rerun` its images are those of the revision before: where that was routed, its results stand and the
    study goes straight on to DONE.
    """
    with db.transaction() as connection:
        study = hold(connection, study_uid)
        if study is None or study["state"] != S.RECEIVING:
            return None
        if seen_last_received_at not in (None, study["last_received_at"]):
            return None
        revision = int(study["revision"]) + 1
        changes = {
            "revision": revision,
            "completed_at": now,
            "manifest_sha256": manifest_sha256(manifest_in(connection, study_uid, revision)),
            "reason": reason,
        }
        move(
            connection,
            "study",
            study_uid,
            S.RECEIVING,
            S.COMPLETE,
            now,
            f"revision {revision}: {reason}",
            changes=changes,
        )
        completion.forget(connection, [study_uid])
        if not rerun and _was_routed(connection, study_uid):
            stand = f"{reason}; only headers changed since revision {revision - 1}, and its results stand"
            for left, to in ((S.COMPLETE, S.ROUTED), (S.ROUTED, S.DONE)):
                move(connection, "study", study_uid, left, to, now, stand, changes={"reason": stand})
        reach("assemble.before_commit")
        return revision


def manifest(db: Database, study_uid: str, revision: int) -> list[InstanceRow]:
    """Return the instances that the study consists of in this revision, by series and SOP Instance UID.

    Our own results are not among them, nor is what retention removed before the revision was complete. Where one SOP
    Instance UID came with different bytes, the copy received last stands (a corrected header sent again), and the
    history of the instance tells of it.
    """
    with db.reader() as connection:
        return manifest_in(connection, study_uid, revision)


def removed_before(db: Database, study_uid: str, revision: int) -> dict[str, int]:
    """Return, by Series Instance UID, how many instances retention removed before this revision was complete."""
    with db.reader() as connection:
        found = rows(
            connection,
            "SELECT series_instance_uid, COUNT(*) AS many FROM instance WHERE study_instance_uid = :uid "
            "AND is_own_result = 0 AND last_revision < :revision GROUP BY series_instance_uid",
            uid=study_uid,
            revision=revision,
        )
    return {row["series_instance_uid"]: int(row["many"]) for row in found}


def manifest_sha256(instances: Iterable[InstanceRow]) -> str:
    """Return the SHA-256 over the sorted (SOP Instance UID, SHA-256) of the instances: the key of what was read."""
    total = hashlib.sha256()
    for uid, sha256 in sorted((i.sop_instance_uid, i.sha256) for i in instances):
        total.update(f"{uid} {sha256}\n".encode())
    return total.hexdigest()


def to_route(db: Database) -> list[tuple[str, int]]:
    """Return (Study Instance UID, revision) of the studies that wait for the router, the first completed first."""
    with db.reader() as connection:
        statement = "SELECT study_instance_uid, revision FROM study WHERE state = 'COMPLETE' ORDER BY completed_at"
        return [(row["study_instance_uid"], int(row["revision"])) for row in rows(connection, statement)]


def routed(db: Database, study_uid: str, revision: int, new_jobs: Sequence[NewJob], reason: str, now: float) -> bool:
    """Insert the jobs and move COMPLETE → ROUTED in one transaction; without jobs straight on to DONE.

    False: another router won, or a late instance reopened the study; nothing was inserted.
    """
    with db.transaction() as connection:
        at_revision = {"revision": revision}
        if not move(
            connection,
            "study",
            study_uid,
            S.COMPLETE,
            S.ROUTED,
            now,
            reason,
            where=at_revision,
            changes={"reason": reason},
        ):
            return False
        if not new_jobs:
            move(connection, "study", study_uid, S.ROUTED, S.DONE, now, reason)
        insert(connection, new_jobs, now)
        reach("route.before_commit")
    reach("route.after")
    return True


def waits(db: Database, study_uid: str, revision: int, reason: str) -> None:
    """Say for people what a COMPLETE study waits for; it stays where it is."""
    statement = (
        "UPDATE study SET reason = :reason "
        "WHERE study_instance_uid = :uid AND state = 'COMPLETE' AND revision = :revision"
    )
    with db.transaction() as connection:
        connection.execute(sa.text(statement), {"reason": reason, "uid": study_uid, "revision": revision})


def listing(db: Database, state: str | None = None, limit: int = 100, offset: int = 0) -> list[dict[str, Any]]:
    """Return studies, the last received first, with `instances` (a count) and `jobs` of the current revision."""
    with db.reader() as connection:
        studies = rows(
            connection,
            "SELECT s.*, (SELECT COUNT(*) FROM instance i WHERE i.study_instance_uid = s.study_instance_uid) "
            "AS instances FROM study s WHERE :state = '' OR state = :state "
            "ORDER BY last_received_at DESC, study_instance_uid LIMIT :limit OFFSET :offset",
            state=state or "",
            limit=limit,
            offset=offset,
        )
        found = rows(
            connection,
            "SELECT id, study_instance_uid, revision, series_instance_uid, bundle, bundle_version, state, reason, "
            "summary FROM job WHERE study_instance_uid IN :uids ORDER BY created_at, id",
            uids=[study["study_instance_uid"] for study in studies],
        )
    for study in studies:
        key = (study["study_instance_uid"], study["revision"])
        study["jobs"] = [job for job in found if (job["study_instance_uid"], job["revision"]) == key]
    return studies


def show(db: Database, study_uid: str) -> dict[str, Any]:
    """Return one study with its `series`, `jobs` and `deliveries` of all revisions and its `history`.

    Raises `NotFound`.
    """
    with db.reader() as connection:
        found = rows(connection, "SELECT * FROM study WHERE study_instance_uid = :uid", uid=study_uid)
        if not found:
            raise NotFound(f"There is no study {study_uid}. `wetread studies list` names them.")
        return {
            **found[0],
            "series": rows(connection, _SERIES, uid=study_uid),
            "jobs": jobs.of_study(connection, study_uid),
            "deliveries": deliveries.of_study(connection, study_uid),
            "history": history(connection, "study", study_uid),
        }


_SERIES = (
    "SELECT series_instance_uid, is_own_result, COUNT(*) AS instances, COUNT(removed_at) AS removed, "
    "SUM(size) AS size, MIN(received_at) AS first_received_at, MAX(received_at) AS last_received_at FROM instance "
    "WHERE study_instance_uid = :uid GROUP BY series_instance_uid, is_own_result ORDER BY series_instance_uid"
)


def _was_routed(connection: sa.Connection, study_uid: str) -> bool:
    """Say whether the revision before was routed: whence the study was reopened tells."""
    events = history(connection, "study", study_uid)
    reopened = [e["from_state"] for e in events if e["to_state"] == S.RECEIVING and e["from_state"] != S.CONFLICT]
    return reopened[-1] in (S.ROUTED, S.DONE, S.FAILED)


def manifest_in(connection: sa.Connection, study_uid: str, revision: int) -> list[InstanceRow]:
    """Do what `manifest` does, inside the caller's transaction."""
    names = [field.name for field in fields(InstanceRow)]
    found = rows(
        connection,
        f"SELECT {', '.join(names)} FROM instance WHERE study_instance_uid = :uid "  # noqa: S608 - our own names
        "AND revision <= :revision AND (last_revision IS NULL OR last_revision >= :revision) AND is_own_result = 0 "
        "AND (excluded_from IS NULL OR excluded_from > :revision) "
        "ORDER BY received_at, revision, sha256",
        uid=study_uid,
        revision=revision,
    )
    last = {row["sop_instance_uid"]: InstanceRow(**row) for row in found}
    return sorted(last.values(), key=lambda i: (i.series_instance_uid, i.sop_instance_uid))
