"""The buffer that a data set comes into."""

from __future__ import annotations

import os
import tempfile
from mmap import mmap
from typing import IO

import pytest

from node.accept.incoming import Incoming
from node.errors import NoRoom


class Disk:
    """A disk with room."""

    def scratch(self) -> IO[bytes]:
        return tempfile.TemporaryFile()


class Full:
    """A disk without room."""

    def scratch(self) -> IO[bytes]:
        raise NoRoom("full")


def fill(incoming: Incoming, data: bytes, step: int) -> None:
    for start in range(0, len(data), step):
        part = data[start : start + step]
        incoming.room_for(len(part))[:] = part
        incoming.take(len(part))


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3 << 20])
@pytest.mark.parametrize("step", [1 << 20, 77_777])
def test_it_is_whole_in_memory_and_on_disk_and_used_again(size: int, step: int) -> None:
    incoming = Incoming(Disk(), 2 << 20)
    for _ in range(2):
        data = os.urandom(size)
        fill(incoming, data, step)
        whole = incoming.whole()
        assert isinstance(whole, mmap) == (size > 2 << 20)
        assert incoming.size == size
        assert whole[:] == data
        incoming.clear()


def test_what_the_disk_refuses_is_read_to_its_end_and_then_refused() -> None:
    incoming = Incoming(Full(), 1000)
    fill(incoming, os.urandom(50_000), 700)
    assert incoming.size == 50_000
    with pytest.raises(NoRoom):
        incoming.whole()
    incoming.clear()
    fill(incoming, b"small", 5)
    assert incoming.whole() == b"small"
