"""The two tasks, `read(job_id)` and `send(delivery_id)`: claim, work, file.

An id is all that a message carries, and all that is believed of it is that it is one. Whatever happens in between,
the lease runs out and another worker takes over; what ends a job names the lease's fence.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from node import bundles, clock, trust
from node.bundles import Bundle
from node.clock import Clock
from node.configvalues import ResultKind
from node.crashpoints import reach
from node.errors import BundleError, DatabaseUnavailable, NoRoom, Permanent, Unsuitable, WetreadError
from node.settings import Settings, state_folder
from node.store import deliveries, jobs, studies
from node.store.db import Database
from node.store.jobs import Claimed, Document
from node.store.spool import Spool
from node.store.studies import InstanceRow
from node.study import read_instance
from workers.pipeline import Outcome, Request
from workers.reader import Readers
from workers.room import REST_S, Room
from workers.send import outbox
from workers.send.lanes import Lanes

log = logging.getLogger(__name__)

GRACE_S = 10.0
"""How long a reading may go on after the worker is told to stop."""


@dataclass
class Desk:
    """What a worker works with; `worker` names it in leases, `stopping` is set when it is told to stop."""

    settings: Settings
    db: Database
    spool: Spool
    readers: Readers
    worker: str
    lease_s: float = jobs.LEASE_S
    send_lease_s: float = deliveries.LEASE_S
    now: Clock = clock.now
    stopping: threading.Event = field(default_factory=threading.Event)
    lanes: Lanes = field(default_factory=Lanes)
    room: Room = field(default_factory=Room)


def send(desk: Desk, delivery_id: str) -> None:
    """Send one Evidence Document to one destination, if it is still to be sent, and what else waits for that one."""

    def deliver(due: str) -> None:
        outbox.deliver(desk.db, desk.spool, desk.settings, due, desk.worker, desk.now, lease_s=desk.send_lease_s)

    if _is_id(delivery_id, "send"):
        with _border(delivery_id):
            desk.lanes.run(desk.db, delivery_id, deliver, desk.now, desk.stopping)


def read(desk: Desk, job_id: str) -> None:
    """Read one series with one bundle: the most urgent that is to be done, usually the one that was rung for."""
    if desk.stopping.is_set() or not _is_id(job_id, "read"):
        return
    with _border(job_id):
        if not desk.room.is_there(desk.spool.root, state_folder(desk.settings)):
            return  # it is rung for again
        reach("claim.before")
        claimed = jobs.claim_most_urgent(desk.db, job_id, desk.worker, desk.now(), desk.lease_s)
        if claimed is not None:
            reach("claim.after")
            _work(desk, claimed)


def _work(desk: Desk, claimed: Claimed) -> None:
    with _heartbeat(desk, claimed) as lost, _scratch(desk) as out:
        try:
            request = _request(desk, claimed, out)
            outcome = desk.readers.read(request, desk.settings.worker.job_timeout, _Patience(desk, lost))
            if lost.is_set():
                log.warning("The lease of job %s was lost; its result is discarded.", claimed.id)
            elif outcome.kind == "failed" and desk.stopping.is_set():
                jobs.released(desk.db, claimed, desk.worker, "the worker was told to stop", desk.now())
            elif outcome.is_full:
                _wait_for_room(desk, claimed, outcome.reason)
            else:
                _file(desk, claimed, outcome, out)
        except DatabaseUnavailable:
            raise  # nothing can be noted; the lease runs out
        except NoRoom as error:
            _wait_for_room(desk, claimed, str(error))
        except WetreadError as error:
            _fail(desk, claimed, str(error), transient=not isinstance(error, Permanent))


def _request(desk: Desk, claimed: Claimed, out: Path) -> Request:
    bundle = _bundle(desk, claimed)
    rows = studies.manifest(desk.db, claimed.study_instance_uid, claimed.revision)
    order = {uid: place for place, uid in enumerate(claimed.instances)}  # of several series as their channels are
    read = [row for row in rows if not order and row.series_instance_uid == claimed.series_instance_uid]
    read += sorted((r for r in rows if r.sop_instance_uid in order), key=lambda row: order[row.sop_instance_uid])
    return Request(
        job_id=claimed.id,
        study_instance_uid=claimed.study_instance_uid,
        series_instance_uid=claimed.series_instance_uid,
        revision=claimed.revision,
        files=tuple(str(desk.spool.path(row.path)) for row in read),
        bundle=str(bundle.folder),
        digest=claimed.bundle_digest,
        results=cast(tuple[ResultKind, ...], claimed.results),
        out=str(out),
        device=desk.settings.worker.device,
        runtime=desk.settings.worker.runtime,
        key=studies.manifest_sha256(rows),
        predecessors=_predecessors(desk, claimed),
        ae_title=desk.settings.node.ae_title,
        highest_series_number=_highest_series_number(desk, rows),
        decline=cast(Literal["silent", "report", "never"], claimed.decline),
    )


def _predecessors(desk: Desk, claimed: Claimed) -> tuple[str, ...]:
    """Return the reports that the new one supersedes; none where late instances are only to be read again."""
    if desk.settings.completeness.late_instances != "supersede":
        return ()
    key = (claimed.study_instance_uid, claimed.series_instance_uid, claimed.bundle, claimed.revision)
    return tuple(str(desk.spool.path(path)) for path in jobs.predecessors(desk.db, *key))


def _highest_series_number(desk: Desk, rows: Sequence[InstanceRow]) -> int | None:
    """Return the highest Series Number (0020,0011) of the study, so that ours come after the scanner's."""
    first = {row.series_instance_uid: row.path for row in reversed(rows)}
    found = []
    for path in first.values():
        with suppress(Unsuitable):
            found.append(read_instance(desk.spool.path(path)).attributes.get("SeriesNumber"))
    return max((int(number) for number in found if isinstance(number, float)), default=None)


def _bundle(desk: Desk, claimed: Claimed) -> Bundle:
    """Return the very bundle that the job was made for; another digest is another model."""
    bundle = bundles.find(claimed.bundle, *desk.settings.worker.folders)
    if bundle.digest != claimed.bundle_digest:
        raise BundleError(
            f"Job {claimed.id} was made for {claimed.bundle} {claimed.bundle_version} with digest "
            f"{claimed.bundle_digest[:12]}; this worker has {bundle.title} with digest {bundle.digest[:12]}. "
            "It was not read. Put that bundle back, or send the study again."
        )
    return trust.require(bundle, desk.settings)


def _file(desk: Desk, claimed: Claimed, outcome: Outcome, out: Path) -> None:
    """Bring the outcome into the database in one transaction; result files are durable before it begins."""
    now = desk.now
    if outcome.kind == "unsuitable":
        jobs.unsuitable(desk.db, claimed, desk.worker, outcome.reason, now(), _store(desk, outcome, out))
    elif outcome.kind == "failed":
        _fail(desk, claimed, outcome.reason, outcome.transient)
        return
    elif not jobs.reported(desk.db, claimed, desk.worker, _store(desk, outcome, out), outcome.summary, now()):
        log.warning("The lease of job %s was lost; its result is discarded.", claimed.id)
        return
    log.info(
        "Job %s with %s: %s",
        claimed.id,
        claimed.bundle,
        outcome.kind,
        extra={"action": "job_ended", "job_id": claimed.id},
    )


def _store(desk: Desk, outcome: Outcome, out: Path) -> Sequence[Document]:
    documents = []
    for entry in outcome.documents:
        stored = desk.spool.store_result((out / str(entry["file"])).read_bytes())
        names = ("kind", "sop_class_uid", "sop_instance_uid", "series_instance_uid")
        values = {name: str(entry[name]) for name in names}
        documents.append(Document(**values, path=stored.path, sha256=stored.sha256, size=stored.size))
    return documents


def _fail(desk: Desk, claimed: Claimed, reason: str, transient: bool) -> None:
    limit = desk.settings.worker.max_attempts
    state = jobs.failed(desk.db, claimed, desk.worker, reason, desk.now(), transient, limit)
    log.warning(
        "Job %s failed on attempt %d and is %s: %s",
        claimed.id,
        claimed.attempts,
        state or "no longer ours",
        reason,
        extra={"action": "job_failed", "job_id": claimed.id},
    )


def _wait_for_room(desk: Desk, claimed: Claimed, reason: str) -> None:
    """Give the job back for a while; what it waits for is no attempt of its own."""
    jobs.released(desk.db, claimed, desk.worker, reason, desk.now(), REST_S)
    log.warning("Job %s waits: %s", claimed.id, reason, extra={"action": "job_waits", "job_id": claimed.id})


@contextmanager
def _heartbeat(desk: Desk, claimed: Claimed) -> Iterator[threading.Event]:
    """Extend the lease from a thread of its own; the event is set once the lease is lost."""
    lost, done = threading.Event(), threading.Event()

    def beat() -> None:
        last = desk.now()
        while not done.wait(desk.lease_s / 3):
            try:
                if not jobs.heartbeat(desk.db, claimed.id, desk.worker, claimed.fence, desk.now(), desk.lease_s):
                    lost.set()
                    return
                last = desk.now()
            except WetreadError:  # the database may be back before the lease is over
                if desk.now() - last >= desk.lease_s:
                    lost.set()
                    return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        done.set()
        thread.join()


def scratch_folder(settings: Settings) -> Path:
    """Return where readings have their files."""
    return state_folder(settings) / "reading"


def sweep_scratch(settings: Settings, now: float) -> int:
    """Remove what readings of killed workers left behind, none younger than a reading can be; return how many."""
    limit = now - 2 * settings.worker.job_timeout - 60.0
    folder = scratch_folder(settings)
    swept = 0
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(FileNotFoundError):  # another process of the worker, which starts now too, was quicker
            if path.stat().st_mtime < limit:
                shutil.rmtree(path, ignore_errors=True)
                swept += 1
    return swept


@contextmanager
def _scratch(desk: Desk) -> Iterator[Path]:
    """Yield an empty folder for the child's files, gone afterwards."""
    parent = scratch_folder(desk.settings)
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def _border(row_id: str) -> Iterator[None]:
    """The border to Celery: whatever goes wrong is logged here, and the row's lease sees to the rest."""
    try:
        yield
    except WetreadError as error:
        log.warning("%s was left to the next worker: %s", row_id, error, extra={"action": "task_left"})
    except Exception as error:  # a fault of ours must not end the worker
        log.exception("%s failed: %s", row_id, type(error).__name__, extra={"action": "task_failed"})


@dataclass
class _Patience:
    """Says when a reading must end: at once when the lease is lost, after a grace when the worker stops."""

    desk: Desk
    lost: threading.Event
    since: float | None = None

    def __call__(self) -> bool:
        if self.desk.stopping.is_set() and self.since is None:
            self.since = self.desk.now()
        return self.lost.is_set() or (self.since is not None and self.desk.now() - self.since >= GRACE_S)


def _is_id(value: object, task: str) -> bool:
    """Say whether a message carries an id as we make them; anything else is dropped."""
    try:
        if isinstance(value, str) and str(uuid.UUID(value)) == value:
            return True
    except ValueError:
        pass
    log.warning("A message for %s carried no id; it was dropped.", task, extra={"action": "message_dropped"})
    return False
