"""The one door: bytes → precheck → ingest log → acknowledge; files and index follow in batches.

`Door.receive` returns success only when the instance would survive a power cut. Neither its file in the spool nor its
row in the database is waited for: the log has all that is needed, and recovery makes both at the next start.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from node import clock
from node.accept.filemeta import part10_header
from node.accept.precheck import MAX_OBJECT, Header, Refused, StoreStatus, inspect
from node.configvalues import Check
from node.crashpoints import reach
from node.errors import NoRoom, Transient
from node.log import describe
from node.store.ingestlog import IngestLog
from node.store.spool import Encoded, Spool, Stored
from node.store.studies import Received

logger = logging.getLogger(__name__)

MAX_BATCH = 200
GATHER_S = 0.05
"""How long the first instance of a batch waits for others: each transaction costs a sync, as much as an instance."""
STREAM, GATHER_STREAM_S = 5, 0.3
"""After a batch of so many the next one is waited for longer: its transaction costs as much for one as for fifty."""
MAX_WAITING = 100_000
"""Instances that may wait for the index; about 100 MB. Beyond it senders are told to come back later."""

Register = Callable[[Sequence[Received]], int]


@dataclass(frozen=True)
class Arrival:
    """What a sender announces: SOP Class and Instance (of the command set or File Meta Information), how the data set
    is encoded, who sends, and the study that the whole request is for, where it names one (PS3.18 §10.5.1)."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    study_instance_uid: str = ""


@dataclass(frozen=True)
class Answer:
    """What the sender is told; `header` is there when the instance was kept."""

    status: int
    reason: str = ""
    header: Header | None = None


@dataclass(frozen=True)
class _Waiting:
    """An instance that waits for the registrar, and how its file comes into its place if it is not there."""

    received: Received
    lay_out: Callable[[], None] | None


class Door:
    """Takes instances in, whatever protocol brought them."""

    def __init__(
        self,
        spool: Spool,
        registrar: Registrar,
        ingest_log: IngestLog | None = None,
        now: clock.Clock = clock.now,
        check: Check = "standard",
    ) -> None:
        self._spool, self._registrar, self._log = spool, registrar, ingest_log
        self.now = now
        """The clock by which everything that comes in is stamped."""
        self.check = check
        self._idle = threading.Condition()
        self._inside = 0
        self._closed = False

    def receive(self, dataset: Encoded, arrival: Arrival) -> Answer:
        """Check and keep one instance; never raises for anything that is wrong with it or with the disk."""
        with self._idle:
            if self._closed:
                return Answer(StoreStatus.OUT_OF_RESOURCES, "the node is stopping")
            self._inside += 1
        try:
            return self._receive(dataset, arrival)
        except Refused as refused:
            _log_refusal(arrival, refused.status, refused.reason)
            return Answer(refused.status, refused.reason)
        except (NoRoom, MemoryError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EIO):
                raise
            _log_refusal(arrival, StoreStatus.OUT_OF_RESOURCES, describe(error))
            return Answer(StoreStatus.OUT_OF_RESOURCES, "out of resources, try again later")
        finally:
            with self._idle:
                self._inside -= 1
                self._idle.notify_all()

    def check_room(self, size: int) -> None:
        """Raise `NoRoom` when the spool would not take `size` more bytes."""
        self._spool.check_room(size)

    def scratch(self) -> IO[bytes]:
        """Return a file without a name for a data set that is on its way; raises `NoRoom`."""
        return self._spool.scratch()

    def close(self, timeout_s: float) -> bool:
        """Take nothing more in and wait until what is inside has been answered; False when time ran out."""
        with self._idle:
            self._closed = True
            return self._idle.wait_for(lambda: self._inside == 0, timeout_s)

    def _receive(self, dataset: Encoded, arrival: Arrival) -> Answer:
        if len(dataset) > MAX_OBJECT or self._registrar.waiting >= MAX_WAITING:
            raise Refused(StoreStatus.OUT_OF_RESOURCES, "too large, or too many instances wait for the index")
        announced = (arrival.transfer_syntax_uid, arrival.sop_class_uid, arrival.sop_instance_uid)
        header = inspect(dataset, *announced, self.check)
        if arrival.study_instance_uid not in ("", header.study_instance_uid):
            raise Refused(StoreStatus.MISMATCH, "belongs to another study than the request")
        self._spool.check_room(len(dataset))
        self._keep(dataset, header, arrival)
        if header.odd_lengths:
            _log_odd(header)
        reach("ingest.before_rsp")
        return Answer(StoreStatus.SUCCESS, header=header)

    def _keep(self, dataset: Encoded, header: Header, arrival: Arrival) -> None:
        """Make it durable, in the log or, where it is large, as a file at once; hand it to the registrar."""
        head = part10_header(header, arrival)
        if self._log is None or not self._log.takes(len(head) + len(dataset)):
            stored = self._spool.store_instance(head, dataset)
            self._registrar.put(_received(header, arrival, stored, self.now()))
        else:
            entry = self._log.append(head, dataset)
            self._registrar.put(_received(header, arrival, entry.stored, self.now()), entry.lay_out)


@dataclass(frozen=True)
class Release:
    """An association that brought instances has ended at `at` (seconds since the epoch), by a release or not."""

    number: int
    is_released: bool
    at: float


class Registrar:
    """Lays durable instances out and registers them, in batches, on a thread of its own that never gives up.

    Both are tried again with growing pauses while the disk is full or the database does not answer. An instance that
    the database refuses for good is named in the log and set aside; it stays in the spool, where recovery finds it.
    """

    def __init__(
        self,
        register: Register,
        longest_pause_s: float = 5.0,
        released: Callable[[Release], None] = lambda release: None,
    ) -> None:
        self._register, self._longest_pause_s, self._released = register, longest_pause_s, released
        self._queue: queue.SimpleQueue[_Waiting | Release | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._ended = False
        self._gather_s = GATHER_S
        self._waiting, self._lock = 0, threading.Lock()
        self._thread = threading.Thread(target=self._run, name="registrar", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Instances that are durable and acknowledged but not in the index yet."""
        return self._waiting

    def put(self, received: Received, lay_out: Callable[[], None] | None = None) -> None:
        """Hand over one instance that is durable; `lay_out` where its file is not in the spool yet."""
        with self._lock:
            self._waiting += 1
        self._queue.put(_Waiting(received, lay_out))

    def release(self, release: Release) -> None:
        """Hand over that an association has ended; noted once all that came before it is registered."""
        self._queue.put(release)

    def close(self, timeout_s: float) -> bool:
        """Register what waits and end; False when time ran out (recovery registers the rest)."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        self._stopping.set()
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._ended:
            taken = self._take()
            batch = [item for item in taken if isinstance(item, _Waiting)]
            self._register_batch([waiting.received for waiting in batch if self._lay_out(waiting)])
            with self._lock:
                self._waiting -= len(batch)
            for item in taken:
                if isinstance(item, Release):
                    self._note(item)

    def _note(self, release: Release) -> None:
        """Note a release once; where the database is away, the quiet period decides as if there had been none."""
        try:
            self._released(release)
        except Exception as error:  # a border: the listener must live
            extra = {"action": "release_not_noted", "error": describe(error)}
            logger.warning("The release of an association was not noted.", extra=extra)

    def _lay_out(self, waiting: _Waiting) -> bool:
        """Return True when the file is in its place; False when the node stops before (the log has it)."""
        pause_s = 0.05
        while waiting.lay_out is not None:
            try:
                waiting.lay_out()
                break
            except (NoRoom, OSError) as error:
                logger.warning("The spool is behind.", extra=_failed([waiting.received], error))
                if self._stopping.wait(pause_s):
                    return False
                pause_s = min(pause_s * 2, self._longest_pause_s)
        return True

    def _take(self) -> list[_Waiting | Release]:
        """Wait for the first instance and take with it what comes soon after; None in the queue is the end."""
        batch: list[_Waiting | Release] = []
        deadline = float("inf")
        while len(batch) < MAX_BATCH:
            try:
                waiting = self._queue.get(timeout=max(deadline - time.monotonic(), 0) if batch else None)
            except queue.Empty:
                break
            if waiting is None:
                self._ended = True
                break
            if not batch:
                deadline = time.monotonic() + self._gather_s
            batch.append(waiting)
            if isinstance(waiting, Release):  # evidence that a study is whole is not kept waiting
                break
        self._gather_s = GATHER_STREAM_S if len(batch) >= STREAM else GATHER_S
        return batch

    def _register_batch(self, batch: Sequence[Received]) -> None:
        if not batch or self._attempt(batch) or len(batch) == 1:
            return
        for received in batch:  # one that the database refuses must not hold back the others
            if not self._stopping.is_set():
                self._attempt([received])

    def _attempt(self, batch: Sequence[Received]) -> bool:
        """Return True when `batch` is registered, False when the database refuses it for good."""
        pause_s = 0.05
        while batch:
            try:
                reach("register.before")
                self._register(batch)
                return True
            except Transient as error:
                logger.warning("The index is behind.", extra=_failed(batch, error))
                if self._stopping.wait(pause_s):
                    return False
                pause_s = min(pause_s * 2, self._longest_pause_s)
            except Exception as error:  # a border: the listener must live, and recovery has the file
                if len(batch) == 1:
                    extra = _failed(batch, error) | {"sop_instance_uid": batch[0].sop_instance_uid}
                    logger.error("The index refuses an instance; it stays in the spool.", extra=extra)
                return False
        return True


def _received(header: Header, arrival: Arrival, stored: Stored, now: float) -> Received:
    return Received(
        sop_instance_uid=header.sop_instance_uid,
        sop_class_uid=header.sop_class_uid,
        transfer_syntax_uid=arrival.transfer_syntax_uid,
        study_instance_uid=header.study_instance_uid,
        series_instance_uid=header.series_instance_uid,
        sha256=stored.sha256,
        path=stored.path,
        size=stored.size,
        calling_ae=arrival.calling_ae.strip(),
        is_own_result=header.is_own_result,
        received_at=now,
    )


def _failed(batch: Sequence[Received], error: BaseException) -> dict[str, object]:
    return {"action": "register_failed", "count": len(batch), "error": describe(error)}


def _log_refusal(arrival: Arrival, status: int, reason: str) -> None:
    extra = {"action": "instance_refused", "status": f"{status:04X}", "reason": reason}
    extra |= {"calling_ae": arrival.calling_ae, "sop_class_uid": arrival.sop_class_uid}
    logger.warning("An instance was refused and not kept.", extra=extra)


def _log_odd(header: Header) -> None:
    extra = {"action": "instance_odd", "sop_instance_uid": header.sop_instance_uid, "count": header.odd_lengths}
    logger.info("An instance has values of odd length; it was kept as it is.", extra=extra)
