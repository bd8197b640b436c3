"""One delivery, from claim to its next state: the bytes that were filed go to one destination, as often as it takes.

What was sent when the worker died is unknown, so the same bytes go again under the same SOP Instance UID; the
destination then holds one object. A refused document never stops another.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from node.clock import Clock
from node.crashpoints import reach
from node.errors import WetreadError
from node.settings import Destination, Settings
from node.store import deliveries
from node.store.db import Database
from node.store.deliveries import LEASE_S, ClaimedDelivery
from node.store.spool import Spool
from workers.send.cstore import Peer, Timeouts, store
from workers.send.presence import holds
from workers.send.verdicts import Ruling, Verdict, judge, rest

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What became of one attempt: the answer as one word and its ruling."""

    code: str
    ruling: Ruling


def deliver(
    db: Database,
    spool: Spool,
    settings: Settings,
    delivery_id: str,
    worker: str,
    now: Clock,
    timeouts: Timeouts | None = None,
    lease_s: float = LEASE_S,
) -> None:
    """Claim a delivery, send it and note what came of it; does nothing when it is not to be had.

    Raises `DatabaseUnavailable` when the outcome cannot be noted: the lease then runs out and the same bytes go again.
    """
    delivery = deliveries.claim(db, delivery_id, worker, now(), lease_s)
    if delivery is None:
        return
    destination = settings.destination.get(delivery.destination)
    with _heartbeat(db, delivery, worker, now, lease_s):
        result = _attempt(spool, settings, delivery, destination, timeouts or Timeouts())
    _note(db, delivery, worker, result, destination.retry if destination else 0.0, now())


def _attempt(
    spool: Spool, settings: Settings, delivery: ClaimedDelivery, destination: Destination | None, timeouts: Timeouts
) -> Result:
    if destination is None:
        what = f"wetread.toml has no destination {delivery.destination}."
        return Result("NO DESTINATION", Ruling(Verdict.DEAD, what, "Name it there, or drop the delivery."))
    try:
        if not spool.verify(delivery.path, delivery.sha256):
            return Result("FILE", _NOT_AS_FILED)
        peer = Peer.of(destination, settings)
        reach("send.before")
        answer = store(spool.path(delivery.path), peer, timeouts)
        reach("send.after_rsp")
        ruling = judge(answer)
        if ruling.verdict is Verdict.VERIFY:
            ruling = _verify(peer, delivery, destination.commitment, timeouts)
    except Exception as error:  # the border of a task: whatever went wrong, the delivery must not be lost
        _log.exception("delivery failed", extra={"action": "delivery_error", "delivery": delivery.id})
        what = f"Sending failed inside the node ({type(error).__name__})."
        return Result("ERROR", Ruling(Verdict.RETRY, what, "The worker's log has the details."))
    note = f" ({answer.note})" if answer.note and answer.kind != "status" else ""
    return Result(answer.code, Ruling(ruling.verdict, ruling.what.removesuffix(".") + note + ".", ruling.remedy))


_NOT_AS_FILED = Ruling(
    Verdict.DEAD, "The file is missing from the spool or is not the one that was filed.", "Restore it, then retry."
)


def _verify(peer: Peer, delivery: ClaimedDelivery, commitment: bool, timeouts: Timeouts) -> Ruling:
    """Settle 0111H, duplicate SOP Instance: by storage commitment, else by C-FIND, else take the peer's word."""
    says = "The destination says that it has this SOP Instance already"
    if commitment:
        return Ruling(Verdict.WARN, f"{says}; storage commitment will tell.")
    found = holds(peer, delivery.study_instance_uid, delivery.series_instance_uid, delivery.sop_instance_uid, timeouts)
    if found is None:
        return Ruling(Verdict.WARN, f"{says}; it could not be asked by C-FIND.")
    if found:
        return Ruling(Verdict.DONE, f"{says}, and C-FIND finds it in its study and series.")
    return Ruling(Verdict.DEAD, f"{says}, but C-FIND does not find it in its study.", "Look for it there by its UID.")


def _note(db: Database, delivery: ClaimedDelivery, worker: str, result: Result, patience: float, now: float) -> None:
    """Move the delivery on; a lost lease changes nothing."""
    verdict, reason = result.ruling.verdict, result.ruling.reason
    age = now - delivery.created_at
    if verdict in (Verdict.DONE, Verdict.WARN):
        moved = deliveries.sent(db, delivery, worker, result.code, reason, now)
    elif verdict is Verdict.RETRY and age < patience:
        due = now + rest(delivery.attempts, delivery.id)
        moved = deliveries.postponed(db, delivery, worker, result.code, reason, now, due)
    else:
        given_up = f"Given up after {age / 3600:.1f} h. " if verdict is Verdict.RETRY else ""
        told = f"{given_up}{reason} Then: wetread dead retry {delivery.id}"
        moved = deliveries.dead(db, delivery, worker, result.code, told, now)
    _tell(delivery, result, moved)


def _tell(delivery: ClaimedDelivery, result: Result, moved: bool) -> None:
    good = moved and result.ruling.verdict is Verdict.DONE
    _log.log(
        logging.INFO if good else logging.WARNING,
        "delivery of %s to %s: %s %s",
        delivery.kind,
        delivery.destination,
        result.code,
        result.ruling.reason if moved else "The lease was lost; another worker sends the same bytes.",
        extra={"action": "delivery", "delivery": delivery.id, "status": result.code},
    )


@contextmanager
def _heartbeat(db: Database, delivery: ClaimedDelivery, worker: str, now: Clock, lease_s: float) -> Iterator[None]:
    """Keep the lease while the destination takes its time."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(lease_s / 3):
            try:
                if not deliveries.heartbeat(db, delivery.id, worker, delivery.fence, now(), lease_s):
                    return
            except WetreadError:
                continue  # the lease outlives two missed beats; the fence guards what is noted in the end

    thread = threading.Thread(target=beat, name="delivery-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
