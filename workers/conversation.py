"""What a supervisor and its reading child say to each other: lines over two pipes, and whose turn it is to compute.

The supervisor sends a request, the child an outcome. In between the child asks for a turn before its network computes
and gives it back after: of several readers, one computes while the others load, prepare, bring back, and report.
"""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from workers.pipeline import Turn

_ASKS, _GO, _RETURNS = b'"turn?"\n', b'"go"\n', b'"done"\n'
_MAX_ANSWER = 1 << 20
_POLL_S = 0.1


class Overdue(Exception):
    """The deadline passed."""


class Stopped(Exception):
    """The caller no longer wants the answer."""


class Died(Exception):
    """The child closed its end."""


@dataclass
class Child:
    """A running child, the descriptors of its two pipes, and how many readings it has answered."""

    process: subprocess.Popen[bytes]
    requests: int
    answers: int
    readings: int = 0


class Conversation:
    """One request and its outcome, seen by the supervisor."""

    def __init__(
        self, child: Child, turn: threading.Lock, deadline: float, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """`turn` is shared by all readers of a device; `deadline` is of the monotonic clock, in seconds."""
        self._child, self._turn, self._has_turn = child, turn, False
        self._deadline, self._should_stop = deadline, should_stop
        self._unsent, self._unread = b"", b""
        self._poll = select.poll()
        self._poll.register(child.answers, select.POLLIN)

    def about(self, request: bytes) -> bytes:
        """Send one line and return the line that answers it.

        Raises `Stopped`, `Overdue`, `Died`, or ValueError where what comes back is no line. Waiting for a turn moves
        the deadline: another reading's time is not this one's.
        """
        try:
            self._send(request)
            while (answer := self._line()) in (_ASKS, _RETURNS):
                if (answer == _ASKS) == self._has_turn:
                    raise ValueError("a turn is asked for or given back twice")
                if answer == _ASKS:
                    self._take_turn()
                    self._send(_GO)
                else:
                    self._end_turn()
            return answer
        finally:
            self._end_turn()

    def _send(self, message: bytes) -> None:
        self._unsent += message
        self._poll.register(self._child.requests, select.POLLOUT)

    def _line(self) -> bytes:
        """Return the next line of the child, and write on what it has not taken yet."""
        while b"\n" not in self._unread:
            if self._should_stop():
                raise Stopped
            if time.monotonic() >= self._deadline:
                raise Overdue
            for descriptor, _ in self._poll.poll(1000 * _POLL_S):
                if descriptor == self._child.answers:
                    self._unread += _receive(descriptor)
                else:
                    self._unsent = self._unsent[os.write(descriptor, self._unsent) :]
                    if not self._unsent:
                        self._poll.unregister(descriptor)
            if len(self._unread) > _MAX_ANSWER:
                raise ValueError("the answer is too long")
        line, newline, self._unread = self._unread.partition(b"\n")
        return line + newline

    def _take_turn(self) -> None:
        began = time.monotonic()
        while not self._turn.acquire(timeout=_POLL_S):
            if self._should_stop():
                raise Stopped
            if self._child.process.poll() is not None:
                raise Died
        self._has_turn = True
        self._deadline += time.monotonic() - began

    def _end_turn(self) -> None:
        if self._has_turn:
            self._has_turn = False
            self._turn.release()


def turns(requests: BinaryIO, answers: int) -> Turn:
    """Return what the child enters while its network computes; it waits there for the supervisor's word."""

    @contextmanager
    def turn() -> Iterator[None]:
        write_all(answers, _ASKS)
        if requests.readline() != _GO:
            raise EOFError("the supervisor is gone")
        try:
            yield
        finally:
            write_all(answers, _RETURNS)

    return turn


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`; a pipe may take it in parts."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _receive(descriptor: int) -> bytes:
    chunk = os.read(descriptor, 1 << 16)
    if not chunk:
        raise Died
    return chunk
