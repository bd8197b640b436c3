"""The accept loop: one selector for the listening socket and the vestibule; associations run in threads of their own.

A TLS handshake is made in the vestibule, never in `accept`.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from pynetdicom.presentation import PresentationContext

from node.accept.association import AssociationRequest, Rejection
from node.accept.dataphase import Association
from node.accept.guard import Limits, close
from node.accept.negotiate import Proposal
from node.accept.scp import Services
from node.accept.vestibule import Address, Vestibule
from node.accept.wire import Wire
from node.log import describe
from node.tls import Certificates

logger = logging.getLogger(__name__)

_TICK_S = 0.5
_BACKLOG = 128


class Server:
    """Listens at `address`; raises `OSError` when it is taken."""

    def __init__(
        self,
        address: tuple[str, int],
        contexts: Sequence[PresentationContext],
        services: Services,
        limits: Limits,
        turned_away: Callable[[str, str], None],
        tls: Certificates | None = None,
    ) -> None:
        self._tls = tls
        self._contexts, self._services, self._limits, self._turned_away = contexts, services, limits, turned_away
        self._listening = _listen(address)
        self.port = int(self._listening.getsockname()[1])
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._associations: set[Association] = set()
        self._lock = threading.Lock()
        self._stopping = False

    def serve_forever(self) -> None:
        """Accept and read until `stop` is called."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listening, selectors.EVENT_READ)
            selector.register(self._wake_reader, selectors.EVENT_READ)
            vestibule = Vestibule(
                selector,
                self._limits,
                self._admit,
                self._turned_away,
                self._services.admission.knows_address,
                self._tls,
            )
            while not self._stopping:
                for key, _ in selector.select(_TICK_S):
                    self._serve(key.fileobj, vestibule)
                vestibule.expire()
            vestibule.close()
        for end in (self._listening, self._wake_reader, self._wake_writer):
            end.close()

    def stop(self) -> None:
        """Make `serve_forever` return; connections that associate stay."""
        self._stopping = True
        with suppress(OSError):  # the loop saw it between two rounds and has closed the pair already
            self._wake_writer.send(b"\0")

    @property
    def established(self) -> int:
        """Associations that are established now."""
        with self._lock:
            return sum(association.is_established for association in self._associations)

    @property
    def busy(self) -> int:
        """Associations that have a request in hand now."""
        with self._lock:
            return sum(association.is_busy for association in self._associations)

    def abort(self) -> None:
        """Abort every association."""
        with self._lock:
            associations = list(self._associations)
        for association in associations:
            association.abort()

    def _serve(self, ready: Any, vestibule: Vestibule) -> None:
        try:
            if ready is self._listening:
                self._accept(vestibule)
            elif ready is not self._wake_reader:
                vestibule.read(ready)
        except Exception as error:  # a border: one connection must not end the accept loop
            logger.error("A connection failed.", extra={"action": "accept_failed", "error": describe(error)})

    def _accept(self, vestibule: Vestibule) -> None:
        try:
            connection, address = self._listening.accept()
        except OSError as error:  # the peer is gone again, or there are no descriptors left
            logger.warning(
                "A connection was not accepted.", extra={"action": "accept_failed", "error": describe(error)}
            )
            time.sleep(0.05)
            return
        vestibule.enter(connection, address)

    def _admit(self, connection: socket.socket, address: Address, first: bytes) -> None:
        try:
            association = Association(Wire(connection, self._limits), address[0], self._services, self._limits)
            thread = threading.Thread(target=self._run, args=(association, first), name="association", daemon=True)
            with self._lock:
                self._associations.add(association)
            thread.start()
        except Exception as error:  # a border: one connection must not end the accept loop
            logger.error("An association did not start.", extra={"action": "accept_failed", "error": describe(error)})
            close(connection)

    def _run(self, association: Association, first: bytes) -> None:
        try:
            association.run(first, self._contexts, self._enter)
        finally:
            with self._lock:
                self._associations.discard(association)

    def _enter(self, association: Association, proposal: Proposal) -> Rejection | None:
        """Decide and count in one go, so that two requests cannot both be the last one."""
        with self._lock:
            others = [other for other in self._associations if other.is_established]
            request = AssociationRequest(
                calling_ae=proposal.calling_ae,
                called_ae=proposal.called_ae,
                address=association.address,
                application_context=proposal.application_context,
                established_from_address=sum(other.address == association.address for other in others),
                established_by_peer=Counter(
                    self._services.admission.peer(other.calling_ae, other.address) for other in others
                ),
                identity=proposal.identity,
            )
            rejection = self._services.admission.decide(request)
            association.is_established = rejection is None
            return rejection


def _listen(address: tuple[str, int]) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening
