"""The data set that is coming in: in a buffer that the association uses again and again, or on disk when it is large.

Its digest is made of each fragment while its sender makes the next one ready, so nobody waits for it at the end.
What the disk refuses is read to its end all the same and forgotten, because its sender waits for an answer.
"""

from __future__ import annotations

import hashlib
from mmap import ACCESS_READ, mmap
from typing import IO, Protocol

from node.errors import NoRoom
from node.store.spool import Encoded

_FIRST = 1 << 20


class Room(Protocol):
    """Where a large data set may lie while it comes in."""

    def scratch(self) -> IO[bytes]:
        """Return a file without a name; raises `NoRoom`."""


class Incoming:
    """One data set after the other; a fragment is read straight into `room_for` and then counted by `take`."""

    def __init__(self, room: Room, in_memory: int) -> None:
        self._room, self._in_memory = room, in_memory
        self._buffer = memoryview(b"")
        self._used = 0
        self._file: IO[bytes] | None = None
        self._mapped: mmap | None = None
        self.refused: Exception | None = None
        """Why it could not be kept."""
        self.size = 0
        self._sha256 = hashlib.sha256()

    @property
    def sha256(self) -> bytes:
        """The SHA-256 of what was taken."""
        return self._sha256.digest()

    def room_for(self, count: int) -> memoryview:
        """Return where the next `count` bytes go."""
        if self._used + count > len(self._buffer):
            self._make_room(count)
        return self._buffer[self._used : self._used + count]

    def take(self, count: int) -> None:
        """Note that `count` bytes were read there."""
        self._sha256.update(self._buffer[self._used : self._used + count])
        self._used += count
        self.size += count

    def whole(self) -> Encoded:
        """Return the data set; raises what `refused` says. It is valid until `clear`."""
        if self._file is not None:
            self._spill()
        if self.refused is not None:
            raise self.refused
        if self._file is None:
            return self._buffer[: self._used]
        self._mapped = mmap(self._file.fileno(), 0, access=ACCESS_READ)
        return self._mapped

    def clear(self) -> None:
        """Forget it."""
        if self._file is not None:
            self._file.close()
        self._file = self._mapped = self.refused = None
        self._used = self.size = 0
        self._sha256 = hashlib.sha256()

    def _make_room(self, count: int) -> None:
        needed = self._used + count
        if self.refused is None and self._file is None and needed <= self._in_memory:
            larger = memoryview(bytearray(min(max(_FIRST, needed, 2 * len(self._buffer)), self._in_memory)))
            larger[: self._used] = self._buffer[: self._used]
            self._buffer = larger
            return
        self._spill()
        if count > len(self._buffer):
            self._buffer = memoryview(bytearray(max(count, self._in_memory)))

    def _spill(self) -> None:
        try:
            if self.refused is None:
                self._file = self._file or self._room.scratch()
                self._file.write(self._buffer[: self._used])
                self._file.flush()
        except (NoRoom, OSError) as error:
            self.refused = error
        self._used = 0
