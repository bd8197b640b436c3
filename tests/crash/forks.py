"""Node, workers and readers as forks of one process that has imported everything, so that a start costs no imports.

They take 2 to 3 s of CPU each time, and a run that kills hundreds would consist of them. What is forked is a process
like any other: with its own log, its own children, and killed with kill -9; a reader is a child of its worker, on the
same leash. Run as `python -m tests.crash.forks DESCRIPTOR`.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from node import crashpoints, leash
from tests.crash import hurried

ROOT = Path(__file__).resolve().parents[2]
NEEDED = (
    "node.daemon", "node.assemble.inquiry", "node.cli_output", "node.web.server", "workers.app", "workers.tasks",
    "workers.messages", "workers.reader", "workers.send.commitment", "workers.send.outbox", "celery.apps.worker",
    "celery.bootsteps", "celery.concurrency.thread", "celery.worker.components", "celery.worker.consumer",
    "celery.worker.strategy", "celery.app.amqp", "kombu.transport.redis", "redis", "sqlalchemy.dialects.sqlite",
    "workers.restraint", "workers.load.inputs", "workers.report.evidence", "workers.report.gate",
    "sqlalchemy.dialects.postgresql.psycopg", "tests.crash.hurried", "tests.crash.worker_process", "tests.crash.keeper",
)  # fmt: skip
"""What node, workers and readers import when they start, and the modules that are run."""
_MAX_REQUEST = 65_536
_started: Callable[[Sequence[str], Path | None], Any]


class Forked:
    """A process that somebody else forked, with the part of `subprocess.Popen` that a hospital needs."""

    def __init__(self, pid: int, status_of: Callable[[int], int]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._status_of = status_of
        self._descriptor = os.pidfd_open(pid)
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return None while it runs, afterwards its status, a signal as a negative number."""
        with self._lock:
            if self.returncode is None and select.select([self._descriptor], [], [], 0)[0]:
                self.returncode = self._status_of(self.pid)
                os.close(self._descriptor)
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, number)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raises `subprocess.TimeoutExpired`."""
        return _wait(self.poll, timeout or 60.0)


class Forks:
    """The process that forks; a context manager."""

    def __enter__(self) -> Forks:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = leash.leashed([sys.executable, "-m", "tests.crash.forks", str(theirs.fileno())])
            self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=(theirs.fileno(),))
        self._socket, self._lock = ours, threading.Lock()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.wait(30)

    def start(
        self, words: Sequence[str], log: BinaryIO, env: Mapping[str, str], module: str = "tests.crash.hurried"
    ) -> Forked:
        """Fork a process that calls `main` of `module` with these words; its output goes to `log`."""
        pid = self._ask({"module": module, "words": list(words), "env": dict(env)}, log.fileno())
        return Forked(pid, lambda ended: self._ask({"ended": ended}))

    def _ask(self, request: Mapping[str, object], *descriptors: int) -> int:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
            answer = self._socket.recv(64)
        assert answer, "the process that forks has died"
        return int(answer)


class ForkedReader:
    """A child that was forked here, with the part of `subprocess.Popen` that `workers.reader` needs."""

    def __init__(self, pid: int, stdin: BinaryIO, stderr: BinaryIO) -> None:
        self.pid, self.stdin, self.stderr = pid, stdin, stderr
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return None while it runs, afterwards its status, a signal as a negative number."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def wait(self, timeout: float = 60.0) -> int:
        """Wait for its end; raises `subprocess.TimeoutExpired`."""
        return _wait(self.poll, timeout)


def _wait(poll: Callable[[], int | None], timeout: float) -> int:
    deadline = time.monotonic() + timeout
    while (status := poll()) is None:
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired("a fork", timeout)
        time.sleep(0.005)
    return status


def start_reader(command: Sequence[str], temporary: Path | None = None) -> Any:
    """Take the place of `workers.reader._start`: fork the reader of `hurried`, and start any other."""
    from workers.conversation import Child

    if tuple(command) != hurried.READER:
        return _started(command, temporary)
    (asked, ask), (heard, answer), (told, tell) = os.pipe(), os.pipe(), os.pipe()
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        leash._leash(parent, signal.SIGKILL)
        for number, descriptor in enumerate((asked, tell, tell, answer)):
            os.dup2(descriptor, number + 100)
        for number in range(4):
            os.dup2(number + 100, number)
        os.closerange(4, 1024)
        _be("tests.crash.hurried", ["reader", "3"])
    for descriptor in (asked, answer, tell):
        os.close(descriptor)
    os.set_blocking(ask, False)
    process: Any = ForkedReader(pid, os.fdopen(ask, "wb", 0), os.fdopen(told, "rb"))
    return Child(process, ask, heard)


def serve(descriptor: int) -> None:
    """Fork what is asked for until the other side closes."""
    from workers import reader

    global _started
    for name in NEEDED:
        import_module(name)
    _started, reader._start = reader._start, start_reader
    with socket.socket(fileno=descriptor) as asked:
        while True:
            request, descriptors, _, _ = socket.recv_fds(asked, _MAX_REQUEST, 1)
            if not request:
                return
            asked.send(str(_answer(asked, json.loads(request), descriptors)).encode())


def _answer(asked: socket.socket, request: Mapping[str, Any], descriptors: Sequence[int]) -> int:
    """Return the process id of what was to be forked, or the status of one that has ended."""
    if "ended" in request:
        return os.waitstatus_to_exitcode(os.waitpid(request["ended"], 0)[1])
    pid = os.fork()
    if pid == 0:
        asked.close()
        for standard in (1, 2):
            os.dup2(descriptors[0], standard)
        os.close(descriptors[0])
        _be(**request)
    os.close(descriptors[0])
    return pid


def _be(module: str, words: list[str], env: Mapping[str, str] | None = None) -> None:
    """Be the program that was asked for, and never return."""
    status = 1
    try:
        os.setsid()
        random.seed()
        os.environ.update(env or {})
        crashpoints.arm(os.environ.get(crashpoints.ENVIRONMENT, ""))
        import_module(module).main(*words)
        status = 0
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
