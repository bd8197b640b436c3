"""The queues between the two threads of an association, which wake whoever waits: nobody looks again and again.

pynetdicom's own sleep a millisecond between two looks, several times for each instance.
"""

from __future__ import annotations

import queue
import socket
from contextlib import suppress
from typing import Any


class Outgoing(queue.Queue[Any]):
    """What an association has to send; `bell` becomes readable when something is put in, so nobody need look."""

    def __init__(self) -> None:
        super().__init__()
        self.bell, self._button = socket.socketpair()
        for end in (self.bell, self._button):
            end.setblocking(False)

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put `item` in and ring."""
        super().put(item, block, timeout)
        with suppress(OSError):  # it rings already, or the association has ended
            self._button.send(b"\0")

    def silence(self) -> None:
        """Let the bell ring no longer."""
        with suppress(OSError):
            self.bell.recv(4096)

    def close(self) -> None:
        """Take the bell away."""
        self.bell.close()
        self._button.close()


class Indications(queue.Queue[Any]):
    """What the Upper Layer has to say but P-DATA; wakes whoever waits for a message in `messages`."""

    def __init__(self, messages: queue.Queue[Any]) -> None:
        super().__init__()
        self._messages = messages

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put `item` in, and an empty message beside it."""
        super().put(item, block, timeout)
        self._messages.put((None, None))
