"""The accept loop: one selector for the listening socket and the vestibule; associations run in threads of their own.

A seam for more: several processes may run this loop on one port (`SO_REUSEPORT`), and a TLS handshake belongs into
the vestibule, never into `accept`.
"""

from __future__ import annotations

import gc
import logging
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationServer, RequestHandler

from node.accept.guard import GuardedDIMSE, GuardedSocket, GuardedStateMachine, Limits, close
from node.accept.queues import Indications, Outgoing
from node.accept.vestibule import Address, Vestibule
from node.log import describe

logger = logging.getLogger(__name__)

_TICK_S = 0.5
_COLLECT_S = 30.0


class _Shared(list[Any]):
    """A list that every association may share: pynetdicom copies the contexts for each, which takes 40 ms."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


class GuardedServer(AssociationServer):
    """An association server whose connections pass the vestibule and run under `limits`."""

    request_queue_size = 128

    def __init__(
        self,
        ae: AE,
        address: tuple[str, int],
        contexts: list[PresentationContext],
        handlers: list[Any],
        limits: Limits,
        turned_away: Callable[[str], None],
    ) -> None:
        self._wake_reader, self._wake_writer = socket.socketpair()  # first: a taken port calls `server_close`
        super().__init__(ae, address, ae.ae_title, contexts, evt_handlers=handlers, request_handler=_Handler)
        self.limits, self._turned_away = limits, turned_away
        self.contexts = _Shared(self.contexts)
        self._stopping = False
        self._collected_at = time.monotonic()

    def serve_forever(self, poll_interval: float = _TICK_S) -> None:
        """Accept and read until `stop` is called."""
        listening = cast(socket.socket, self.socket)
        listening.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(listening, selectors.EVENT_READ)
            selector.register(self._wake_reader, selectors.EVENT_READ)
            vestibule = Vestibule(selector, self.limits, self._admit, self._turned_away)
            while not self._stopping:
                for key, _ in selector.select(poll_interval):
                    self._serve(key.fileobj, vestibule)
                vestibule.expire()
                self._collect()
            vestibule.close()
        self.server_close()

    def stop(self) -> None:
        """Make `serve_forever` return; connections that associate stay."""
        self._stopping = True
        with suppress(OSError):  # the loop saw it between two rounds and has closed the pair already
            self._wake_writer.send(b"\0")

    def server_close(self) -> None:
        """Close the listening socket and the pair that wakes the loop."""
        super().server_close()
        self._wake_reader.close()
        self._wake_writer.close()

    def _serve(self, ready: Any, vestibule: Vestibule) -> None:
        try:
            if ready is self.socket:
                self._accept(vestibule)
            elif ready is not self._wake_reader:
                vestibule.read(ready)
        except Exception as error:  # a border: one connection must not end the accept loop
            logger.error("A connection failed.", extra={"action": "accept_failed", "error": describe(error)})

    def _accept(self, vestibule: Vestibule) -> None:
        try:
            connection, address = cast(socket.socket, self.socket).accept()
        except OSError as error:  # the peer is gone again, or there are no descriptors left
            logger.warning(
                "A connection was not accepted.", extra={"action": "accept_failed", "error": describe(error)}
            )
            time.sleep(0.05)
            return
        vestibule.enter(connection, address)

    def _admit(self, connection: socket.socket, address: Address, first: bytes) -> None:
        try:
            _Handler.admit(connection, address, self, first)
        except Exception as error:  # a border: one connection must not end the accept loop
            logger.error("An association did not start.", extra={"action": "accept_failed", "error": describe(error)})
            close(connection)

    def _collect(self) -> None:
        """Free what ended associations left in reference cycles: it may be many megabytes that count as few objects."""
        if time.monotonic() - self._collected_at > _COLLECT_S:
            gc.collect()
            self._collected_at = time.monotonic()


class _Handler(RequestHandler):
    """Makes the association of one admitted connection."""

    server: GuardedServer
    first = b""

    @classmethod
    def admit(cls, connection: socket.socket, address: Address, server: GuardedServer, first: bytes) -> None:
        """Start the association whose A-ASSOCIATE-RQ is `first`."""
        handler = cls.__new__(cls)
        handler.request, handler.client_address, handler.server = connection, address, server
        handler.first = first
        handler.handle()

    def _create_association(self) -> Association:
        assoc = super()._create_association()
        assoc.dul.event_queue.get_nowait()  # the stock socket announced the connection; ours does so again
        assoc.dul.socket = None
        assoc.dimse = GuardedDIMSE(assoc, self.server.limits)
        assoc.dul.to_provider_queue, assoc.dul.to_user_queue = Outgoing(), Indications(assoc.dimse.msg_queue)
        assoc.set_socket(
            GuardedSocket(assoc, self.request, self.server.limits, self.first, assoc.dul.to_provider_queue)
        )
        assoc.dul.state_machine = GuardedStateMachine(assoc.dul)
        assoc.dul.daemon = True
        return assoc
