"""The bytes of one association: whole reads into buffers of ours, each under a deadline, and sends that end.

One system call reads a fragment where it belongs, however many TCP segments it comes in (`MSG_WAITALL`); the kernel
keeps the deadline (`SO_RCVTIMEO`). A TLS connection has neither and is read piece by piece.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from contextlib import suppress

from node.accept.guard import (
    HEADER,
    P_DATA_TF,
    PDU_TYPES,
    UNRECOGNIZED_PDU,
    Gone,
    Idle,
    Limits,
    ProtocolViolation,
    close,
)

_HEAD = HEADER.size + 4
"""A PDU's header and the 4 bytes that every PDU has behind it; of a P-DATA-TF they are the length of its first PDV."""
_LINGER_S = 1.0
"""How long the peer may take to close after our last word."""
_timeval = struct.Struct("@ll")
_u32 = struct.Struct(">L").unpack_from


class Wire:
    """A connected socket under `limits`."""

    def __init__(self, connection: socket.socket, limits: Limits) -> None:
        self._connection, self._limits = connection, limits
        self._is_tls = isinstance(connection, ssl.SSLSocket)
        self._head = memoryview(bytearray(_HEAD))
        self._deadline = self._patience = 0.0
        self._set_patience(limits.pdu_s)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _as_timeval(limits.send_s))

    def next_pdu(self) -> tuple[int, int, int]:
        """Wait for a PDU and return its type, the bytes that are left of it, and its first four as a number.

        Raises `Idle`, `Gone`, and `ProtocolViolation` for what is no PDU or is longer than agreed.
        """
        got = self._first_bytes()
        self._deadline = time.monotonic() + self._limits.pdu_s
        if got < HEADER.size:
            self._fill([self._head[got : HEADER.size]])
            got = HEADER.size
        kind, _, length = HEADER.unpack_from(self._head)
        self._check(kind, length)
        if got < _HEAD:
            self._fill([self._head[got:]])
        return kind, length - 4, _u32(self._head, HEADER.size)[0]

    def read(self, *views: memoryview) -> None:
        """Fill `views` with what is left of this PDU; raises `Gone`."""
        self._fill([view for view in views if view])

    def skip(self, count: int) -> None:
        """Read `count` bytes of this PDU and forget them; raises `Gone`."""
        if count:
            self._fill([memoryview(bytearray(count))])

    def send(self, data: bytes) -> None:
        """Send all of `data`; raises `Gone` when that does not end in time."""
        try:
            self._connection.sendall(data)
        except OSError:
            raise Gone("the peer does not read") from None

    def is_quiet(self) -> bool:
        """Say whether the peer has said nothing yet, as it must before it has our answer to its request."""
        if self._is_tls:
            return True
        try:
            return not self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return True

    def last_word(self, data: bytes) -> None:
        """Send `data` if that takes no time; from any thread."""
        with suppress(OSError):  # it does not listen
            if self._is_tls:
                self._connection.settimeout(0.5)
                self._connection.sendall(data)
            else:
                self._connection.send(data, socket.MSG_DONTWAIT)

    def shut(self) -> None:
        """Let whoever reads find the end; from any thread."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let our last word arrive, then close: a reset would overtake it."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
            self._connection.settimeout(_LINGER_S)
            until = time.monotonic() + _LINGER_S
            while self._connection.recv(4096) and time.monotonic() < until:
                pass
        close(self._connection)

    def _first_bytes(self) -> int:
        until = time.monotonic() + self._limits.idle_s
        while True:
            self._set_patience(min(self._limits.pdu_s, self._limits.idle_s))
            try:
                got = self._connection.recv_into(self._head)
            except (BlockingIOError, TimeoutError):
                if time.monotonic() >= until:
                    raise Idle from None
                continue
            except OSError:
                got = 0
            if not got:
                raise Gone("the peer closed the connection")
            return got

    def _check(self, kind: int, length: int) -> None:
        if kind not in PDU_TYPES:
            raise ProtocolViolation(f"no PDU has type {kind:02X}H", UNRECOGNIZED_PDU)
        limits = self._limits
        if length > (limits.pdu + limits.pdu_slack if kind == P_DATA_TF else limits.control_pdu):
            raise ProtocolViolation(f"PDU of type {kind:02X}H with {length} bytes")
        if length < 4:
            raise ProtocolViolation(f"PDU of type {kind:02X}H with {length} bytes only")

    def _fill(self, views: list[memoryview]) -> None:
        while views:
            got = self._receive(views)
            while views and got >= len(views[0]):
                got -= len(views.pop(0))
            if got:
                views[0] = views[0][got:]

    def _receive(self, views: list[memoryview]) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Gone("the peer takes too long for a PDU")
        if not 0.9 * self._patience <= left <= self._patience:
            self._set_patience(left)
        try:
            if self._is_tls:
                got = self._connection.recv_into(views[0])
            elif len(views) == 1:
                got = self._connection.recv_into(views[0], 0, socket.MSG_WAITALL)
            else:
                got = self._connection.recvmsg_into(views, 0, socket.MSG_WAITALL)[0]
        except (BlockingIOError, TimeoutError):
            return 0
        except OSError:
            raise Gone("the connection broke") from None
        if not got:
            raise Gone("the peer closed the connection within a PDU")
        return got

    def _set_patience(self, seconds: float) -> None:
        """Let one read wait this long; a system call only where it makes a difference."""
        if 0.9 * self._patience <= seconds <= self._patience:
            return
        self._patience = seconds
        if self._is_tls:
            self._connection.settimeout(seconds)
        else:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _as_timeval(seconds))


def _as_timeval(seconds: float) -> bytes:
    """Return a `struct timeval`; zero would mean for ever."""
    micros = max(int(seconds * 1e6), 1000)
    return _timeval.pack(*divmod(micros, 1_000_000))
