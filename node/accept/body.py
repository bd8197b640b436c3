"""The body of an HTTP request as a plain iterator for a thread, with every limit that a sender could overrun.

The server hands out a chunk when it is asked for one and stops reading from the network until then, so what waits in
memory is a chunk, however fast the sender and however slow the disk.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

from node.accept.multipart import Malformed, TooLarge

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class Disconnected(Exception):
    """The sender has gone; nobody waits for an answer."""


class TooSlow(Exception):
    """The sender takes longer than anything that works."""


@dataclass(frozen=True)
class Pace:
    """How slow a sender may be: a pause in seconds, and what it must have sent after `grace_s`, in bytes per second."""

    pause_s: float = 30.0
    grace_s: float = 60.0
    slowest: float = 16 * 1024


class Body:
    """The chunks of one request; iterated in a thread while the event loop receives."""

    def __init__(self, receive: Receive, most: int, pace: Pace | None = None) -> None:
        self._receive, self._most, self._pace = receive, most, pace or Pace()
        self._loop = asyncio.get_running_loop()
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._pending: Future[Message] | None = None
        self._closed = False
        self.size = 0
        self.is_read = False
        """Whether all of it has arrived; an answer before that ends the connection."""

    def __iter__(self) -> Iterator[bytes]:
        """Yield the chunks; raises `TooLarge`, `TooSlow` and `Disconnected`."""
        while not self.is_read:
            message = self._next()
            if message["type"] != "http.request":
                raise Disconnected
            chunk: bytes = message.get("body", b"")
            self.is_read = not message.get("more_body", False)
            self.size += len(chunk)
            if self.size > self._most:
                raise TooLarge(f"more than {self._most:,} bytes in one request")
            if chunk:
                yield chunk

    def drain(self, most: int, within_s: float) -> None:
        """Read on for a moment, so that a sender which is about to end its body hears the answer; never raises."""
        until, self._most = time.monotonic() + within_s, self.size + most
        self._pace = Pace(pause_s=within_s)
        try:
            for _ in self:
                if time.monotonic() > until:
                    return
        except (Disconnected, TooSlow, TooLarge):
            return

    def close(self) -> None:
        """Let a thread that still waits for a chunk go; called on the event loop."""
        with self._lock:
            self._closed = True
            if self._pending is not None:
                self._pending.cancel()

    def _next(self) -> Message:
        elapsed = time.monotonic() - self._started
        if elapsed > self._pace.grace_s and self.size < (elapsed - self._pace.grace_s) * self._pace.slowest:
            raise TooSlow
        with self._lock:
            if self._closed:
                raise Disconnected
            self._pending = asyncio.run_coroutine_threadsafe(self._one(), self._loop)
        try:
            return self._pending.result(self._pace.pause_s)
        except TimeoutError:
            self._pending.cancel()
            raise TooSlow from None
        except CancelledError:
            raise Disconnected from None

    async def _one(self) -> Message:
        return await self._receive()


def declared_length(headers: dict[str, str]) -> int:
    """Return Content-Length, 0 where there is none; raises `Malformed` when it contradicts itself (RFC 9112 §6.1)."""
    length = headers.get("content-length", "")
    if length and "transfer-encoding" in headers:
        raise Malformed("the request has both Content-Length and Transfer-Encoding")
    if length and not (length.isascii() and length.isdigit() and len(length) < 20):
        raise Malformed("the Content-Length is no number")
    return int(length or 0)
