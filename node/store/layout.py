"""Laying out: an instance that is durable in the ingest log gets its file in the spool, without a sync of its own."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from node.errors import NoRoom
from node.store.spool import FILE_MODE, FOLDER_MODE, Spool, touched

_CHUNK = 1 << 20
_numbers = count()


@dataclass(frozen=True)
class Piece:
    """A Part 10 file within another file: where it starts, and the bytes before its data set and in all."""

    descriptor: int
    start: int
    header: int
    size: int
    sha256: str


def lay_out(spool: Spool, piece: Piece, anew: bool = False) -> None:
    """Copy an instance that is durable elsewhere to its place, without a sync; raises `NoRoom`.

    A file with the same data set that is there already stays, unless it is to be written `anew`.
    """
    final = f"{spool.root}/{spool.instance_name(piece.sha256)}"  # text: a Path costs as much as a system call
    try:
        if anew or not (_holds(final, piece) and touched(Path(final))):
            _copy(spool, piece, final)
    except OSError as error:
        raise NoRoom(
            f"The spool has no room for a file that is safe in its log ({error.strerror}); it is tried again. "
            "Free some space."
        ) from error


def _copy(spool: Spool, piece: Piece, final: str) -> None:
    temporary = f"{spool.tmp}/{piece.sha256}-{os.getpid()}-{next(_numbers)}.part"
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        try:
            os.fchmod(descriptor, FILE_MODE)
            _copy_range(piece, descriptor)
        finally:
            os.close(descriptor)
        try:
            os.rename(temporary, final)  # noqa: PTH104 - as above
        except FileNotFoundError:
            Path(final).parent.mkdir(mode=FOLDER_MODE, exist_ok=True)
            Path(temporary).rename(final)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _holds(path: str, piece: Piece) -> bool:
    """Say whether the file is there and ends with the data set of `piece`."""
    tail = piece.size - piece.header
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb") as file:
            start = os.fstat(file.fileno()).st_size - tail
            if start < 0:
                return False
            file.seek(start)
            places = range(piece.start + piece.header, piece.start + piece.size, _CHUNK)
            sizes = (min(_CHUNK, piece.start + piece.size - at) for at in places)
            return all(
                file.read(size) == os.pread(piece.descriptor, size, at) for at, size in zip(places, sizes, strict=True)
            )
    except FileNotFoundError:
        return False


def _copy_range(piece: Piece, descriptor: int) -> None:
    """Copy the file; within the kernel (`copy_file_range`) it goes through a pipe and takes a third longer."""
    done = 0
    while done < piece.size:
        chunk = memoryview(os.pread(piece.descriptor, min(piece.size - done, _CHUNK), piece.start + done))
        if not chunk:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        done += len(chunk)
        while chunk:
            chunk = chunk[os.write(descriptor, chunk) :]
