"""Objects that are wrong, by the row of `rows.py` that they stand for: their data sets, byte for byte."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tests.unit.encoded import (
    CT,
    EXPLICIT,
    IMPLICIT,
    JPEG,
    SEQUENCE_END,
    UNDEFINED,
    dataset,
    element,
    fragments,
    image,
    item,
    nested,
    sequence,
    text,
    us,
)

RLE, J2K, JPEG_LS = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"
MR = "1.2.840.10008.5.1.4.1.1.4"
_NOISE = random.Random(52)  # noqa: S311 - the same noise every time


@dataclass(frozen=True)
class Object:
    """One wrong object: what command set or File Meta Information announce, and the data set that comes."""

    row: int
    name: str
    data: bytes
    syntax: str = EXPLICIT
    sop_class: str = CT
    sop_instance: str = "1.2.3.4"


def objects() -> Iterator[Object]:
    """Yield every object; rows whose answer differs between its objects have their statuses in `rows.py`, too."""
    whole = image(64, 64)
    yield Object(1, "no byte", b"")
    for syntax in (EXPLICIT, IMPLICIT, JPEG):
        yield Object(2, f"noise as {syntax}", _NOISE.randbytes(4000), syntax)
    for row, percent in ((4, 30), (5, 60), (6, 95)):
        yield Object(row, f"{percent} %", whole[: len(whole) * percent // 100])
    for garbage in (b"\0", b"garbage", bytes(8), b"\xff" * 32):
        yield Object(7, repr(garbage[:8]), dataset() + garbage)
    for length in (0xFFFFFFFE, 0x7FFFFFFF, 3):
        yield Object(8, f"{length:X}", dataset(element(0x00420011, "OB", b"ab", length)))
    yield Object(9, "odd", dataset(element(0x00100010, "PN", b"A^B^C", 5)))
    yield Object(9, "group length", dataset(element(0x00280000, "UL", struct.pack("<L", 99)) + us(0x00280103, 0)))
    for vr in ("OB", "OW", "UT", "UC"):
        yield Object(10, vr, dataset(sequence(b"", tag=0x00420011, vr=vr)))
    yield Object(10, "native pixels", dataset(fragments(b"ab")))
    for depth in (33, 300, 20_000):
        yield Object(11, f"{depth}", dataset(nested(depth)))
        yield Object(11, f"{depth} implicit", dataset(nested(depth, implicit=True), implicit=True), IMPLICIT)
    private = b"".join(element(0x00091000 + n % 0xEFFF, "UN", b"") for n in range(100_001))
    yield Object(12, "100,001 elements", dataset(private))
    yield Object(12, "65,536 items", dataset(sequence(item(b"") * 65_536)))
    yield Object(17, "class", dataset(uids={0x00080016: MR}))
    yield Object(18, "instance", dataset(uids={0x00080018: "1.2.3.5"}))
    for tag in (0x00080016, 0x00080018, 0x0020000D, 0x0020000E):
        yield Object(20, f"no {tag:08X}", dataset(without=tag))
        yield Object(20, f"empty {tag:08X}", dataset(uids={tag: ""}))
    for uid in ("../../x", "/abs", "..\\x", "1..2", "1.02", "1" * 65, "1.2.a", "1.2\0.3", "1.2\\1.3", ".1", "1.2 3"):
        yield Object(21, repr(uid), dataset(uids={0x0020000D: uid}))
    yield from unusable()
    for pixels in (0, 46, 50, 96):
        yield Object(26, f"{pixels} of 48 bytes", image(pixels=pixels))
    yield from encapsulated()
    yield from texts()
    yield Object(34, "30,000 private", dataset(b"".join(element(0x00091000 + n, "LO", b"ab") for n in range(30_000))))
    secret = item(text(0x04000510, "UI", "1.2.840.10008.1.2.1") + element(0x04000520, "OB", bytes(64)), UNDEFINED)
    yield Object(36, "encrypted", dataset(element(0x04000500, "SQ", secret, UNDEFINED) + SEQUENCE_END + bytes(4)))


def unusable() -> Iterator[Object]:
    """Yield images whose attributes no model can use (rows 23 to 25)."""
    good = {"samples": us(0x00280002, 1), "photometric": text(0x00280004, "CS", "MONOCHROME2")}
    good |= {"frames": b"", "rows": us(0x00280010, 4), "columns": us(0x00280011, 6), "bits": us(0x00280100, 16)}

    def odd(row: int, name: str, **changes: bytes) -> Object:
        return Object(row, name, dataset(b"".join((good | changes).values()) + element(0x7FE00010, "OW", bytes(512))))

    yield odd(23, "rows 0", rows=us(0x00280010, 0))
    yield odd(23, "columns 0", columns=us(0x00280011, 0))
    yield odd(23, "rows missing", rows=b"")
    yield odd(23, "rows as UL", rows=element(0x00280010, "UL", struct.pack("<L", 4)))
    yield odd(23, "65535²", rows=us(0x00280010, 65535), columns=us(0x00280011, 65535))
    for frames in ("-1", "0", "2147483648", "abc", "1\\2"):
        yield odd(24, frames, frames=text(0x00280008, "IS", frames))
    yield odd(25, "bits 7", bits=us(0x00280100, 7), columns=us(0x00280011, 146))  # 4 × 146 × 7 bits are 512 bytes
    yield odd(25, "samples 0", samples=us(0x00280002, 0))
    size = {"rows": us(0x00280010, 16), "columns": us(0x00280011, 16)}
    yield odd(25, "photometric", photometric=text(0x00280004, "CS", "INFRARED"), **size)
    yield odd(25, "no photometric", photometric=b"", **size)


def encapsulated() -> Iterator[Object]:
    """Yield fragments: those whose structure holds (row 28), and those whose structure does not (row 27)."""
    tail = fragments(b"abcd")
    yield Object(27, "no delimiter", dataset(fragments(b"abcd", end=b"")), JPEG)
    yield Object(27, "other delimiter", dataset(fragments(b"abcd", end=us(0x00280010, 1))), JPEG)
    yield Object(27, "cut off", dataset(tail[:-10]), JPEG)
    yield Object(27, "fragment past the end", dataset(tail[:-12] + b"\xfe\xff\x00\xe0\xff\xff\xff\x7f"), JPEG)
    offsets = item(struct.pack("<LL", 999_999, 7)) + item(b"abcd")
    yield Object(28, "no offset table, no fragment", dataset(fragments()), JPEG)
    yield Object(
        28, "offsets that lie", dataset(element(0x7FE00010, "OB", offsets, UNDEFINED) + SEQUENCE_END + bytes(4)), JPEG
    )
    yield Object(28, "100,000 fragments", dataset(fragments(*[b""] * 100_000)), JPEG)
    yield Object(28, "RLE", dataset(fragments(b"\x0f\0\0\0" + b"\xff\xff\xff\x7f" * 15)), RLE)
    yield Object(28, "JPEG 2000", dataset(fragments(b"\xff\x4f\xff\x51" + b"\xff" * 60)), J2K)
    yield Object(28, "JPEG-LS", dataset(fragments(b"\xff\xd8\xff\xf7" + bytes(30))), JPEG_LS)
    bomb = us(0x00280010, 30_000) + us(0x00280011, 30_000) + us(0x00280100, 16) + fragments(bytes(64))
    yield Object(28, "bomb", dataset(us(0x00280002, 1) + bomb), RLE)


def texts() -> Iterator[Object]:
    """Yield texts and numbers that are kept as they are (rows 29 to 31)."""
    yield Object(29, "character set", dataset(text(0x00080005, "CS", "ISO_IR 9999") + text(0x00100010, "PN", "A^B")))
    yield Object(29, "invalid bytes", dataset(element(0x00100010, "PN", b"\xff\xfe\x81\x1b$B")))
    yield Object(29, "a long name", dataset(element(0x00100010, "PN", b"A" * 65_534)))
    yield Object(29, "control characters", dataset(text(0x00100010, "PN", "\u202eA\x07\x1b[31m^B")))
    for evil in ("<script>alert(1)</script>", "{{7*7}}", "%0d%0aInjected: x", "\n[ERROR] fake", "=cmd()"):
        yield Object(30, repr(evil), dataset(text(0x00100010, "PN", evil)))
    yield Object(31, "dates", dataset(text(0x00080020, "DA", "20269999") + text(0x00080030, "TM", "996099")))
    for spacing in ("1e400\\NaN", "0\\0", "-1\\1"):
        yield Object(31, f"spacing {spacing}", dataset(text(0x00280030, "DS", spacing)))
    yield Object(31, "orientation", dataset(text(0x00200037, "DS", "1\\1\\1\\0\\0\\9")))
