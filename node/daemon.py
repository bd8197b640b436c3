"""`wetread serve`: the one place where the parts of the node are put together, started and stopped.

Stages never call each other. Each loop asks its stage "what is due?" at its own pace; a tick that fails is logged,
tried again later and shown by `/readyz`, and never takes the node down.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import TracebackType

from node import broker, reload
from node.accept import contexts, listener
from node.accept.precheck import identify
from node.assemble import assembler, inquiry
from node.assemble.recover import recover
from node.audit import Audit
from node.errors import DatabaseUnavailable, Permanent
from node.loop import Loop
from node.metrics import Registry
from node.route import doorbell
from node.routing import Routing
from node.settings import Routes, Settings, state_folder
from node.store import opening, retention, studies, transfers
from node.store.db import Database
from node.store.locks import lock_state
from node.store.spool import Spool
from node.store.turnedback import TurnedBack
from node.web.health import Health

log = logging.getLogger(__name__)

_FAILED_AGAIN_S = 600.0
"""How often studies that wait for a person are looked at, of which no person has said anything."""
_MEANWHILE = "what is sent to a listener is taken, kept in the ingest log and registered then."


@dataclass(frozen=True)
class Pace:
    """How often each loop looks, in seconds; the demo and the tests are in more of a hurry."""

    assemble: float = 0.2
    route: float = 0.2
    ring: float = 0.2
    settle: float = 1.0
    retain: float = 10.0


class Role(StrEnum):
    """A part of the node that can be a process, and a host, of its own; they meet in the database and in the spool."""

    LISTENER = "listener"
    """The DICOM door; with WEB in the same process also the STOW-RS door."""
    STAGES = "stages"
    """Completeness, routing, settling, retention."""
    DOORBELL = "doorbell"
    """Tells the broker of what is due."""
    WEB = "web"
    """Status pages, health, metrics."""


class Node:
    """A running node, or those `roles` of one; a context manager.

    Raises `Permanent` when another process holds one of the roles on the same state folder. A database that is not up
    is waited for: the doors are open meanwhile, and what was acknowledged before is recovered as soon as it is there.
    """

    def __init__(
        self, settings: Settings, routes: Routes, pace: Pace | None = None, roles: Collection[Role] = tuple(Role)
    ) -> None:
        self.settings, self.routes, self.pace, self.roles = settings, routes, pace or Pace(), roles
        self.broker_url = ""
        """Where the doorbell rings; empty without that role."""
        self.health, self.registry = Health(), Registry()
        self.failure: Exception | None = None
        """Why the node must end, where that came out only when the database was up at last."""
        self.has_begun = threading.Event()
        """Set when the database is there and all stages run."""
        self._look_at_failed = 0.0
        self._stack = ExitStack()
        self._stopping = threading.Event()

    def __enter__(self) -> Node:
        with ExitStack() as stack:  # whatever fails half-way, what was started before it is stopped
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop listening, let every stage end its tick (a fetch at once), then close the broker and the database."""
        self._stopping.set()
        self._stack.close()

    def reload(self, settings: Settings, routes: Routes) -> list[str]:
        """Take in routes and what `node.reload` names; no association notices. Returns the keys that changed.

        Raises `Permanent`, and nothing has changed, where another key did: that needs a restart.
        """
        changed = reload.changed(self.settings, settings)
        if fixed := reload.needs_restart(changed):
            raise Permanent(f"wetread.toml: {', '.join(fixed)} changed, which needs a restart.")
        if Role.LISTENER in self.roles:
            self.listener.reload(settings)
        self.settings, self.routes = settings, routes
        if Role.STAGES in self.roles:
            self._routing.take(settings, routes)
        return changed

    def roll(self) -> None:
        """Put new listener processes in the place of the old ones, which end with their associations."""
        if Role.LISTENER in self.roles:
            self.listener.roll()

    @property
    def web_address(self) -> str:
        """Where the status pages are."""
        return f"http://{self.settings.web.bind}:{self.web_port}/"

    def _start(self, stack: ExitStack) -> None:
        settings, state = self.settings, state_folder(self.settings)
        for role in self.roles:
            stack.enter_context(lock_state(state, role))
        self.db = Database(settings.database.url, later=True)
        stack.callback(self.db.close)
        self.spool = Spool(settings.spool.url, settings.spool.refuse_below)
        if Role.STAGES in self.roles:
            self._routing = Routing(self.db, self.spool, settings, self.routes, self.health)
        if Role.DOORBELL in self.roles:
            self.broker_url = stack.enter_context(broker.resolve(settings, state))
        begun = stack.enter_context(ExitStack())
        with suppress(DatabaseUnavailable):
            self._begin(begun)
        if Role.LISTENER in self.roles:
            self.listener = self._listen()
            stack.callback(self.listener.stop)
        if Role.WEB in self.roles:
            self._start_web(stack)
        if not self.has_begun.is_set():
            self._begin_later(stack, begun)
        log.info("%s", self._ready(), extra={"action": "started"})

    def _begin(self, begun: ExitStack) -> None:
        """Do what takes the database: recover before any stage looks, or half of a study would seem to be all of it."""
        with ExitStack() as stack:
            self.db.open()
            self.db.require_sound()
            if Role.LISTENER in self.roles or Role.STAGES in self.roles:
                recover(self.db, self.spool, identify)
            self._open_trail(stack, state_folder(self.settings) / "audit.log")
            self._start_loops(stack)
            begun.enter_context(stack.pop_all())
        self.health.good("start")
        self.has_begun.set()

    def _begin_later(self, stack: ExitStack, begun: ExitStack) -> None:
        """Begin on a thread of its own, once the database is there; the doors are open already."""
        wait = partial(opening.patiently, partial(self._begin, begun), self._stopping, _MEANWHILE)

        def begin() -> None:
            try:
                wait(told=partial(self.health.bad, "start"))
            except Exception as error:  # what ends a start ends this one, too, however late
                self.failure = error

        thread = threading.Thread(target=begin, name="start", daemon=True)
        stack.callback(thread.join, 15.0)
        stack.callback(self._stopping.set)
        thread.start()

    def _open_trail(self, stack: ExitStack, path: Path) -> None:
        """The stages note what went out; a node in one process also adds what its predecessor was killed before."""
        if Role.STAGES not in self.roles:
            return
        self._trail = Audit(path)
        stack.callback(self._trail.close)
        if Role.LISTENER in self.roles:
            transfers.complete(self.db, self._trail, path, self.db.now())

    def _ready(self) -> str:
        """Say what runs here, and where."""
        said = [f"{self.settings.node.ae_title} runs {', '.join(self.roles)}"]
        if Role.LISTENER in self.roles:
            said.append(f"listens on {self.settings.node.bind}:{self.listener.port}")
        if Role.WEB in self.roles:
            said.append(f"status pages at {self.web_address}")
        return "; ".join(said)

    def _listen(self) -> listener.Listener:
        try:
            lost = partial(recover, self.db, self.spool, identify)
            return listener.serve(self.settings, self.db, self.spool, self.registry, lost=lost)
        except OSError as error:
            where = f"{self.settings.node.bind}:{self.settings.node.port}"
            raise Permanent(f"The node cannot listen on {where}: {error.strerror}. Change [node] port.") from None

    def _start_loops(self, stack: ExitStack) -> None:
        ticks = self._stages(stack) if Role.STAGES in self.roles else ()
        if Role.DOORBELL in self.roles:
            ticks = (*ticks, ("doorbell", self.pace.ring, partial(self._ring, broker.make_ring(self.broker_url))))
        for name, period, tick in ticks:
            stack.callback(Loop(name, period, tick, self.health).stop)

    def _inquiries(self, stack: ExitStack) -> tuple[tuple[str, float, Callable[[], object]], ...]:
        """Return what asks the archive, and twice what fetches: one long retrieval must not keep back the next."""
        db, rules = self.db, self.settings.completeness
        if rules.archive is None:
            return ()
        ticks: tuple[tuple[str, float, Callable[[], object]], ...] = (
            ("inquire", self.pace.assemble, lambda: inquiry.ask(db, self.settings, db.now, stopping=self._stopping)),
        )
        if rules.fetch == "no":
            return ticks
        take = listener.taking(lambda: self.settings, db, self.spool, stack)

        def fetch() -> int:
            return inquiry.fetch(db, self.settings, take, contexts.TRANSFER_SYNTAXES, db.now, stopping=self._stopping)

        return (*ticks, ("fetch", 1.0, fetch), ("fetch", 1.0, fetch))

    def _stages(self, stack: ExitStack) -> tuple[tuple[str, float, Callable[[], object]], ...]:
        """Return name, pace and tick of each stage that moves studies on."""
        db = self.db
        return (
            *self._inquiries(stack),
            (
                "assemble",
                self.pace.assemble,
                lambda: assembler.tick(db, self.spool, self.settings, db.now(), self._trail),
            ),
            ("route", self.pace.route, self._routing.tick),
            ("settle", self.pace.settle, partial(self._settle, TurnedBack())),
            ("retention", self.pace.retain, lambda: retention.tick(db, self.spool, self.settings, db.now())),
        )

    def _settle(self, turned_back: TurnedBack) -> None:
        committing = [name for name, destination in self.settings.destination.items() if destination.commitment]
        turned_back.tick(self.db, self.db.now())
        if failed := time.monotonic() >= self._look_at_failed:  # what an earlier version left, or a new configuration
            self._look_at_failed = time.monotonic() + _FAILED_AGAIN_S
        studies.settle(self.db, self.db.now(), committing, partial(transfers.note, self._trail), failed)

    def _ring(self, ring: broker.Bell) -> int:
        return doorbell.tick(self.db, ring, self.settings, self.db.now())

    def _start_web(self, stack: ExitStack) -> None:
        from node.web.server import serve

        stow = self.listener.stow if Role.LISTENER in self.roles else None
        server = serve(self.db, self.settings, self.health, self.registry, stow)
        self.web_port = server.port
        stack.callback(server.stop)
