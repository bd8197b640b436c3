"""A listener process: serves the associations that the node hands over, until it is told to end or the node is gone.

`python -m node.accept.serving DESCRIPTOR`, started by `node.accept.processes` with its end of the channel. It has an
ingest log, a registrar and counters of its own; who may enter, and which study is whole, the node decides.
"""

from __future__ import annotations

import base64
import os
import queue
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pynetdicom import _config

from node import log
from node.accept import contexts
from node.accept.association import Admission, AssociationRequest, Rejection
from node.accept.channel import Channel, Message, taken_from
from node.accept.guard import Gone, Limits
from node.accept.hall import Hall
from node.accept.receive import Door
from node.accept.registrar import Registrar, Release
from node.accept.scp import Services
from node.audit import Audit
from node.configvalues import Check
from node.metrics import Registry
from node.settings import LogSettings, NodeSettings, Peer, Settings
from node.store import deliveries, studies
from node.store.db import Database
from node.store.ingestlog import IngestLog
from node.store.registration import Late
from node.store.spool import Spool

TICK_S = 0.2
BEAT_S = 1.0
"""How often a process says that it lives, whether or not there is anything to tell."""
ANSWER_S = 10.0
"""How long the node may take to say whether an association has a place."""
LEFT_TO_RECOVERY = 3
"""Exit status of a process that could not bring index and files up to date."""


@dataclass(frozen=True)
class Charge:
    """What a listener process must know; passcodes and limits of peers stay with the node."""

    ae_title: str
    peers: tuple[tuple[str, str, str], ...]
    """Name, AE Title and address of each."""
    database: str
    spool: str
    refuse_below: int
    audit: str
    check: Check
    late: Late
    log: Mapping[str, str]
    limits: Mapping[str, float]

    def settings(self) -> Settings:
        """Return the part of the settings that says who is who."""
        peers = [Peer(name=name, ae_title=ae_title, address=address) for name, ae_title, address in self.peers]
        return Settings(node=NodeSettings(ae_title=self.ae_title), peer=peers)


class RemoteDesk:
    """The desk of the node, asked over the channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._answers: dict[int, queue.SimpleQueue[Rejection | None]] = {}

    def enter(self, number: int, request: AssociationRequest) -> Rejection | None:
        """Ask for a place and wait; raises `Gone` when the node does not answer."""
        answers = self._answers[number] = queue.SimpleQueue()
        try:
            self._channel.send({"enter": number, "request": encoded(request)})
            return answers.get(timeout=ANSWER_S)
        except (OSError, queue.Empty):
            raise Gone("the node does not say whether there is a place") from None
        finally:
            del self._answers[number]

    def entered(self, number: int, rejection: Rejection | None) -> None:
        """Take in the node's answer."""
        if answers := self._answers.get(number):
            answers.put(rejection)

    def leave(self, number: int) -> None:
        """Give the place back."""
        self._tell({"left": number})

    def brings(self, number: int, study_uid: str) -> None:
        """Note that it brings instances of a study."""
        self._tell({"brings": number, "study": study_uid})

    def ended(self, release: Release) -> None:
        """Say that all of an association is in the index."""
        self._tell({"ended": release.number, "is_released": release.is_released, "at": release.at})

    def _tell(self, said: Mapping[str, Any]) -> None:
        with suppress(OSError):  # the node is gone, and this process ends
            self._channel.send(said)


class Serving:
    """One listener process."""

    def __init__(self, channel: Channel, charge: Charge) -> None:
        self._channel, self._metrics, self._desk = channel, Registry(), RemoteDesk(channel)
        self._db = Database(charge.database, later=True)
        spool = Spool(Path(charge.spool), charge.refuse_below)
        register = partial(studies.register, self._db, late=charge.late)
        self._registrar = Registrar(register, released=self._desk.ended)
        self._log, self._audit = IngestLog(spool), Audit(Path(charge.audit))
        self._door = Door(spool, self._registrar, self._log, self._db.now, check=charge.check)
        self._services = Services(
            Admission(charge.settings()),
            self._door,
            partial(deliveries.committed, self._db),
            self._audit,
            self._metrics,
            self._desk,
            lambda number, is_released: self._registrar.release(Release(number, is_released, self._door.now())),
        )
        limits = Limits(**charge.limits)  # type: ignore[arg-type]
        self._hall = Hall(contexts.supported(), self._services, limits)
        self._is_leaving = False
        self._told: object = None
        self._told_at = 0.0

    def run(self) -> int:
        """Serve until the end; return the exit status."""
        self._channel.send({"ready": True})
        timeout_s = 10.0
        while not (self._is_leaving and self._hall.is_empty):
            if self._channel.is_ready(TICK_S):
                message = self._channel.receive()
                if message is None or "stop" in message.said:
                    timeout_s = message.said["stop"] if message else timeout_s
                    break
                self._do(message)
            self._report()
            self._services.alerts.settle()
        self._channel.send({"ending": True})
        is_done = self._hall.finish(self._door, self._registrar, self._log, timeout_s)
        self._report()
        self._services.alerts.close()
        self._audit.close()
        self._db.close()
        return 0 if is_done else LEFT_TO_RECOVERY

    def _do(self, message: Message) -> None:
        said = message.said
        if "serve" in said:
            descriptor, first = message.descriptors
            connection = socket.socket(fileno=descriptor)
            connection.setblocking(True)
            self._hall.start(said["serve"], connection, said["address"], taken_from(first))
        elif "entered" in said:
            rejection = said["rejection"]
            self._desk.entered(said["entered"], Rejection(**rejection) if rejection else None)
        elif "leave" in said:
            self._is_leaving = True

    def _report(self) -> None:
        """Tell the node what has been counted, when it has changed, and that this process lives, now and then."""
        counts = {name: metric.counted() for name, metric in self._metrics.counters().items()}
        is_silent = time.monotonic() - self._told_at >= BEAT_S
        if (told := (counts, self._registrar.waiting)) != self._told or is_silent:
            self._told, self._told_at = told, time.monotonic()
            with suppress(OSError):  # as above
                self._channel.send({"counts": counts, "waiting": self._registrar.waiting})


def encoded(request: AssociationRequest) -> dict[str, Any]:
    """Return a request as JSON has it."""
    said = asdict(request)
    if request.identity is not None and request.identity.passcode is not None:
        said["identity"]["passcode"] = base64.b64encode(request.identity.passcode).decode()
    return said


def quiet_pynetdicom() -> None:
    """Keep pynetdicom from formatting what it receives, and let broken UIDs reach the door, which answers C000H."""
    _config.LOG_HANDLER_LEVEL = "none"
    _config.VALIDATORS["UI"] = lambda value: (True, "")


def main() -> None:
    """Serve, in a process of its own; the node alone says when it ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    message = channel.receive()
    if message is None:
        return
    charge = Charge(**message.said)
    log.configure(LogSettings.model_validate(charge.log))
    quiet_pynetdicom()
    status = Serving(channel, charge).run()
    sys.stderr.flush()
    os._exit(status)  # a thread that waits for a peer, or for a disk, must not keep it


if __name__ == "__main__":
    main()
