"""The DICOM listener: `serve` starts it, `Listener.stop` ends it without losing what was acknowledged.

One thread per association, in this process or in listener processes of their own (`[node] listener_processes`).
Connections are accepted here either way, so there is one vestibule and one count of places. Over TLS the session
cannot be handed over, and this process serves it.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial

from node.accept import contexts
from node.accept.alerts import Alerts
from node.accept.association import Admission
from node.accept.guard import Limits
from node.accept.hall import Hall
from node.accept.places import Places
from node.accept.processes import Processes
from node.accept.receive import Arrival, Door
from node.accept.registrar import Registrar, Release
from node.accept.scp import Services
from node.accept.server import Server
from node.accept.serving import TICK_S, Charge, quiet_pynetdicom
from node.accept.stow import Stow
from node.accept.vestibule import Address
from node.audit import Audit, AuditEvent, Outcome
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

    def __init__(self, server: Server, interior: _Interior, audit: Audit, stow: Stow, alerts: Alerts) -> None:
        self.stow = stow
        """The second door, to be mounted in the HTTP face."""
        self._server, self._interior, self._audit, self._alerts = server, interior, audit, alerts
        self._stopped = False
        self.port = server.port
        self._thread = threading.Thread(target=server.serve_forever, name="listener", daemon=True)
        self._thread.start()

    @property
    def associations(self) -> int:
        """Associations that are established now."""
        return self._interior.places.taken

    @property
    def waiting(self) -> int:
        """Instances that are durable and acknowledged but not in the index yet."""
        processes = self.processes
        return self._interior.registrar.waiting + (processes.waiting if processes else 0)

    @property
    def processes(self) -> Processes | None:
        """The listener processes, None where this process serves by itself."""
        return self._interior.processes

    def reload(self, settings: Settings) -> None:
        """Take in peers, limits of associations, and how instances are checked; associations that stand stay.

        Listener processes count by the new names once they are rolled. Raises `Permanent`, and nothing has changed,
        when a passcode cannot be read.
        """
        self._interior.reload(settings)

    def roll(self) -> None:
        """Put new listener processes in the place of the old ones; no association notices. Returns when they serve."""
        if self.processes is not None and not self._stopped:
            self.processes.roll()

    def wait_until_registered(self, timeout_s: float) -> bool:
        """Wait until the index knows everything acknowledged so far; False when time ran out."""
        deadline = time.monotonic() + timeout_s
        if self.processes is not None:
            time.sleep(2 * TICK_S)  # in which they say what waits
        while self.waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self.waiting

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
        if self.processes is not None:
            self.processes.stop(timeout_s)
        self.stow.close()
        if not self._interior.finish(timeout_s):
            logger.warning("Not everything was finished; recovery does it.", extra={"action": "listener_stopped"})
        self._alerts.close()
        self._interior.services.alerts.close()
        self._audit.write(AuditEvent.APPLICATION_STOP, Outcome.SUCCESS)
        self._audit.close()
        logger.info("The listener has stopped.", extra={"action": "listener_stopped", "port": self.port})


@dataclass(frozen=True)
class _Interior:
    """What lies behind the vestibule."""

    places: Places
    services: Services
    hall: Hall
    door: Door
    registrar: Registrar
    ingest_log: IngestLog
    processes: Processes | None
    charge: Callable[[Settings], Charge]

    def reload(self, settings: Settings) -> None:
        """Take in what may change while a node runs."""
        admission = Admission(settings)
        self.places.admit(admission)
        self.services.admit(admission)
        self.door.check = settings.ingest.check
        if self.processes is not None:
            self.processes.charge(self.charge(settings))

    def knows(self, address: str) -> bool:
        """Say whether some peer has this address."""
        return self.services.admission.knows_address(address)

    def admit(self, connection: socket.socket, address: Address, first: bytes) -> None:
        """Let one connection in whose request has come whole: to a listener process, or where none takes it, here."""
        number = self.places.number()
        if (
            self.processes is None
            or isinstance(connection, ssl.SSLSocket)
            or not self.processes.hand_over(number, connection, address[0], first)
        ):
            self.hall.start(number, connection, address[0], first)

    def finish(self, timeout_s: float) -> bool:
        """Bring everything to an end; False when recovery has something to do."""
        return self.hall.finish(self.door, self.registrar, self.ingest_log, timeout_s)


def serve(
    settings: Settings,
    db: Database,
    spool: Spool,
    metrics: Registry | None = None,
    limits: Limits | None = None,
    lost: Callable[[], object] = lambda: None,
) -> Listener:
    """Listen at `node.bind`:`node.port` and return at once; with listener processes, when they are ready.

    Raises `OSError` when the port is taken. The audit trail is `audit.log` in the state folder. `lost` recovers what
    a listener process that died had acknowledged.
    """
    metrics, limits = metrics or Registry(), limits or Limits()
    quiet_pynetdicom()
    audit = Audit(state_folder(settings) / "audit.log")
    interior = _interior(settings, db, spool, metrics, limits, audit, lost)
    turned_away = metrics.counter("wetread_connections_turned_away_total", "Without association.", reason=TURNED_AWAY)
    alerts = Alerts(audit, "TLS handshake failed")
    try:
        server = Server(
            (settings.node.bind, settings.node.port),
            limits,
            interior.knows,
            interior.admit,
            turned_away=partial(_turned_away, turned_away, alerts),
            tick=partial(_settle, alerts, interior.services.alerts),
            tls=Certificates(settings.tls) if settings.tls.certificate else None,
        )
    except OSError:
        if interior.processes is not None:
            interior.processes.stop(1.0)
        raise
    stow = Stow(interior.door, audit, metrics, interior.places, interior.registrar.release)
    listener = Listener(server, interior, audit, stow, alerts)
    _announce(listener, settings, metrics, audit)
    return listener


def _interior(
    settings: Settings,
    db: Database,
    spool: Spool,
    metrics: Registry,
    limits: Limits,
    audit: Audit,
    lost: Callable[[], object],
) -> _Interior:
    admission = Admission(settings)
    places = Places(admission)
    registrar = Registrar(
        partial(studies.register, db, late=settings.completeness.late_instances),
        released=partial(_note_whole, db, places),
    )
    ingest_log = IngestLog(spool)
    door = Door(spool, registrar, ingest_log, db.now, check=settings.ingest.check)
    services = Services(
        admission,
        door,
        partial(deliveries.committed, db),
        audit,
        metrics,
        places,
        lambda number, is_released: registrar.release(Release(number, is_released, door.now())),
    )
    processes, charge = None, partial(_charge, db=db, spool=spool, limits=limits)
    if count := settings.node.listener_processes:
        processes = Processes(count, charge(settings), places, metrics, registrar.release, lost)
        processes.wait_until_ready(count)
    hall = Hall(contexts.supported(), services, limits)
    return _Interior(places, services, hall, door, registrar, ingest_log, processes, charge)


def _charge(settings: Settings, db: Database, spool: Spool, limits: Limits) -> Charge:
    return Charge(
        ae_title=settings.node.ae_title,
        peers=tuple((peer.name, peer.ae_title, peer.address) for peer in settings.peer),
        database=db.url.render_as_string(hide_password=False),
        spool=str(spool.root),
        refuse_below=spool.refuse_below,
        audit=str(state_folder(settings) / "audit.log"),
        check=settings.ingest.check,
        late=settings.completeness.late_instances,
        log=settings.log.model_dump(),
        limits=asdict(limits),
    )


def _note_whole(db: Database, places: Places, release: Release) -> None:
    """Note which studies an association leaves whole, now that all it brought is in the index."""
    if whole := places.ended(release.number, release.is_released):
        completion.released(db, whole, release.at)


def taking(
    in_force: Callable[[], Settings], db: Database, spool: Spool, stack: ExitStack
) -> Callable[[bytes, str, str, str], int]:
    """Return a door for instances that we fetch ourselves: the same checks, the same promise; `stack` closes it.

    It takes data set, SOP Class, SOP Instance and Transfer Syntax, and returns the status of the C-STORE. `in_force`
    returns the settings as the last reload has left them.
    """
    registrar = Registrar(partial(studies.register, db, late=in_force().completeness.late_instances))
    door = Door(spool, registrar, now=db.now)
    stack.callback(registrar.close, STOP_TIMEOUT_S)

    def take(dataset: bytes, sop_class: str, sop_instance: str, syntax: str) -> int:
        settings = in_force()
        door.check = settings.ingest.check
        calling_ae = settings.destination[str(settings.completeness.archive)].ae_title
        return int(door.receive(dataset, Arrival(sop_class, sop_instance, syntax, calling_ae)).status)

    return take


def _settle(*kinds: Alerts) -> None:
    for alerts in kinds:
        alerts.settle()


def _turned_away(counter: Metric, alerts: Alerts, reason: str, address: str) -> None:
    """Count who was shown out; a handshake that failed is a security alert (PS3.15 §A.5.3.11)."""
    counter.add(reason=reason)
    if reason == "TLS handshake":
        alerts.note(address=address)


def _announce(listener: Listener, settings: Settings, metrics: Registry, audit: Audit) -> None:
    metrics.probe("wetread_associations", "Associations open now.", lambda: listener.associations)
    metrics.probe("wetread_index_waiting", "Acknowledged instances that wait for the index.", lambda: listener.waiting)
    audit.write(AuditEvent.APPLICATION_START, Outcome.SUCCESS)
    extra = {"action": "listener_started", "port": listener.port, "address": settings.node.bind}
    logger.info("The listener is ready.", extra=extra | {"called_ae": settings.node.ae_title})
