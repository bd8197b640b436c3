"""Data sets written byte by byte, right or wrong, for the tests of what reads them (PS3.5 §7.1)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

EXPLICIT, IMPLICIT, JPEG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.4.50"
CT = "1.2.840.10008.5.1.4.1.1.2"
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"
LONG = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}


def element(tag: int, vr: str, value: bytes, length: int | None = None, *, implicit: bool = False) -> bytes:
    """One element; `length` when it shall lie."""
    size = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return head + struct.pack("<L", size) + value
    body = struct.pack("<HL", 0, size) if vr in LONG else struct.pack("<H", size)
    return head + vr.encode() + body + value


def item(content: bytes, length: int | None = None) -> bytes:
    """One item; `length` UNDEFINED adds its delimiter."""
    if length == UNDEFINED:
        return ITEM + struct.pack("<L", UNDEFINED) + content + ITEM_END + bytes(4)
    return ITEM + struct.pack("<L", len(content) if length is None else length) + content


def sequence(content: bytes, *, implicit: bool = False, tag: int = 0x00081140, vr: str = "SQ") -> bytes:
    """A sequence of undefined length with its delimiter."""
    return element(tag, vr, content, UNDEFINED, implicit=implicit) + SEQUENCE_END + bytes(4)


def nested(depth: int, *, implicit: bool = False) -> bytes:
    """`depth` sequences in one another, of undefined length."""
    head, _, tail = sequence(item(b"|", UNDEFINED), implicit=implicit).partition(b"|")
    return head * depth + tail * depth


def us(tag: int, value: int, *, implicit: bool = False) -> bytes:
    """One unsigned short."""
    return element(tag, "US", struct.pack("<H", value), implicit=implicit)


def text(tag: int, vr: str, value: str, *, implicit: bool = False) -> bytes:
    """One text element, padded to an even length."""
    raw = value.encode()
    return element(tag, vr, raw + (b"\0" if vr == "UI" else b" ") * (len(raw) % 2), implicit=implicit)


def dataset(
    tail: bytes = b"", *, implicit: bool = False, without: int = 0, uids: Mapping[int, str] | None = None
) -> bytes:
    """A data set with the four identifiers, and `tail` behind them; `uids` replaces, `without` leaves out."""
    values = {0x00080016: CT, 0x00080018: "1.2.3.4", 0x0020000D: "1.2.3", 0x0020000E: "1.2.3.1"} | dict(uids or {})
    return b"".join(text(t, "UI", v, implicit=implicit) for t, v in values.items() if t != without) + tail


def image(
    rows: int = 4, columns: int = 6, *, pixels: int | None = None, bits: int = 16, samples: int = 1,
    frames: str | None = None, photometric: str = "MONOCHROME2", vr: str = "OW", implicit: bool = False,
) -> bytes:  # fmt: skip
    """An image with native Pixel Data of `pixels` bytes (as many as it should have when None)."""
    size = rows * columns * samples * int(frames or 1) * bits // 8 if pixels is None else pixels
    parts = [us(0x00280002, samples, implicit=implicit), text(0x00280004, "CS", photometric, implicit=implicit)]
    if frames is not None:
        parts.append(text(0x00280008, "IS", frames, implicit=implicit))
    parts += [us(0x00280010, rows, implicit=implicit), us(0x00280011, columns, implicit=implicit)]
    parts += [us(0x00280100, bits, implicit=implicit), element(0x7FE00010, vr, bytes(size), implicit=implicit)]
    return dataset(b"".join(parts), implicit=implicit)


def fragments(*contents: bytes, end: bytes = SEQUENCE_END + bytes(4), vr: str = "OB") -> bytes:
    """Encapsulated Pixel Data: an empty Basic Offset Table and `contents` (PS3.5 §A.4)."""
    return element(0x7FE00010, vr, item(b"") + b"".join(item(c) for c in contents), UNDEFINED) + end
