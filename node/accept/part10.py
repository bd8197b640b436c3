"""A Part 10 file taken from a stream: its File Meta Information is read, its data set gathered (PS3.10 §7.1).

The File Meta Information says how the data set is encoded and what it claims to be; preamble and group length are
not believed, and none of it is kept: the spool writes a header of its own.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from mmap import ACCESS_READ, mmap
from typing import IO, Protocol

from node.accept.multipart import TooLarge
from node.accept.precheck import Refused, StoreStatus
from node.errors import NoRoom
from node.store.spool import Encoded

MAX_META = 64 * 1024
"""Bytes in which preamble and File Meta Information must be complete."""
_PREAMBLE = 128
_SOP_CLASS_UID, _SOP_INSTANCE_UID, _TRANSFER_SYNTAX_UID = 0x0002, 0x0003, 0x0010
_SHORT_VR, _LONG_VR = (b"AE", b"LO", b"SH", b"UI", b"UL"), (b"OB", b"UR")
"""The Value Representations of group 0002 (PS3.6 §7); anything else there is an attempt at something."""


@dataclass(frozen=True)
class FileMeta:
    """What the File Meta Information claims; an absent UID is the empty string. `end` is where the data set begins."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    end: int


class Room(Protocol):
    """Where a data set waits that is too large for memory."""

    def check_room(self, size: int) -> None:
        """Raise `NoRoom` when `size` more bytes do not fit."""

    def scratch(self) -> IO[bytes]:
        """Return a temporary file without a name, or raise `NoRoom`."""


def read_head(body: Iterator[bytes]) -> tuple[FileMeta, Iterator[bytes]]:
    """Return the File Meta Information of the file in `body`, and its data set as chunks; raises `Refused` (C000H)."""
    head = bytearray()
    for chunk in body:
        head += chunk
        if len(head) >= MAX_META:
            break
    meta = read_meta(bytes(head[:MAX_META]))
    return meta, chain((bytes(head[meta.end :]),), body)


def read_meta(head: bytes) -> FileMeta:
    """Read preamble, prefix and File Meta Information, in Explicit VR Little Endian, from the start of a file."""
    if head[_PREAMBLE : _PREAMBLE + 4] != b"DICM":
        raise Refused(StoreStatus.CANNOT_UNDERSTAND, "not a DICOM Part 10 file")
    at, found = _PREAMBLE + 4, dict[int, str]()
    while head[at : at + 2] == b"\x02\x00":
        number, start, end = _element(head, at)
        if number in found:
            raise Refused(StoreStatus.CANNOT_UNDERSTAND, f"(0002,{number:04X}) is there twice")
        found[number] = head[start : min(end, start + 256)].decode("ascii", "replace").rstrip("\0 ")
        at = end
    if not found.get(_TRANSFER_SYNTAX_UID):
        raise Refused(StoreStatus.CANNOT_UNDERSTAND, "File Meta Information has no Transfer Syntax UID")
    return FileMeta(
        found.get(_SOP_CLASS_UID, ""), found.get(_SOP_INSTANCE_UID, ""), found[_TRANSFER_SYNTAX_UID], end=at
    )


def _element(head: bytes, at: int) -> tuple[int, int, int]:
    """Return the element number at `at`, and where its value starts and ends (PS3.5 §7.1.2)."""
    vr = head[at + 4 : at + 6]
    if vr not in _SHORT_VR + _LONG_VR:
        raise Refused(StoreStatus.CANNOT_UNDERSTAND, "File Meta Information has a foreign VR or is cut off")
    start, width = (at + 12, 4) if vr in _LONG_VR else (at + 8, 2)
    length = head[start - width : start]
    end = start + int.from_bytes(length, "little")
    if len(length) < width or end > len(head):
        raise Refused(StoreStatus.CANNOT_UNDERSTAND, "File Meta Information is cut off or too long")
    return int.from_bytes(head[at + 2 : at + 4], "little"), start, end


def gather(chunks: Iterator[bytes], room: Room, most: int, in_memory: int) -> Encoded:
    """Return the data set that comes in `chunks`: as bytes up to `in_memory`, beyond that mapped from a scratch file.

    Raises `TooLarge` beyond `most` bytes and `NoRoom` when the disk refuses. A scratch file has no name, so nothing
    of it is left when the process is killed.
    """
    small = bytearray()
    for chunk in chunks:
        small += chunk
        if len(small) > in_memory:
            return _gather_on_disk(chain((bytes(small),), chunks), room, most)
    return bytes(_within(small, most))


def _gather_on_disk(chunks: Iterator[bytes], room: Room, most: int) -> mmap:
    try:
        with room.scratch() as file:
            size = 0
            for chunk in chunks:
                size += len(chunk)
                if size > most:
                    raise TooLarge(f"an instance has more than {most:,} bytes")
                room.check_room(len(chunk))
                file.write(chunk)
            file.flush()
            return mmap(file.fileno(), 0, access=ACCESS_READ)  # lives on when the file is closed
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM):
            raise
        raise NoRoom(f"The spool refused a write ({error.strerror}); nothing was kept. Free some space.") from error


def _within(data: bytearray, most: int) -> bytearray:
    if len(data) > most:
        raise TooLarge(f"an instance has more than {most:,} bytes")
    return data
