"""The spool: Part 10 files under names made of their own digests, durable before anyone is told so.

Recipe: temporary file in the same file system → write → fsync → rename → fsync of the directory, one of 256 that are
there, durably, since the spool was opened: a directory for each file would cost as much as the file. An fsync that
failed is never retried (the kernel reports the error once and forgets the pages): the file is dropped and the caller
gets `NoRoom`. No name is ever made from a DICOM value.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from mmap import MADV_DONTNEED, mmap
from pathlib import Path
from typing import IO

from node import clock
from node.crashpoints import reach
from node.errors import NoRoom, Permanent
from node.store import walking
from node.store.syncing import fsync_folder
from node.store.walking import touched as touched

log = logging.getLogger(__name__)

FOLDER_MODE = 0o700
FILE_MODE = 0o640
_NAME = re.compile(r"(?:instances|results)/([0-9a-f]{2})/(\1[0-9a-f]{62})\.dcm")
_PREAMBLE = 128 + 4
_GROUP_LENGTH = 12
"""Bytes of (0002,0000) File Meta Information Group Length, explicit VR little endian (PS3.10 §7.1)."""
_CHUNK = 1 << 20

Encoded = bytes | memoryview | mmap
"""An encoded data set: in memory, or mapped from a scratch file where it is large."""


@dataclass(frozen=True)
class Stored:
    """A file in the spool: path relative to its root, SHA-256 of its data set (a result: of the file), file size."""

    path: str
    sha256: str
    size: int


class Spool:
    """Durable files below `root`; `refuse_below` is the free space in bytes that must remain."""

    def __init__(self, root: Path, refuse_below: int) -> None:
        self.root = root
        self.refuse_below = refuse_below
        self.tmp = root / "tmp"
        self._removing = root / "removing"
        try:
            for folder in (root.parent, root, self.tmp, self._removing, root / "instances", root / "results"):
                folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            for kind in ("instances", "results"):
                for number in range(256):
                    (root / kind / f"{number:02x}").mkdir(mode=FOLDER_MODE, exist_ok=True)
            for folder in (root / "instances", root / "results", root, root.parent):
                fsync_folder(folder)
        except OSError as error:
            raise NoRoom(
                f"The spool {root} cannot be made: {error.strerror}. Check the folder and its owner."
            ) from None

    def check_room(self, size: int) -> None:
        """Raise `NoRoom` when `size` more bytes would leave less than `refuse_below` free."""
        status = os.statvfs(self.root)
        free = status.f_bavail * status.f_frsize
        if free - size < self.refuse_below:
            raise NoRoom(
                f"The spool has {free:,} bytes free; {size:,} more would leave less than spool.refuse_below "
                f"({self.refuse_below:,}). Nothing was kept. Free some space."
            )

    def store_instance(self, header: bytes, dataset: Encoded, sha256: bytes) -> Stored:
        """Store one received instance: `header` (preamble, DICM, File Meta Information) and `dataset` as received.

        `sha256` is the digest of `dataset`. Returns only when the file would survive a power cut. The same data set
        again gives the same answer.
        """
        return self._store("instances", sha256.hex(), (header, dataset), tail=dataset)

    @staticmethod
    def instance_name(sha256: str) -> str:
        """Return the name of the instance whose data set has this digest."""
        return f"instances/{sha256[:2]}/{sha256}.dcm"

    def scratch(self) -> IO[bytes]:
        """Return an open temporary file without a name in the spool's file system; raises `NoRoom`."""
        self.check_room(0)
        try:
            return tempfile.TemporaryFile(dir=self.tmp)
        except OSError as error:
            raise NoRoom(f"The spool refused a temporary file ({error.strerror}). Free some space.") from None

    def store_result(self, data: bytes) -> Stored:
        """Store one Evidence Document, a whole Part 10 file, as durably as an instance."""
        return self._store("results", hashlib.sha256(data).hexdigest(), (data,), tail=data)

    def path(self, relative: str) -> Path:
        """Return the absolute path of a stored file; anything that is no name of the spool is `Permanent`."""
        if not _NAME.fullmatch(relative):
            raise Permanent(f"{relative!r} is not the name of a file in the spool.")
        return self.root / relative

    def relative(self, path: Path) -> str:
        """Return the name under which the database knows the file at `path`."""
        return path.relative_to(self.root).as_posix()

    def flatten(self) -> None:
        """Put files that an earlier version left one folder deeper where this one looks for them."""
        moved = walking.flatten(self.root, "instances") + walking.flatten(self.root, "results")
        if moved:
            extra = {"action": "spool_flattened", "count": moved}
            log.info("%d files of an earlier version were moved one folder up.", moved, extra=extra)

    def instances(self) -> Iterator[Path]:
        """Yield the absolute path of every received instance, in the order of the digests."""
        return map(self.root.joinpath, self.instance_names())

    def instance_names(self) -> Iterator[str]:
        """Yield the name of every received instance, as the database knows it, in the order of the digests."""
        return filter(_NAME.fullmatch, walking.files(self.root, "instances"))

    def results(self) -> Iterator[Path]:
        """Yield the absolute path of every Evidence Document, in the order of the digests."""
        return map(self.root.joinpath, filter(_NAME.fullmatch, walking.files(self.root, "results")))

    def sweep_tmp(self, older_than_s: float, now: clock.Clock = clock.now) -> int:
        """Delete temporary files last written more than `older_than_s` seconds ago; return how many."""
        swept = 0
        for path in self.tmp.iterdir():
            try:
                if now() - path.stat().st_mtime >= older_than_s:
                    path.unlink()
                    swept += 1
            except FileNotFoundError:  # its writer was quicker
                continue
        return swept

    def set_aside(self, relatives: Iterable[str], before: float) -> list[str]:
        """Begin to remove: move files durably out of their places; return the names that now have no file there.

        A file that was stored, or stored again, after `before` (seconds since the epoch) stays. What is set aside is
        put back or discarded next, or at the latest when the node starts again.
        """
        gone, folders = [], {self._removing}
        for relative in relatives:
            path, aside = self.path(relative), self._aside(relative)
            try:
                if path.stat().st_mtime > before:
                    continue
                path.rename(aside)
                folders.add(path.parent)
                if aside.stat().st_mtime > before:  # stored again between the two lines above
                    aside.rename(path)
                    continue
            except FileNotFoundError:
                pass
            gone.append(relative)
        for folder in folders:
            fsync_folder(folder)
        return gone

    def put_back(self, relative: str) -> None:
        """Undo `set_aside`: the file is in its place again, durably. No file was set aside: nothing happens."""
        path = self.path(relative)
        with suppress(FileNotFoundError):
            self._aside(relative).rename(path)
            fsync_folder(path.parent)

    def discard(self, relative: str) -> None:
        """Delete what was set aside."""
        self._aside(relative).unlink(missing_ok=True)

    def aside(self) -> list[str]:
        """Return the names of all files that are set aside."""
        names = (path.name.partition("-") for path in sorted(self._removing.iterdir()))
        found = [f"{kind}/{name[:2]}/{name}" for kind, _, name in names]
        return [relative for relative in found if _NAME.fullmatch(relative)]

    def verify(self, relative: str, sha256: str) -> bool:
        """Say whether the file is there and its data set (a result: the file) still has this digest."""
        path = self.path(relative)
        try:
            return (dataset_sha256(path) if relative.startswith("instances/") else _sha256(path, 0)) == sha256
        except (FileNotFoundError, ValueError):
            return False

    def _store(self, kind: str, sha256: str, parts: tuple[Encoded, ...], tail: Encoded) -> Stored:
        folder = self.root / kind / sha256[:2]
        final = folder / f"{sha256}.dcm"
        try:
            if not folder.is_dir():  # somebody took it away
                folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
                fsync_folder(folder.parent)
            try:
                size = self._place(final, parts, tail)
            except FileNotFoundError:  # retention has it in hand this moment, and puts back what comes again
                size = self._place(final, parts, tail)
        except OSError as error:
            raise NoRoom(
                f"The spool refused a write ({error.strerror}); nothing was kept. "
                "Free some space, and check the disk if there is plenty."
            ) from error
        return Stored(self.relative(final), sha256, size)

    def _place(self, final: Path, parts: tuple[Encoded, ...], tail: Encoded) -> int:
        """Have the file in its place, durably; return its size in bytes."""
        if _ends_with(final, tail) and touched(final):
            fsync_folder(final.parent)  # whoever renamed it may have been killed before doing so
        else:
            self._write(final, parts)
        return final.stat().st_size

    def _aside(self, relative: str) -> Path:
        return self._removing / f"{relative.split('/')[0]}-{self.path(relative).name}"

    def _write(self, final: Path, parts: tuple[Encoded, ...]) -> None:
        temporary = self._write_temporary(parts)
        try:
            reach("spool.before_rename")
            temporary.rename(final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        try:
            reach("spool.after_rename")
            fsync_folder(final.parent)
        except OSError:
            final.unlink(missing_ok=True)  # not to be trusted: it may be gone after a power cut
            raise

    def _write_temporary(self, parts: tuple[Encoded, ...]) -> Path:
        descriptor, name = tempfile.mkstemp(suffix=".part", dir=self.tmp)
        try:
            try:
                os.fchmod(descriptor, FILE_MODE)
                reach("spool.before_write")
                for part in parts:
                    _write_all(descriptor, part)
                reach("spool.before_fsync")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return Path(name)


def digest(data: Encoded) -> bytes:
    """Return the SHA-256 of `data`."""
    total = hashlib.sha256()
    for chunk in _chunks(data):
        total.update(chunk)
    return total.digest()


def dataset_sha256(path: Path) -> str:
    """Return the SHA-256 of the data set of a Part 10 file; raises `ValueError` as `dataset_offset`."""
    with path.open("rb") as file:
        head = file.read(_PREAMBLE + _GROUP_LENGTH)
    return _sha256(path, dataset_offset(head))


def dataset_offset(part10: Encoded) -> int:
    """Return where the data set begins in a Part 10 file of ours (PS3.10 §7.1); raises `ValueError` for others."""
    head = bytes(part10[: _PREAMBLE + _GROUP_LENGTH])
    if head[128:140] != b"DICM\x02\x00\x00\x00UL\x04\x00" or len(head) < _PREAMBLE + _GROUP_LENGTH:
        raise ValueError("there is no File Meta Information Group Length")
    return len(head) + int.from_bytes(head[-4:], "little")


def _sha256(path: Path, offset: int) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(_CHUNK):
            total.update(chunk)
    return total.hexdigest()


def _ends_with(path: Path, tail: Encoded) -> bool:
    """Say whether the file is there and ends with these very bytes; a damaged one is written anew."""
    try:
        with path.open("rb") as file:
            start = os.fstat(file.fileno()).st_size - len(tail)
            if start < 0:
                return False
            file.seek(start)
            return all(file.read(_CHUNK) == chunk for chunk in _chunks(tail))
    except FileNotFoundError:
        return False


def _write_all(descriptor: int, data: Encoded) -> None:
    for chunk in _chunks(data):
        while chunk:
            chunk = chunk[os.write(descriptor, chunk) :]


def _chunks(data: Encoded) -> Iterator[memoryview]:
    """Yield `data` piece by piece; of what is mapped, no more stays in this process's memory than a piece."""
    view = memoryview(data)
    for start in range(0, len(view), _CHUNK):
        yield view[start : start + _CHUNK]
        if isinstance(data, mmap):
            data.madvise(MADV_DONTNEED, start, min(_CHUNK, len(view) - start))
