"""Derived states: a job is done when its deliveries arrived, a study when its jobs ended. Computed again at will."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from node.crashpoints import reach
from node.states import DeliveryState as D
from node.states import JobState as J
from node.states import StudyState as S
from node.store.db import Database, move, rows
from node.store.transfers import Transfer

_UNDER_WAY = frozenset({J.QUEUED, J.RUNNING, J.REPORTED})
_REPORTED = (
    "SELECT j.id, j.study_instance_uid AS study, d.state AS delivery, d.destination FROM job j "
    "LEFT JOIN evidence e ON e.job_id = j.id LEFT JOIN delivery d ON d.sop_instance_uid = e.sop_instance_uid "
    "WHERE j.state = 'REPORTED' ORDER BY j.id"
)
_ROUTED = (
    "SELECT s.study_instance_uid AS study, s.state, s.revision, j.id, j.state AS job, d.state AS delivery, "
    "d.destination FROM study s JOIN job j ON j.study_instance_uid = s.study_instance_uid AND j.revision = s.revision "
    "LEFT JOIN evidence e ON e.job_id = j.id LEFT JOIN delivery d ON d.sop_instance_uid = e.sop_instance_uid "
    "WHERE s.state IN :states ORDER BY s.study_instance_uid, j.id"
)


Arrived = Callable[[Transfer], None]
"""Is told of results that have arrived, before the move is noted: a crash between lets it be told twice, never not."""


def settle(
    db: Database,
    now: float,
    committing: Collection[str] = (),
    arrived: Arrived = lambda transfer: None,
    failed: bool = True,
) -> int:
    """Move what has come to its end; return how many jobs and studies moved.

    `committing`: the destinations that give storage commitment, where SENT is not the end. Jobs REPORTED → DONE when
    every delivery is SENT (or COMMITTED there) or DROPPED. Studies ROUTED → DONE when each job of the current
    revision is DONE, UNSUITABLE or DROPPED; → FAILED when nothing is under way and something is DEAD. A person's
    retry or drop makes a FAILED study ROUTED again (`revived`), so that those need not be looked at each time: not
    `failed`.
    """
    states = (S.ROUTED, S.FAILED) if failed else (S.ROUTED,)
    return _settle_jobs(db, now, committing, arrived) + _settle_studies(db, now, committing, states)


def revived(connection: sa.Connection, job_id: str, now: float, reason: str) -> None:
    """Make the study of a job ROUTED again, as part of a person's retry or drop, if it is FAILED and of that revision.

    Where it belongs then, `settle` says.
    """
    (job,) = rows(connection, "SELECT study_instance_uid AS study, revision FROM job WHERE id = :id", id=job_id)
    where, changes = {"revision": job["revision"]}, {"reason": reason}
    move(connection, "study", job["study"], S.FAILED, S.ROUTED, now, reason, where=where, changes=changes)


def _settle_jobs(db: Database, now: float, committing: Collection[str], arrived: Arrived) -> int:
    with db.reader() as connection:
        found = rows(connection, _REPORTED)
    moved = 0
    for job_id, group in groupby(found, key=lambda row: row["id"]):
        states = [row for row in group if row["delivery"] is not None]
        if all(_arrived(row, committing) for row in states):
            _tell(states, arrived)
            reason = f"{len(states)} deliveries arrived"
            with db.transaction() as connection:
                moved += move(connection, "job", job_id, J.REPORTED, J.DONE, now, reason, changes={"updated_at": now})
    return moved


def _tell(deliveries: Sequence[dict[str, Any]], arrived: Arrived) -> None:
    """One transfer for each destination that has at least one of them."""
    counts = Counter((row["study"], row["destination"]) for row in deliveries if row["delivery"] != D.DROPPED)
    for (study, destination), count in counts.items():
        arrived(Transfer(study, destination, count))


def _settle_studies(db: Database, now: float, committing: Collection[str], states: Collection[S]) -> int:
    with db.reader() as connection:
        found = rows(connection, _ROUTED, states=tuple(states))
    moved = 0
    for study_uid, group in groupby(found, key=lambda row: row["study"]):
        lines = list(group)
        state, revision = S(lines[0]["state"]), lines[0]["revision"]
        to, reason = _outcome(lines, committing)
        if to != state:
            reach("settle.before")
            at_revision = {"revision": revision}  # it may have been reopened since
            with db.transaction() as connection:
                moved += move(
                    connection,
                    "study",
                    study_uid,
                    state,
                    to,
                    now,
                    reason,
                    where=at_revision,
                    changes={"reason": reason},
                )
    return moved


def _outcome(lines: list[dict[str, Any]], committing: Collection[str]) -> tuple[S, str]:
    """Return where a study belongs, from its jobs of the current revision and their deliveries."""
    by_job = {job_id: list(group) for job_id, group in groupby(lines, key=lambda row: row["id"])}
    jobs = Counter(_standing(group, committing) for group in by_job.values())
    dead_deliveries = sum(row["delivery"] == D.DEAD for row in lines)
    if jobs["under way"]:
        return S.ROUTED, f"{jobs['under way']} jobs under way"
    if jobs["dead"]:
        dead_jobs = sum(group[0]["job"] == J.DEAD for group in by_job.values())
        return S.FAILED, f"{dead_jobs} jobs and {dead_deliveries} deliveries are dead; `wetread dead list` names them"
    ends = Counter(group[0]["job"].lower() for group in by_job.values())
    return S.DONE, "jobs: " + ", ".join(f"{count} {state}" for state, count in sorted(ends.items()))


def _standing(job: list[dict[str, Any]], committing: Collection[str]) -> str:
    if job[0]["job"] == J.DEAD:
        return "dead"
    waiting = [row for row in job if row["delivery"] is not None and not _arrived(row, committing)]
    if job[0]["job"] not in _UNDER_WAY and not (job[0]["job"] == J.UNSUITABLE and waiting):
        return "ended"  # of a series that was declined a report may still be on its way
    all_dead = bool(waiting) and all(row["delivery"] == D.DEAD for row in waiting)
    return "dead" if job[0]["job"] in (J.REPORTED, J.UNSUITABLE) and all_dead else "under way"


def _arrived(row: dict[str, Any], committing: Collection[str]) -> bool:
    if row["delivery"] == D.SENT:
        return row["destination"] not in committing
    return row["delivery"] in (D.COMMITTED, D.DROPPED)
