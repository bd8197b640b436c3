"""One file of the ingest log: records that are appended, synced together, and read again after a crash.

A record is a frame (magic, checksum, lengths, SHA-256 of the data set) and a Part 10 file as it will lie in the
spool. Records lie one behind the other, from page to page, from the start of a preallocated file, so a sync writes data
and no new length; what is torn at the end was never acknowledged.

A file is used again under a new name when all its records have their places: a sync of blocks that were written before
needs nothing of the file system's journal, and takes two thirds to four fifths of the time. What an earlier use left
behind the last record is no record, because the checksum of each begins with the file's name.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import struct
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from node.crashpoints import reach
from node.errors import Permanent
from node.store.groupsync import GroupSync
from node.store.layout import Piece
from node.store.spool import FILE_MODE, Encoded
from node.store.syncing import fsync_folder

log = logging.getLogger(__name__)

_frame = struct.Struct("<4sLLLQ32s")
"""Magic, CRC-32 of what follows, CRC-32 and length of the Part 10 header, length of the data set, its SHA-256."""
_MAGIC, _FIRST_MAGIC = b"WTR2", b"WTR1"
"""The second one is of earlier versions: records without gaps, checksums that do not begin with the file's name."""
_FAMILY = b"WTR"
_CHECKED = 8
"""Bytes of a frame before those that its checksum covers."""
_PAGE = 4096
"""What a record is filled up to: nothing has to be read to write whole pages."""
_CHUNK = 1 << 20


class Segment:
    """A log file that this process appends to; locked, so that nobody replays it while its writer lives."""

    path: Path
    end: int
    """Bytes that records take, from the start."""
    pending: int
    """Records that are not laid out yet."""
    laid_out: list[str]
    is_broken: bool

    def __init__(self, folder: Path, size: int) -> None:
        """Make a file of `size` bytes that is durably there."""
        self.size = size
        self._begin(folder / f"{uuid.uuid4().hex}.log")
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

    def write(self, header: bytes, dataset: Encoded, sha256: bytes) -> Piece:
        """Append a record and return where its Part 10 file lies. One thread at a time."""
        start, total = self.end + _frame.size, len(header) + len(dataset)
        filled = self.end + room(header, dataset)
        try:
            reach("log.before_write")
            frame = _framed(header, len(dataset), sha256, _seed(self.path))
            _write_all(self.descriptor, [frame, header, dataset, bytes(filled - start - total)], self.end)
        except BaseException:
            self.is_broken = True
            raise
        self.end = filled
        return Piece(self.descriptor, start, len(header), total, sha256.hex())

    def use_again(self) -> None:
        """Be an empty file under another name, whose records are all of the future; raises `OSError`.

        The name is durable when this returns: records under the old one would be lost by a power cut.
        """
        path = self.path.with_name(f"{uuid.uuid4().hex}.log")
        self.path.rename(path)
        self._begin(path)
        fsync_folder(path.parent)

    def remove(self) -> None:
        """Take the file away, and the lock with it."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let the file go as it is; the next start replays it."""
        os.close(self.descriptor)

    def _begin(self, path: Path) -> None:
        self.path = path
        self.end = self.pending = 0
        self.laid_out = []
        self.is_broken = False
        self.sync = GroupSync(self._sync)
        """Returns when all that was written before the call would survive a power cut. Never tried again."""

    def _sync(self) -> None:
        if self.is_broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        try:
            reach("log.before_sync")
            os.fdatasync(self.descriptor)
        except BaseException:
            self.is_broken = True
            raise


def room(header: bytes, dataset: Encoded) -> int:
    """Return the bytes of a record, with what fills its last page."""
    return _whole_pages(_frame.size + len(header) + len(dataset))


@contextmanager
def abandoned(path: Path) -> Iterator[int | None]:
    """Yield a descriptor of a log file whose writer is gone, and keep others off it; None when its writer lives."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor if _lock(descriptor) and _is_at(path, descriptor) else None
    finally:
        os.close(descriptor)


def pieces(descriptor: int, path: Path) -> Iterator[Piece]:
    """Yield every whole record of the log file that was opened at `path`, in order; a damaged one is left out.

    Raises `Permanent` for a file of a later version, which must not be taken for an empty one.
    """
    position, end, seed, kind = 0, os.fstat(descriptor).st_size, _seed(path), b""
    while position + _frame.size <= end:
        frame = os.pread(descriptor, _frame.size, position)
        if len(frame) < _frame.size:
            return
        magic, checksum, header_checksum, header, dataset, sha256 = _frame.unpack(frame)
        if magic not in (_MAGIC, _FIRST_MAGIC):
            if magic.startswith(_FAMILY):
                raise Permanent(
                    f"The ingest log {path} is of a later version of wetread; start that one, it lays it out."
                )
            return
        kind = kind or magic
        if magic != kind or checksum != zlib.crc32(frame[_CHECKED:], seed if magic == _MAGIC else 0):
            return
        start = position + _frame.size
        position = start + header + dataset
        if position > end:
            return
        if magic == _MAGIC:
            position = _whole_pages(position)
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


def _is_at(path: Path, descriptor: int) -> bool:
    """Say whether the opened file has this name, and not been taken away or begun again under another one."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _framed(header: bytes, dataset: int, sha256: bytes, seed: int) -> bytes:
    rest = _frame.pack(_MAGIC, 0, zlib.crc32(header), len(header), dataset, sha256)[_CHECKED:]
    return _MAGIC + struct.pack("<L", zlib.crc32(rest, seed)) + rest


def _seed(path: Path) -> int:
    """Return what the checksums of a file's frames begin with."""
    return zlib.crc32(path.name.encode())


def _whole_pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


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
