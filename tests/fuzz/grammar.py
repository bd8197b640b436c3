"""Bytes become inputs that are almost right: data sets, PDUs, multipart bodies and configurations with faults in them.

The same bytes give the same input, so a fuzzer that learns from coverage can steer what is built.
"""

from __future__ import annotations

import struct

from tests.protocol.listening import associate_rq, pdu
from tests.unit.encoded import CT, EXPLICIT, IMPLICIT, JPEG, UNDEFINED, dataset, element, image, nested, text

TAGS = (
    0x00080005, 0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00280002, 0x00280004, 0x00280008, 0x00280010,
    0x00280011, 0x00280100, 0x00081140, 0x00091001, 0x7FE00010, 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0x00020010,
    0xFFFCFFFC, 0x00100010,
)  # fmt: skip
VRS = ("UI", "US", "UL", "SQ", "OB", "OW", "UN", "IS", "CS", "PN", "UT", "\0\0", "zz")
LENGTHS = (0, 1, 2, 3, 8, 64, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, UNDEFINED)
SYNTAXES = (EXPLICIT, IMPLICIT, JPEG)


class Choices:
    """Choices read from bytes; when they are used up every choice is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        """Bytes that are still there."""
        return len(self._data) - self._at

    def number(self, below: int) -> int:
        """A number below `below`, which is at most 65,536."""
        value = int.from_bytes(self.some(1 if below <= 256 else 2).ljust(2, b"\0"), "little")
        return value % below

    def some(self, count: int) -> bytes:
        """The next `count` bytes, or what is left."""
        found = self._data[self._at : self._at + count]
        self._at += len(found)
        return found

    def pick(self, options: tuple[object, ...]) -> object:
        """One of these."""
        return options[self.number(len(options))]


def mutated(choices: Choices, data: bytes) -> bytes:
    """`data` with some bytes changed, cut out or doubled."""
    found = bytearray(data)
    for _ in range(choices.number(5)):
        if not found:
            break
        at, kind = choices.number(min(len(found), 65_536)), choices.number(4)
        if kind == 0:
            found[at] = choices.number(256)
        elif kind == 1:
            del found[at : at + choices.number(64)]
        elif kind == 2:
            found[at:at] = found[at : at + choices.number(64)]
        else:
            del found[at:]
    return bytes(found)


def some_dataset(choices: Choices) -> tuple[bytes, str]:
    """A data set and the Transfer Syntax it is announced with."""
    syntax = str(choices.pick(SYNTAXES))
    implicit = syntax == IMPLICIT
    seeds = (dataset(implicit=implicit), image(implicit=implicit), dataset(nested(3, implicit=implicit)), b"")
    data = bytes(choices.pick(seeds))  # type: ignore[call-overload]
    while choices.left > 8 and len(data) < 100_000:
        data += _elements(choices, implicit, choices.number(4))
    return mutated(choices, data), str(choices.pick((syntax, *SYNTAXES)))


def _elements(choices: Choices, implicit: bool, depth: int) -> bytes:
    tag, vr = int(choices.pick(TAGS)), str(choices.pick(VRS))  # type: ignore[call-overload]
    kind = choices.number(6)
    if kind == 0 and depth:
        value = _elements(choices, implicit, depth - 1)
    elif kind == 1:
        return text(tag, "UI", str(choices.pick(("1.2.3.4", "1.02", "", CT, "../x"))), implicit=implicit)
    else:
        value = choices.some(choices.number(32))
    lie = choices.number(5) == 0
    length = int(choices.pick(LENGTHS)) if lie else None  # type: ignore[call-overload]
    if length is not None and not implicit and vr not in ("OB", "OW", "SQ", "UN", "UT"):
        length &= 0xFFFF
    return element(tag, vr, value, length, implicit=implicit)


def some_pdus(choices: Choices) -> bytes:
    """What a peer sends on one connection: a request, commands, data sets, and PDUs that have no place."""
    sent = mutated(choices, associate_rq()) if choices.number(4) == 0 else associate_rq()
    for _ in range(choices.number(8)):
        sent += _pdu(choices)
    return mutated(choices, sent) if choices.number(3) == 0 else sent


def _pdu(choices: Choices) -> bytes:
    kind = choices.number(6)
    if kind == 0:
        return pdu(choices.number(16), choices.some(choices.number(40)))
    if kind == 1:
        return pdu(0x04, choices.some(20), int(choices.pick(LENGTHS)))  # type: ignore[call-overload]
    body = b""
    for _ in range(1 + choices.number(3)):
        control = choices.number(4)
        content = _command(choices) if control & 1 else some_dataset(Choices(choices.some(16)))[0]
        lie = choices.number(8) == 0
        length = choices.number(65_536) if lie else len(content) + 2
        body += struct.pack(">LBB", length, choices.pick((1, 1, 1, 3, 255)), control) + content
    return pdu(0x04, body)


def _command(choices: Choices) -> bytes:
    """A command set, with every element in or out (PS3.7 §E.1)."""
    field = choices.pick((0x0001, 0x0030, 0x0100, 0x8001, 0x0FFF, 0x0020, 0x0130, 0x9999))
    parts = (
        element(0x00000000, "UL", struct.pack("<L", 80), implicit=True),
        text(0x00000002, "UI", str(choices.pick((CT, "1.2.840.10008.1.1", "x"))), implicit=True),
        element(0x00000100, "US", struct.pack("<H", field), implicit=True),
        element(0x00000110, "US", b"\1\0", implicit=True),
        element(0x00000700, "US", b"\0\0", implicit=True),
        element(0x00000800, "US", choices.pick((b"\1\0", b"\1\1", b"", b"\0")), implicit=True),  # type: ignore[arg-type]
        text(0x00001000, "UI", str(choices.pick(("1.2.3.4", "", "a\\b"))), implicit=True),
    )
    keep = 127 if choices.number(3) else choices.number(128)
    return b"".join(part for number, part in enumerate(parts) if keep >> number & 1)


def some_multipart(choices: Choices) -> tuple[bytes, bytes]:
    """A boundary and a body that should have it."""
    boundary = bytes(choices.pick((b"wet-read", b"a", b"-" * 60)))  # type: ignore[call-overload]
    body = b""
    for _ in range(choices.number(5)):
        body += b"--" + boundary + bytes(choices.pick((b"\r\n", b"  \r\n", b"\n", b"--", b"x\r\n")))  # type: ignore[call-overload]
        for _ in range(choices.number(4)):
            header = (b"Content-Type: application/dicom", b"Content-ID: <1>", b"X:", b": x", b" folded", b"X: \xff")
            body += bytes(choices.pick(header)) + b"\r\n"  # type: ignore[call-overload]
        body += b"\r\n" + _file(choices) + bytes(choices.pick((b"\r\n", b"", b"\r")))  # type: ignore[call-overload]
    return boundary, mutated(choices, body + b"--" + boundary + b"--")


def _file(choices: Choices) -> bytes:
    meta = element(0x00020001, "OB", b"\0\1") + text(0x00020010, "UI", str(choices.pick(SYNTAXES)))
    data, _ = some_dataset(Choices(choices.some(24)))
    return bytes(128) + mutated(choices, b"DICM" + meta) + data


NAMES = ("node", "peer", "destination.pacs", "web", "spool", "completeness", "log", "tls", "ingest", "worker", "x", "")
KEYS = (
    "port", "ae_title", "bind", "name", "address", "host", "url", "quiet_period", "max_wait", "token_file", "level",
    "check", "keep_images", "x", '"a b"', "a.b", "models", "certificate", "max_associations", "reserved",
)  # fmt: skip
VALUES = (
    "1", "-1", "70000", '"60 s"', '"10 apples"', '"1e999 s"', "true", "[]", "{}", "{a = 1}", '"x"', '""', "nan", "inf",
    "1979-05-27", '"127.0.0.1"', '"0.0.0.0"', "[[[1]]]", "'''\n'''", '"\\u0000"', "10" * 30, '"999999999999999999 d"',
    '"\U0001f600"', "0x1F", '"redis://h:99999/0"', '"[::1"',
)  # fmt: skip


def some_config(choices: Choices) -> str:
    """A configuration file, mostly TOML."""
    lines = []
    for _ in range(1 + choices.number(12)):
        kind = choices.number(8)
        name = str(choices.pick(NAMES))
        if kind == 0:
            lines.append(f"[{name}]")
        elif kind == 1:
            lines.append(f"[[{name}]]")
        elif kind == 2:
            lines.append(choices.some(12).decode("latin-1"))
        else:
            lines.append(f"{choices.pick(KEYS)} = {choices.pick(VALUES)}")
    return "\n".join(lines)
