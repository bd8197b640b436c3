"""The HTTP server: uvicorn in a thread of the node, on a socket bound before it starts."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections import Counter
from operator import attrgetter

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from node.errors import Permanent
from node.log import Sparing
from node.metrics import Registry
from node.settings import Settings
from node.store.db import Database
from node.web.app import make_app
from node.web.health import Health

HEADER_WITHIN_S = 10.0
"""Seconds in which a request's header must be there; seen to within as long again."""
AT_ONCE, SPARE = 64, 8
"""Connections at the same time; with fewer than `SPARE` left, one on which nothing happens makes room."""


_SPARING = Sparing(lambda record: record.levelno == logging.WARNING)
"""For what uvicorn says of requests: a stranger who talks nonsense causes a line each time, and fills a disk."""


class Impatient(H11Protocol):
    """Ends a connection whose request does not come; uvicorn would wait, and sixty-four of them are all there are."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch."""
        self._make_room()
        super().connection_made(transport)
        self.begun = self.loop.time()
        self._watch = self.loop.call_later(HEADER_WITHIN_S, self._look, None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Watch no more."""
        self._watch.cancel()
        super().connection_lost(exc)

    @property
    def is_waiting(self) -> bool:
        """Whether no request is in hand."""
        return self.cycle is None or self.cycle.response_complete

    def _make_room(self) -> None:
        """Where places run short, end the connection that has waited longest of the address that waits most often.

        A stranger could otherwise keep everybody else outside by connections on which nothing happens.
        """
        if len(self.connections) < AT_ONCE - SPARE:
            return
        waiting = [one for one in self.connections if isinstance(one, Impatient) and one.is_waiting]
        by_address = [(one.client[0], one) for one in waiting if one.client and not one.transport.is_closing()]
        for crowd, _ in Counter(address for address, _ in by_address).most_common(1):
            min((one for address, one in by_address if address == crowd), key=attrgetter("begun")).transport.close()

    def _look(self, last: RequestResponseCycle | None) -> None:
        """End it when still the same request has been answered, and no other has begun, as at the look before."""
        if self.is_waiting and self.cycle is last:
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()
            return
        self._watch = self.loop.call_later(HEADER_WITHIN_S, self._look, self.cycle)


class Server:
    """A running server; `port` is the one bound, also where the settings say 0."""

    def __init__(self, listening: socket.socket, config: uvicorn.Config) -> None:
        self.port: int = listening.getsockname()[1]
        self._socket, self._server = listening, uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="web", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer what is in hand and end."""
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()


def serve(
    db: Database, settings: Settings, health: Health, registry: Registry | None = None, stow: ASGIApp | None = None
) -> Server:
    """Start the status pages, and with them the door `stow` where it is given.

    Raises `Permanent` when the address is taken or the token cannot be read.
    """
    app = make_app(db, settings, health, registry, stow)
    logging.getLogger("uvicorn.error").addFilter(_SPARING)
    config = uvicorn.Config(
        app,
        http=Impatient,
        log_config=None,
        access_log=False,  # a path may hold a Study Instance UID
        server_header=False,
        limit_concurrency=AT_ONCE,
        timeout_keep_alive=5,
        h11_max_incomplete_event_size=16 * 1024,
        timeout_graceful_shutdown=2,
    )
    return Server(_bind(settings.web.bind, settings.web.port), config)


def _bind(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)  # whoever connects before the thread runs waits instead of being refused
    except OSError as error:
        listening.close()
        message = f"The status pages cannot listen on {host}:{port}: {error.strerror}. Change [web] port."
        raise Permanent(message) from None
    return listening
