"""STOW-RS (PS3.18 §10.5): the second door. Instances that come over HTTP pass the same checks into the same spool.

`Stow` is an ASGI application. Each request is worked off in a thread: its parts are taken one by one as they arrive,
and each is durable or refused before the next is looked at. Whatever happens, a request has one answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from node.accept import contexts, multipart, part10, request, stored
from node.accept.body import Body, Disconnected, Pace, Receive, TooSlow
from node.accept.multipart import MAX_PARTS, Malformed, Part, TooLarge
from node.accept.places import Places
from node.accept.precheck import MAX_OBJECT, Refused, StoreStatus
from node.accept.receive import SPARING, Arrival, Door
from node.accept.registrar import Release
from node.accept.request import Headers, Refusal, Reply, Request, Scope, Send, busy
from node.accept.stored import FailureReason, Outcome
from node.audit import Audit, AuditEvent
from node.audit import Outcome as AuditOutcome
from node.errors import NoRoom
from node.log import describe
from node.metrics import Registry
from node.store.spool import Encoded

logger = logging.getLogger(__name__)
logger.addFilter(SPARING)

CALLING_AE = "STOW"
"""What stands where a C-STORE has its calling AE Title."""
_TRANSFER_SYNTAXES, _SOP_CLASSES = frozenset(contexts.TRANSFER_SYNTAXES), frozenset(contexts.storage_sop_classes())
_REASONS = tuple(f"{reason:04X}" for reason in (*StoreStatus, *FailureReason))
_DRAIN, _DRAIN_S = 16 * 2**20, 2.0
"""Bytes and seconds that a refused sender may go on for, so that it reads the answer before the connection ends."""
_BINARY = ("binary", "8bit", "7bit")


@dataclass(frozen=True)
class Limits:
    """Bytes of a request and of an instance, parts, bytes of a part held in memory, and requests at the same time."""

    request: int = 4_000_000_000
    instance: int = MAX_OBJECT
    parts: int = MAX_PARTS
    in_memory: int = 2**20
    at_once: int = 8
    pace: Pace = field(default_factory=Pace)


class Stow:
    """The store transaction of the Studies resource, and OPTIONS for what it can do (PS3.18 §8.9)."""

    def __init__(
        self,
        door: Door,
        audit: Audit,
        metrics: Registry,
        places: Places,
        released: Callable[[Release], None],
        limits: Limits | None = None,
    ) -> None:
        self._door, self._audit, self._limits = door, audit, limits or Limits()
        self._places, self._released = places, released
        self._threads = ThreadPoolExecutor(self._limits.at_once, thread_name_prefix="stow")
        self._running = 0
        statuses = [str(status) for status in request.STATUSES]
        self._requests = metrics.counter("wetread_stow_requests_total", "STOW-RS requests.", status=statuses)
        self._instances = metrics.counter(
            "wetread_stow_instances_total", "Parts of STOW-RS requests by Failure Reason.", reason=_REASONS
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        headers = request.headers_of(scope)
        body = Body(receive, self._limits.request, self._limits.pace)
        try:
            reply = await self._reply(scope, headers, body)
        except Disconnected:
            return
        except Refusal as refusal:
            reply = refusal.reply
            if request.goes_on(headers) and not body.is_read and reply.status != 408:
                await asyncio.to_thread(body.drain, _DRAIN, _DRAIN_S)
        finally:
            body.close()
        self._requests.add(status=str(reply.status))
        await request.answer(send, reply, close=request.has_body(headers) and not body.is_read)

    def close(self) -> None:
        """Take no more requests; what is in hand is answered."""
        self._threads.shutdown(wait=False)

    async def _reply(self, scope: Scope, headers: Headers, body: Body) -> Reply:
        found = request.judge(scope, headers, self._limits.request)
        if isinstance(found, Reply):
            return found
        self._check_room(found)
        self._running += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._work, found, body)
        finally:
            self._running -= 1

    def _check_room(self, found: Request) -> None:
        if self._running >= self._limits.at_once:
            raise busy("The node takes no more requests at the same time.")
        try:
            self._door.check_room(found.length)
        except NoRoom:
            raise busy("The node has no room for so much now.") from None

    def _work(self, found: Request, body: Body) -> Reply:
        """Take the parts in, one by one, and return the answer; runs in a thread.

        The end of the body is the sender's word that it is done, as A-RELEASE is that of an association.
        """
        outcomes: list[Outcome] = []
        number, is_whole = self._places.number(), False
        try:
            for part in multipart.parts(body, found.boundary, self._limits.parts):
                outcomes.append(self._take(part, found, number))
            if not outcomes:
                raise Malformed("it has no parts")
            is_whole = True
        except Malformed as error:
            raise Refusal(400, f"The body cannot be read: {error}.") from None
        except TooLarge as error:
            raise Refusal(413, f"The request is too large: {error}.") from None
        except TooSlow:
            raise Refusal(408, "The body came too slowly.") from None
        finally:
            self._released(Release(number, is_whole, self._door.now()))
            self._account(outcomes, found)
        status = stored.http_status(outcomes)
        later = (("Retry-After", str(request.RETRY_AFTER_S)),) if status == 503 else ()
        return Reply(status, stored.encode(stored.response(outcomes), found.media_type), found.media_type, later)

    def _take(self, part: Part, found: Request, number: int) -> Outcome:
        """Take one part in; what is wrong with it is its own outcome and none of the others'."""
        meta = part10.FileMeta("", "", "", 0)
        try:
            _check_kind(part)
            meta, chunks = part10.read_head(part.body)
            if unsupported := _unsupported(meta):
                return _failed(meta, *unsupported)
            dataset = part10.gather(chunks, self._door, self._limits.instance, self._limits.in_memory)
            return self._store(meta, dataset, found, number)
        except Refused as refused:
            return _failed(meta, refused.status, refused.reason)
        except (NoRoom, MemoryError) as error:
            return _failed(meta, StoreStatus.OUT_OF_RESOURCES, describe(error))
        except (Malformed, TooLarge, TooSlow, Disconnected):
            raise
        except Exception as error:  # a border: the other parts of the request are not to suffer
            extra = {"action": "instance_failed", "error": describe(error)}
            logger.error("An instance was not kept because of a fault of the node.", extra=extra)
            return _failed(meta, FailureReason.PROCESSING_FAILURE, "fault of the node")

    def _store(self, meta: part10.FileMeta, dataset: Encoded, found: Request, number: int) -> Outcome:
        arrival = Arrival(meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid, CALLING_AE, found.study)
        answer = self._door.receive(dataset, arrival)
        study = answer.header.study_instance_uid if answer.header else ""
        if study:
            self._places.brings(number, study)
        return Outcome(answer.status, meta.sop_class_uid, meta.sop_instance_uid, study)

    def _account(self, outcomes: list[Outcome], found: Request) -> None:
        """Count what came, and write one audit line per study (PS3.15 §A.5.3.7)."""
        for reason, count in Counter(outcome.reason for outcome in outcomes).items():
            self._instances.add(count, reason=f"{reason:04X}")
        for study, count in Counter(o.study_instance_uid for o in outcomes if not o.reason).items():
            self._audit.write(
                AuditEvent.INSTANCES_TRANSFERRED, AuditOutcome.SUCCESS, study_instance_uid=study, count=count,
                calling_ae=CALLING_AE, address=found.address,
            )  # fmt: skip
            extra = {"action": "instances_received", "study_instance_uid": study, "count": count}
            logger.info("Instances were received.", extra=extra | {"calling_ae": CALLING_AE})


def _check_kind(part: Part) -> None:
    """Raise `Refused` unless the part is a Part 10 file as it is, `Malformed` when it is no part of such a body."""
    if "content-type" not in part.headers:
        raise Malformed("a part has no Content-Type")
    kind, _ = multipart.media_type(part.headers["content-type"])
    if kind.startswith("multipart/"):
        raise Malformed("a part is itself multipart")
    if kind != "application/dicom":
        raise Refused(StoreStatus.CANNOT_UNDERSTAND, "the part is not application/dicom")
    if part.headers.get("content-transfer-encoding", "binary").lower() not in _BINARY:
        raise Refused(StoreStatus.CANNOT_UNDERSTAND, "the part has a Content-Transfer-Encoding")


def _unsupported(meta: part10.FileMeta) -> tuple[FailureReason, str] | None:
    """Return why the listener would not have negotiated this (PS3.18 Table I.2-2)."""
    if meta.sop_class_uid and meta.sop_class_uid not in _SOP_CLASSES:
        return FailureReason.SOP_CLASS_NOT_SUPPORTED, "SOP Class not supported"
    if meta.transfer_syntax_uid not in _TRANSFER_SYNTAXES:
        return FailureReason.TRANSFER_SYNTAX_NOT_SUPPORTED, "Transfer Syntax not supported"
    return None


def _failed(meta: part10.FileMeta, reason: int, words: str) -> Outcome:
    extra = {"action": "instance_refused", "status": f"{reason:04X}", "reason": words, "calling_ae": CALLING_AE}
    logger.warning("An instance was refused and not kept.", extra=extra | {"sop_class_uid": meta.sop_class_uid})
    return Outcome(reason, meta.sop_class_uid, meta.sop_instance_uid)
