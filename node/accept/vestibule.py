"""The vestibule: where a connection waits, without a thread, until its A-ASSOCIATE-RQ is complete.

Strangers that connect and say nothing, say it slowly, or speak another protocol never get further. When it is full
the oldest of the address that waits most often is shown out, so half-open connections cannot keep a peer outside.
"""

from __future__ import annotations

import logging
import selectors
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from node.accept.guard import (
    A_ASSOCIATE_RQ,
    HEADER,
    INVALID_PARAMETER,
    PDU_TYPES,
    UNEXPECTED_PDU,
    Limits,
    abort_pdu,
    close,
)
from node.tls import Certificates

_NOT_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
logger = logging.getLogger(__name__)

Address = tuple[str, int] | tuple[str, int, int, int]
Admit = Callable[[socket.socket, Address, bytes], None]
_QUIET_S = 10.0
"""Strangers are logged at most this often; the metrics count all of them."""


@dataclass
class _Waiting:
    """A connection of which not all of the first PDU has come."""

    connection: socket.socket
    address: Address
    deadline: float
    is_known: bool = False
    """Whether a peer has this address."""
    is_encrypting: bool = False
    """Whether its TLS handshake still goes on."""
    received: bytearray = field(default_factory=bytearray)
    expected: int = HEADER.size


class Vestibule:
    """Waiting connections, read when the selector says so; whole A-ASSOCIATE-RQs go to `admit` with their bytes."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        limits: Limits,
        admit: Admit,
        turned_away: Callable[[str, str], None],
        knows: Callable[[str], bool],
        tls: Certificates | None = None,
    ) -> None:
        self._selector, self._limits, self._admit, self._turned_away = selector, limits, admit, turned_away
        self._knows, self._tls = knows, tls
        self._waiting: dict[socket.socket, _Waiting] = {}
        self._logged_at = float("-inf")

    def enter(self, connection: socket.socket, address: Address) -> None:
        """Let a new connection wait, and show the oldest out if there are too many."""
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        is_known, deadline = self._knows(address[0]), time.monotonic() + self._limits.first_pdu_s
        self._make_room(address[0])
        if self._tls is not None:
            connection = self._tls.wrap(connection)
        self._waiting[connection] = _Waiting(connection, address, deadline, is_known, self._tls is not None)
        self._selector.register(connection, selectors.EVENT_READ)

    def read(self, connection: socket.socket) -> None:
        """Read all that has come on a waiting connection; a TLS connection may hold more than the selector sees."""
        waiting = self._waiting.get(connection)
        if waiting is None:  # shown out in the same round
            return
        if waiting.is_encrypting and not self._shake_hands(waiting):
            return
        while connection in self._waiting:
            try:
                data = connection.recv(waiting.expected - len(waiting.received))
            except _NOT_YET:
                return
            except OSError:
                data = b""
            if not data:
                self._show_out(waiting, "closed")
                return
            waiting.received += data
            if len(waiting.received) == waiting.expected:
                self._advance(waiting)

    def _shake_hands(self, waiting: _Waiting) -> bool:
        """Go on with the TLS handshake as far as it goes without waiting; say whether it is done."""
        assert isinstance(waiting.connection, ssl.SSLSocket)  # noqa: S101 - `enter` made it one
        try:
            waiting.connection.do_handshake()
        except ssl.SSLWantWriteError:
            self._selector.modify(waiting.connection, selectors.EVENT_READ | selectors.EVENT_WRITE)
            return False
        except ssl.SSLWantReadError:
            return False
        except OSError:
            self._show_out(waiting, "TLS handshake")
            return False
        self._selector.modify(waiting.connection, selectors.EVENT_READ)
        waiting.is_encrypting = False
        return True

    def expire(self) -> None:
        """Show out whoever took too long."""
        now = time.monotonic()
        for waiting in [w for w in self._waiting.values() if w.deadline <= now]:
            self._show_out(waiting, "too slow")

    def close(self) -> None:
        """Show everybody out."""
        for waiting in list(self._waiting.values()):
            self._show_out(waiting, "closed")

    def _advance(self, waiting: _Waiting) -> None:
        """Go from a whole header to the body, and from a whole PDU to the association."""
        pdu_type, _, length = HEADER.unpack(waiting.received[: HEADER.size])
        if pdu_type != A_ASSOCIATE_RQ:
            reason = "unexpected PDU" if pdu_type in PDU_TYPES else "not DICOM"
            return self._show_out(waiting, reason, abort_pdu(UNEXPECTED_PDU))
        if length > self._limits.control_pdu:
            return self._show_out(waiting, "too long", abort_pdu(INVALID_PARAMETER))
        waiting.expected = HEADER.size + length
        if len(waiting.received) == waiting.expected:
            self._forget(waiting)
            waiting.connection.setblocking(True)
            self._admit(waiting.connection, waiting.address, bytes(waiting.received))
        return None

    def _make_room(self, host: str) -> None:
        """Show out the oldest of `host`, or of the stranger who waits most often, when a limit is reached.

        The address of a peer is only shown out for itself, unless all who wait have one.
        """
        hosts = Counter(w.address[0] for w in self._waiting.values())
        if hosts[host] >= self._limits.half_open_per_address:
            crowd = host
        elif len(self._waiting) >= self._limits.half_open:
            strangers = Counter(w.address[0] for w in self._waiting.values() if not w.is_known)
            crowd = (strangers or hosts).most_common(1)[0][0]
        else:
            return
        oldest = next(w for w in self._waiting.values() if w.address[0] == crowd)  # dicts keep their order
        self._show_out(oldest, "too many")

    def _show_out(self, waiting: _Waiting, reason: str, last_words: bytes = b"") -> None:
        self._forget(waiting)
        if last_words and not waiting.is_encrypting:
            with suppress(OSError):  # it does not listen
                waiting.connection.send(last_words)
        close(waiting.connection)
        if reason != "closed" or waiting.received:
            self._complain(waiting, reason)

    def _forget(self, waiting: _Waiting) -> None:
        self._selector.unregister(waiting.connection)
        del self._waiting[waiting.connection]

    def _complain(self, waiting: _Waiting, reason: str) -> None:
        self._turned_away(reason, waiting.address[0])
        if time.monotonic() - self._logged_at < _QUIET_S:
            return
        self._logged_at = time.monotonic()
        extra = {"action": "connection_turned_away", "address": waiting.address[0], "reason": reason}
        logger.warning("A connection ended without an association request.", extra=extra)
