"""What the node and its listener processes say to each other: JSON objects, and open connections with them.

One message is one packet of a socket pair, so that threads do not mix; whoever dies closes its end.
"""

from __future__ import annotations

import json
import os
import select
import socket
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

_LARGEST = 2**19
"""Bytes of a message; the longest is a request with a user identity of two fields."""
_DESCRIPTORS = 2


@dataclass(frozen=True)
class Message:
    """What was said, and descriptors that came along; they belong to who receives it."""

    said: Mapping[str, Any]
    descriptors: Sequence[int] = field(default=())


class Channel:
    """One end of the pair."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST)

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """Return our end, and the other one for a child process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), theirs

    def send(self, said: Mapping[str, Any], descriptors: Sequence[int] = (), *, wait: bool = True) -> None:
        """Send one message; raises `OSError` when the other end is gone, or, without `wait`, has too much to read."""
        flags = socket.MSG_NOSIGNAL | (0 if wait else socket.MSG_DONTWAIT)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
        self._end.sendmsg([json.dumps(said).encode()], rights, flags)  # `socket.send_fds` forgets its flags

    def is_ready(self, timeout_s: float) -> bool:
        """Wait for a message; also true when the other end is gone."""
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def receive(self) -> Message | None:
        """Return the next message, None when the other end is gone."""
        with suppress(ConnectionError):
            data, descriptors, _, _ = socket.recv_fds(self._end, _LARGEST, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
            if data:
                return Message(json.loads(data), tuple(descriptors))
        return None

    def close(self) -> None:
        """Hang up."""
        self._end.close()


def in_memory(data: bytes) -> int:
    """Return a descriptor of a file in memory that holds `data`, which may be too long for a message."""
    descriptor = os.memfd_create("first", os.MFD_CLOEXEC)
    os.write(descriptor, data)
    return descriptor


def taken_from(descriptor: int) -> bytes:
    """Return what `in_memory` put there, and close it."""
    try:
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)
