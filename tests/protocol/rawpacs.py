"""A PACS made of bytes: it answers what a test says, and need not keep to the standard."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

Talk = Callable[["Line"], None]
ABORT = bytes.fromhex("07000000000400000000")
RELEASE_RQ = bytes.fromhex("05000000000400000000")
RELEASE_RP = bytes.fromhex("06000000000400000000")
EXPLICIT, JPEG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"


def item(kind: int, value: bytes) -> bytes:
    """An item of an A-ASSOCIATE PDU (PS3.8 §9.3.2)."""
    return struct.pack(">BxH", kind, len(value)) + value


def accepted(contexts: dict[int, str], max_length: int = 16384) -> bytes:
    """A-ASSOCIATE-AC that accepts these contexts, each with a Transfer Syntax (PS3.8 §9.3.3)."""
    body = struct.pack(">HH", 1, 0) + b"SIM_PACS        WETREAD         " + bytes(32)
    body += item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, syntax in contexts.items():
        body += item(0x21, bytes((number, 0, 0, 0)) + item(0x40, syntax.encode()))
    body += item(0x50, item(0x51, struct.pack(">L", max_length)) + item(0x52, b"1.2.3.4"))
    return struct.pack(">BxL", 2, len(body)) + body


def element(number: int, value: bytes) -> bytes:
    """A Command Element, group 0000 (PS3.7 §6.3)."""
    return struct.pack("<HHL", 0, number, len(value)) + value


def response(command: int, status: int | None = 0x0000, number: int = 1, context: int = 1) -> bytes:
    """P-DATA-TF with the response of a DIMSE service, and no Data Set."""
    body = element(0x0002, b"1.2.840.10008.5.1.4.1.1.88.34\0") + element(0x0100, struct.pack("<H", command))
    body += element(0x0120, struct.pack("<H", number)) + element(0x0800, struct.pack("<H", 0x0101))
    if status is not None:
        body += element(0x0900, struct.pack("<H", status))
    body = element(0x0000, struct.pack("<L", len(body))) + body
    value = struct.pack(">LBB", len(body) + 2, context, 3) + body
    return struct.pack(">BxL", 4, len(value)) + value


class Line:
    """One connection, as the PACS sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def read(self) -> tuple[int, bytes]:
        """Return the kind and the body of the next PDU; raises `OSError` at the end."""
        kind, length = struct.unpack(">BxL", self._exactly(6))
        return kind, self._exactly(length)

    def read_message(self) -> bytes:
        """Return the bytes of P-DATA-TF up to the last fragment of a Data Set; raises `OSError` at anything else."""
        whole = b""
        while True:
            kind, body = self.read()
            if kind != 4:
                raise ConnectionError
            whole += body
            if body[5] == 2:
                return whole

    def send(self, data: bytes) -> None:
        """Send as it is."""
        self._connection.sendall(data)

    def close(self) -> None:
        """End the connection."""
        self._connection.shutdown(socket.SHUT_RDWR)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._connection.recv(size - len(data))
            if not more:
                raise ConnectionError
            data += more
        return data


class RawPacs:
    """A context manager: every connection gets `talk`, after which it is open until the end of the block."""

    def __init__(self, talk: Talk) -> None:
        self._talk, self.connections = talk, 0

    def __enter__(self) -> RawPacs:
        self._open: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self._open.append(connection)
                self.connections += 1
                threading.Thread(target=self._answer, args=(Line(connection),), daemon=True).start()

    def _answer(self, line: Line) -> None:
        with suppress(OSError):
            self._talk(line)
