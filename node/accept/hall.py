"""The hall: the associations that this process serves, each in a thread of its own, and how they come to an end."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Sequence

from pynetdicom.presentation import PresentationContext

from node.accept.association import AssociationRequest, Rejection
from node.accept.dataphase import Association
from node.accept.guard import Limits, close
from node.accept.negotiate import Proposal
from node.accept.receive import Door
from node.accept.registrar import Registrar
from node.accept.scp import Services
from node.accept.wire import Wire
from node.log import describe
from node.store.ingestlog import IngestLog

logger = logging.getLogger(__name__)


class Hall:
    """Serves connections whose A-ASSOCIATE-RQ has come whole."""

    def __init__(self, contexts: Sequence[PresentationContext], services: Services, limits: Limits) -> None:
        self._contexts, self._services, self._limits = contexts, services, limits
        self._associations: set[Association] = set()
        self._lock = threading.Lock()

    def start(self, number: int, connection: socket.socket, address: str, first: bytes) -> None:
        """Serve association `number`, whose request is `first`; never raises."""
        try:
            wire = Wire(connection, self._limits)
            association = Association(wire, address, self._services, self._limits, number)
            thread = threading.Thread(target=self._run, args=(association, first), name="association", daemon=True)
            with self._lock:
                self._associations.add(association)
            thread.start()
        except Exception as error:  # a border: one connection must not end what others wait for
            logger.error("An association did not start.", extra={"action": "accept_failed", "error": describe(error)})
            close(connection)
            self._services.left(number)

    @property
    def is_empty(self) -> bool:
        """Whether nobody is here."""
        return not self._associations

    def finish(self, door: Door, registrar: Registrar, ingest_log: IngestLog, timeout_s: float) -> bool:
        """Answer what is being received, abort the rest, bring index and files up to date; False: recovery must."""
        answered = door.close(timeout_s)
        self._let_answers_go()
        with self._lock:
            associations = list(self._associations)
        for association in associations:
            association.abort()
        registered = registrar.close(timeout_s)
        return ingest_log.close() and answered and registered

    def _let_answers_go(self) -> None:
        """Give the responses a moment to leave: an A-ABORT in front of one makes its peer send the instance again."""
        deadline = time.monotonic() + 0.5
        while self._is_busy() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _is_busy(self) -> bool:
        with self._lock:
            return any(association.is_busy for association in self._associations)

    def _run(self, association: Association, first: bytes) -> None:
        try:
            association.run(first, self._contexts, self._enter)
        finally:
            with self._lock:
                self._associations.discard(association)

    def _enter(self, association: Association, proposal: Proposal) -> Rejection | None:
        request = AssociationRequest(
            calling_ae=proposal.calling_ae,
            called_ae=proposal.called_ae,
            address=association.address,
            application_context=proposal.application_context,
            identity=proposal.identity,
        )
        return self._services.desk.enter(association.number, request)
