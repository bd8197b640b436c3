"""Ordering: the router's jobs enter the queue, each once however often and by however many routes it is ordered."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

import sqlalchemy as sa

from node import uids
from node.states import JobState
from node.store.db import record

LISTS = ("results", "send_to", "instances")
"""The columns of a job that hold a JSON list."""

DECLINE = ("silent", "report", "never")
"""What becomes of declined images, by what says more: of two routes the later one here holds."""


@dataclass(frozen=True)
class NewJob:
    """A job as the router orders it; `results` names the kinds of Evidence Document, `send_to` the destinations.

    `instances` names the SOP Instances of the series to be read; none named: all of them. `decline`: see `Route`.
    """

    study_instance_uid: str
    revision: int
    series_instance_uid: str
    bundle: str
    bundle_version: str
    bundle_digest: str
    route: str
    results: tuple[str, ...]
    send_to: tuple[str, ...]
    instances: tuple[str, ...] = field(default=(), kw_only=True)
    priority: int = field(default=0, kw_only=True)
    """0 routine, 1 high, 2 stat."""
    decline: str = field(default="silent", kw_only=True)

    @property
    def job_id(self) -> str:
        """The id that belongs to the job's unique key: ordered twice, it is one job."""
        key = (self.study_instance_uid, str(self.revision), self.series_instance_uid)
        return uids.derive_id("job", *key, self.bundle, self.bundle_version, self.bundle_digest)


def insert(connection: sa.Connection, jobs: Iterable[NewJob], now: float) -> int:
    """Insert jobs that are not there yet; return how many were new. Part of the router's transaction."""
    return sum(_insert(connection, job, now) for job in _merged(jobs))


def _insert(connection: sa.Connection, job: NewJob, now: float) -> bool:
    values = asdict(job) | {name: json.dumps(getattr(job, name)) for name in LISTS}
    made = connection.execute(
        sa.text(
            "INSERT INTO job (id, study_instance_uid, revision, series_instance_uid, bundle, bundle_version, "
            "bundle_digest, route, results, send_to, instances, priority, decline, state, created_at, updated_at) "
            "VALUES (:id, :study_instance_uid, :revision, :series_instance_uid, :bundle, :bundle_version, "
            ":bundle_digest, :route, :results, :send_to, :instances, :priority, :decline, 'QUEUED', :now, :now) "
            "ON CONFLICT DO NOTHING"
        ),
        {**values, "id": job.job_id, "now": now},
    )
    if made.rowcount == 1:
        record(connection, "job", job.job_id, "", JobState.QUEUED, now, f"route {job.route}")
    return made.rowcount == 1


def _merged(jobs: Iterable[NewJob]) -> list[NewJob]:
    """Two routes may order the same job: one job on all their instances, with the results and destinations of both."""
    merged: dict[str, NewJob] = {}
    for job in jobs:
        other = merged.setdefault(job.job_id, job)
        if other is not job:
            merged[job.job_id] = replace(
                other,
                route=", ".join(dict.fromkeys((*other.route.split(", "), job.route))),
                results=tuple(dict.fromkeys((*other.results, *job.results))),
                send_to=tuple(dict.fromkeys((*other.send_to, *job.send_to))),
                instances=_union(other.instances, job.instances),
                priority=max(other.priority, job.priority),
                decline=max(other.decline, job.decline, key=DECLINE.index),
            )
    return list(merged.values())


def _union(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    """Join two choices of instances; none named means all, and all stays all."""
    return tuple(dict.fromkeys((*one, *other))) if one and other else ()
