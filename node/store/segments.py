"""One file of the ingest log: records that are appended, synced together, and read again after a crash.

A record is a frame (magic, checksum, lengths, SHA-256 of the data set) and a Part 10 file as it will lie in the
spool. Records lie one behind the other from the start of a preallocated file, so a sync writes data and no new
length; what is torn at the end was never acknowledged.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import struct
import threading
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from node.crashpoints import reach
from node.store.layout import Piece
from node.store.spool import FILE_MODE, Encoded
from node.store.syncing import fsync_folder

log = logging.getLogger(__name__)

_frame = struct.Struct("<4sLLLQ32s")
"""Magic, CRC-32 of what follows, CRC-32 and length of the Part 10 header, length of the data set, its SHA-256."""
_MAGIC = b"WTR1"
_CHECKED = 8
"""Bytes of a frame before those that its checksum covers."""
_CHUNK = 1 << 20


class Segment:
    """A log file that this process appends to; locked, so that nobody replays it while its writer lives."""

    def __init__(self, folder: Path, size: int) -> None:
        self.path = folder / f"{uuid.uuid4().hex}.log"
        self.size, self.end, self.pending = size, 0, 0
        self.laid_out: list[str] = []
        self.is_broken = False
        self._written = self._synced = 0
        self._is_syncing = False
        self._turn = threading.Condition()
        unlocked = self.path.with_suffix(".new")
        self.descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(self.descriptor, 0, size)
            os.fsync(self.descriptor)
            unlocked.rename(self.path)
            fsync_folder(folder)
        except BaseException:
            for path in (unlocked, self.path):
                path.unlink(missing_ok=True)
            os.close(self.descriptor)
            raise

    def write(self, header: bytes, dataset: Encoded, sha256: bytes) -> tuple[Piece, int]:
        """Append a record; return where its Part 10 file lies and its number for `sync`. One thread at a time."""
        start, total = self.end + _frame.size, len(header) + len(dataset)
        try:
            reach("log.before_write")
            _write_all(self.descriptor, [_framed(header, len(dataset), sha256), header, dataset], self.end)
        except BaseException:
            self.is_broken = True
            raise
        self.end = start + total
        self._written += 1
        return Piece(self.descriptor, start, len(header), total, sha256.hex()), self._written

    def sync(self, number: int) -> None:
        """Return when record `number` would survive a power cut; one sync serves all who wait. Never tried again."""
        while True:
            with self._turn:
                self._turn.wait_for(lambda: not self._is_syncing or self._synced >= number)
                if self._synced >= number:
                    return
                if self.is_broken:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                self._is_syncing, written = True, self._written
            self._sync(written)

    def remove(self) -> None:
        """Take the file away, and the lock with it."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let the file go as it is; the next start replays it."""
        os.close(self.descriptor)

    def _sync(self, written: int) -> None:
        try:
            reach("log.before_sync")
            os.fdatasync(self.descriptor)
        except BaseException:
            self.is_broken = True
            raise
        else:
            self._synced = max(self._synced, written)
        finally:
            with self._turn:
                self._is_syncing = False
                self._turn.notify_all()


def room(header: bytes, dataset: Encoded) -> int:
    """Return the bytes of a record."""
    return _frame.size + len(header) + len(dataset)


@contextmanager
def abandoned(path: Path) -> Iterator[int | None]:
    """Yield a descriptor of a log file whose writer is gone, and keep others off it; None when its writer lives."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        is_ours = _lock(descriptor) and bool(os.fstat(descriptor).st_nlink)
        yield descriptor if is_ours else None
    finally:
        os.close(descriptor)


def pieces(descriptor: int) -> Iterator[Piece]:
    """Yield every whole record of a log file, in order; one whose bytes are damaged is left out."""
    position, end = 0, os.fstat(descriptor).st_size
    while position + _frame.size <= end:
        frame = os.pread(descriptor, _frame.size, position)
        if len(frame) < _frame.size:
            return
        magic, checksum, header_checksum, header, dataset, sha256 = _frame.unpack(frame)
        if magic != _MAGIC or checksum != zlib.crc32(frame[_CHECKED:]):
            return
        start = position + _frame.size
        position = start + header + dataset
        if position > end:
            return
        if zlib.crc32(os.pread(descriptor, header, start)) == header_checksum and sha256 == _digest(
            descriptor, start + header, dataset
        ):
            yield Piece(descriptor, start, header, header + dataset, sha256.hex())
        else:
            log.warning("A record of the ingest log is not whole; it was not acknowledged, or the disk is damaged.")


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _framed(header: bytes, dataset: int, sha256: bytes) -> bytes:
    rest = _frame.pack(_MAGIC, 0, zlib.crc32(header), len(header), dataset, sha256)[_CHECKED:]
    return _MAGIC + struct.pack("<L", zlib.crc32(rest)) + rest


def _digest(descriptor: int, start: int, size: int) -> bytes:
    total = hashlib.sha256()
    for at in range(0, size, _CHUNK):
        total.update(os.pread(descriptor, min(_CHUNK, size - at), start + at))
    return total.digest()


def _write_all(descriptor: int, parts: Sequence[Encoded], at: int) -> None:
    views = [memoryview(part) for part in parts]
    while views:
        written = os.pwritev(descriptor, views, at)
        at += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]
