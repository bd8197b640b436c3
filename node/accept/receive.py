"""The one door: bytes → precheck → ingest log → acknowledge; files and index follow in batches.

`Door.receive` returns success only when the instance would survive a power cut. Neither its file in the spool nor its
row in the database is waited for: the log has all that is needed, and recovery makes both at the next start.
"""

from __future__ import annotations

import errno
import logging
import threading
from dataclasses import dataclass
from typing import IO

from node import clock
from node.accept.filemeta import part10_header
from node.accept.precheck import MAX_OBJECT, Header, Refused, StoreStatus, inspect
from node.accept.registrar import Registrar
from node.configvalues import Check
from node.crashpoints import reach
from node.errors import NoRoom
from node.log import Sparing, describe
from node.store.ingestlog import IngestLog
from node.store.spool import Encoded, Spool, Stored, digest
from node.store.studies import Received

logger = logging.getLogger(__name__)
SPARING = Sparing(lambda record: record.__dict__.get("status") == f"{StoreStatus.OUT_OF_RESOURCES:04X}")
"""For refusals that say nothing of the instance: while a disk is full, senders try again, many times a second."""
logger.addFilter(SPARING)

MAX_WAITING = 100_000
"""Instances that may wait for the index; about 100 MB. Beyond it senders are told to come back later."""


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

    def receive(self, dataset: Encoded, arrival: Arrival, sha256: bytes | None = None) -> Answer:
        """Check and keep one instance; never raises for anything that is wrong with it or with the disk.

        `sha256` is the digest of `dataset` where it was made while that came in.
        """
        with self._idle:
            if self._closed:
                return Answer(StoreStatus.OUT_OF_RESOURCES, "the node is stopping")
            self._inside += 1
        try:
            return self._receive(dataset, arrival, sha256)
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

    def _receive(self, dataset: Encoded, arrival: Arrival, sha256: bytes | None) -> Answer:
        if len(dataset) > MAX_OBJECT or self._registrar.waiting >= MAX_WAITING:
            raise Refused(StoreStatus.OUT_OF_RESOURCES, "too large, or too many instances wait for the index")
        announced = (arrival.transfer_syntax_uid, arrival.sop_class_uid, arrival.sop_instance_uid)
        header = inspect(dataset, *announced, self.check)
        if arrival.study_instance_uid not in ("", header.study_instance_uid):
            raise Refused(StoreStatus.MISMATCH, "belongs to another study than the request")
        self._spool.check_room(len(dataset))
        self._keep(dataset, header, arrival, sha256 or digest(dataset))
        if header.odd_lengths:
            _log_odd(header)
        reach("ingest.before_rsp")
        return Answer(StoreStatus.SUCCESS, header=header)

    def _keep(self, dataset: Encoded, header: Header, arrival: Arrival, sha256: bytes) -> None:
        """Make it durable, in the log or, where it is large, as a file at once; hand it to the registrar."""
        head = part10_header(header, arrival)
        if self._log is None or not self._log.takes(len(head) + len(dataset)):
            stored = self._spool.store_instance(head, dataset, sha256)
            self._registrar.put(_received(header, arrival, stored, self.now()))
        else:
            entry = self._log.append(head, dataset, sha256)
            self._registrar.put(_received(header, arrival, entry.stored, self.now()), entry.lay_out)


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


def _log_refusal(arrival: Arrival, status: int, reason: str) -> None:
    extra = {"action": "instance_refused", "status": f"{status:04X}", "reason": reason}
    extra |= {"calling_ae": arrival.calling_ae, "sop_class_uid": arrival.sop_class_uid}
    logger.warning("An instance was refused and not kept.", extra=extra)


def _log_odd(header: Header) -> None:
    extra = {"action": "instance_odd", "sop_instance_uid": header.sop_instance_uid, "count": header.odd_lengths}
    logger.info("An instance has values of odd length; it was kept as it is.", extra=extra)
