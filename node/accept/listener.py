"""The DICOM listener: `serve` starts it, `Listener.stop` ends it without losing what was acknowledged.

One process with one thread per association.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from pynetdicom import _config

from node.accept import contexts
from node.accept.association import Admission
from node.accept.guard import Limits
from node.accept.receive import Arrival, Door, Registrar
from node.accept.scp import Services
from node.accept.server import Server
from node.accept.stow import Stow
from node.audit import Audit, AuditEvent, Outcome
from node.clock import now
from node.metrics import Metric, Registry
from node.settings import Settings, state_folder
from node.store import completion, deliveries, studies
from node.store.db import Database
from node.store.ingestlog import IngestLog
from node.store.spool import Spool
from node.tls import Certificates

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10.0
TURNED_AWAY = ("closed", "too slow", "too many", "too long", "not DICOM", "unexpected PDU", "TLS handshake")


class Listener:
    """A running listener; `port` is the one it got when the settings ask for port 0."""

    def __init__(
        self, server: Server, door: Door, registrar: Registrar, ingest_log: IngestLog, audit: Audit, stow: Stow
    ) -> None:
        self.stow = stow
        """The second door, to be mounted in the HTTP face."""
        self._server, self._door, self._registrar, self._audit = server, door, registrar, audit
        self._log = ingest_log
        self._stopped = False
        self.port = server.port
        self._thread = threading.Thread(target=server.serve_forever, name="listener", daemon=True)
        self._thread.start()

    @property
    def associations(self) -> int:
        """Associations that are established now."""
        return self._server.established

    @property
    def waiting(self) -> int:
        """Instances that are durable and acknowledged but not in the index yet."""
        return self._registrar.waiting

    def wait_until_registered(self, timeout_s: float) -> bool:
        """Wait until the index knows everything acknowledged so far; False when time ran out."""
        deadline = time.monotonic() + timeout_s
        while self._registrar.waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self._registrar.waiting

    def is_alive(self) -> bool:
        """Say whether connections are accepted."""
        return self._thread.is_alive()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Accept nothing more, answer what is being received, abort the rest, and bring the index up to date."""
        if self._stopped:
            return
        self._stopped = True
        self._server.stop()
        self._thread.join(timeout_s)
        self.stow.close()
        answered = self._door.close(timeout_s)
        self._let_answers_go()
        self._server.abort()
        registered = self._registrar.close(timeout_s)
        settled = self._log.close()
        if not (answered and registered and settled):
            logger.warning("Not everything was finished; recovery does it.", extra={"action": "listener_stopped"})
        self._audit.write(AuditEvent.APPLICATION_STOP, Outcome.SUCCESS)
        self._audit.close()
        logger.info("The listener has stopped.", extra={"action": "listener_stopped", "port": self.port})

    def _let_answers_go(self) -> None:
        """Give the responses a moment to leave: an A-ABORT in front of one makes its peer send the instance again."""
        deadline = time.monotonic() + 0.5
        while self._server.busy and time.monotonic() < deadline:
            time.sleep(0.01)


def serve(
    settings: Settings, db: Database, spool: Spool, metrics: Registry | None = None, limits: Limits | None = None
) -> Listener:
    """Listen at `node.bind`:`node.port` and return at once.

    Raises `OSError` when the port is taken. The audit trail is `audit.log` in the state folder.
    """
    metrics, limits = metrics or Registry(), limits or Limits()
    _quiet_pynetdicom()
    register = partial(studies.register, db, late=settings.completeness.late_instances)
    registrar, ingest_log = Registrar(register, released=partial(completion.released, db)), IngestLog(spool)
    door = Door(spool, registrar, ingest_log, check=settings.ingest.check)
    audit = Audit(state_folder(settings) / "audit.log")
    committed = partial(deliveries.committed, db)
    services = Services(
        Admission(settings), door, committed, audit, metrics, lambda _, studies: registrar.release(studies, now())
    )
    turned_away = metrics.counter("wetread_connections_turned_away_total", "Without association.", reason=TURNED_AWAY)
    certificates = Certificates(settings.tls) if settings.tls.certificate else None
    server = Server(
        (settings.node.bind, settings.node.port),
        contexts.supported(),
        services,
        limits,
        turned_away=partial(_turned_away, turned_away, audit),
        tls=certificates,
    )
    listener = Listener(server, door, registrar, ingest_log, audit, Stow(door, audit, metrics))
    _announce(listener, settings, metrics, audit)
    return listener


def taking(settings: Settings, db: Database, spool: Spool, stack: ExitStack) -> Callable[[bytes, str, str, str], int]:
    """Return a door for instances that we fetch ourselves: the same checks, the same promise; `stack` closes it.

    It takes data set, SOP Class, SOP Instance and Transfer Syntax, and returns the status of the C-STORE.
    """
    registrar = Registrar(partial(studies.register, db, late=settings.completeness.late_instances))
    door, calling_ae = (
        Door(spool, registrar, check=settings.ingest.check),
        settings.destination[str(settings.completeness.archive)].ae_title,
    )
    stack.callback(registrar.close, STOP_TIMEOUT_S)

    def take(dataset: bytes, sop_class: str, sop_instance: str, syntax: str) -> int:
        return int(door.receive(dataset, Arrival(sop_class, sop_instance, syntax, calling_ae)).status)

    return take


def _turned_away(counter: Metric, audit: Audit, reason: str, address: str) -> None:
    """Count who was shown out; a handshake that failed is a security alert (PS3.15 §A.5.3.11)."""
    counter.add(reason=reason)
    if reason == "TLS handshake":
        audit.write(
            AuditEvent.ASSOCIATION_REJECTED, Outcome.SERIOUS_FAILURE, reason="TLS handshake failed", address=address
        )


def _announce(listener: Listener, settings: Settings, metrics: Registry, audit: Audit) -> None:
    metrics.probe("wetread_associations", "Associations open now.", lambda: listener.associations)
    metrics.probe("wetread_index_waiting", "Acknowledged instances that wait for the index.", lambda: listener.waiting)
    audit.write(AuditEvent.APPLICATION_START, Outcome.SUCCESS)
    extra = {"action": "listener_started", "port": listener.port, "address": settings.node.bind}
    logger.info("The listener is ready.", extra=extra | {"called_ae": settings.node.ae_title})


def _quiet_pynetdicom() -> None:
    """Keep pynetdicom from formatting what it receives, and let broken UIDs reach the door, which answers C000H."""
    _config.LOG_HANDLER_LEVEL = "none"
    _config.VALIDATORS["UI"] = lambda value: (True, "")
