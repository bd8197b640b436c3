"""Rows for the tests of the store: instances, jobs and documents with made-up but well-formed values."""

from __future__ import annotations

import hashlib
from typing import Any

from node.store import deliveries, jobs, studies
from node.store.db import Database
from node.store.deliveries import ClaimedDelivery
from node.store.jobs import Claimed, Document, NewJob
from node.store.studies import Received

STUDY = "1.2.826.0.1.3680043.8.498.1"
SERIES = f"{STUDY}.1"


def received(number: int, at: float = 100.0, content: str = "", **changes: Any) -> Received:
    """Instance `number` of the study, received at `at`."""
    sha256 = hashlib.sha256(f"{number} {content}".encode()).hexdigest()
    values: dict[str, Any] = {
        "sop_instance_uid": f"{SERIES}.{number}",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.4",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "study_instance_uid": STUDY,
        "series_instance_uid": SERIES,
        "sha256": sha256,
        "path": f"instances/{sha256[:2]}/{sha256}.dcm",
        "size": 1000 + number,
        "calling_ae": "MODALITY",
        "is_own_result": False,
        "received_at": at,
    }
    return Received(**(values | changes))


def new_job(**changes: Any) -> NewJob:
    """The hippocampus job of revision 1, for one destination."""
    values: dict[str, Any] = {
        "study_instance_uid": STUDY,
        "revision": 1,
        "series_instance_uid": SERIES,
        "bundle": "hippocampus",
        "bundle_version": "1.0.0",
        "bundle_digest": "d" * 64,
        "route": "head",
        "results": ("SR", "SEG"),
        "send_to": ("pacs",),
    }
    return NewJob(**(values | changes))


def document(name: str, kind: str = "SR") -> Document:
    """An Evidence Document called `name`, as the worker files it."""
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    path = f"results/{sha256[:2]}/{sha256}.dcm"
    return Document(kind, "1.2.840.10008.5.1.4.1.1.88.34", f"2.25.{int(sha256[:12], 16)}", "2.25.7", path, sha256, 99)


def routed(db: Database, *new_jobs: NewJob, now: float = 200.0) -> list[str]:
    """Receive, complete and route one study with these jobs (none named: the usual one); return their ids."""
    studies.register(db, [received(1, at=now - 100), received(2, at=now - 100)])
    revision = studies.complete(db, STUDY, now, "quiet")
    assert revision is not None
    ordered = new_jobs or (new_job(revision=revision),)
    assert studies.routed(db, STUDY, revision, ordered, "routed", now)
    return [job.job_id for job in ordered]


def running(db: Database, now: float = 200.0, worker: str = "w1", **changes: Any) -> Claimed:
    """A job that `worker` has just claimed."""
    claimed = jobs.claim(db, routed(db, new_job(**changes), now=now)[0], worker, now)
    assert claimed is not None
    return claimed


def sending(db: Database, now: float = 200.0, worker: str = "w1", **changes: Any) -> ClaimedDelivery:
    """The delivery of one SR that `worker` has just claimed."""
    assert jobs.reported(db, running(db, now, **changes), "w1", [document("sr")], "", now)
    claimed = deliveries.claim(db, deliveries.to_ring(db, now, 30)[0], worker, now)
    assert claimed is not None
    return claimed


def state_of(db: Database, entity: str, entity_id: str) -> str:
    """Return the state of a study, job or delivery."""
    show = {"study": studies.show, "job": jobs.show, "delivery": deliveries.show}[entity]
    return str(show(db, entity_id)["state"])
