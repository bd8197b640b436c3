"""The accept loop: one selector for the listening socket and the vestibule; who associates goes on to `admit`.

A TLS handshake is made in the vestibule, never in `accept`.
"""

from __future__ import annotations

import logging
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from node.accept.guard import Limits
from node.accept.vestibule import Admit, Vestibule
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
        limits: Limits,
        knows: Callable[[str], bool],
        admit: Admit,
        turned_away: Callable[[str, str], None],
        tls: Certificates | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._limits, self._knows, self._admit, self._turned_away, self._tls = limits, knows, admit, turned_away, tls
        self._tick = tick
        self._listening = _listen(address)
        self.port = int(self._listening.getsockname()[1])
        self._wake_reader, self._wake_writer = socket.socketpair()
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
                self._knows,
                self._tls,
            )
            while not self._stopping:
                for key, _ in selector.select(_TICK_S):
                    self._serve(key.fileobj, vestibule)
                vestibule.expire()
                self._tick()
            vestibule.close()
        for end in (self._listening, self._wake_reader, self._wake_writer):
            end.close()

    def stop(self) -> None:
        """Make `serve_forever` return; connections that associate stay."""
        self._stopping = True
        with suppress(OSError):  # the loop saw it between two rounds and has closed the pair already
            self._wake_writer.send(b"\0")

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
