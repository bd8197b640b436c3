"""The command set of a C-STORE-RSP, byte by byte: one is due for every instance that comes in.

Elements are in Implicit VR Little Endian and in ascending order, whatever the context (PS3.7 §6.3.1, §9.3.1.2).
"""

from __future__ import annotations

import struct

from pynetdicom.dimse_primitives import C_STORE

C_STORE_RSP, NO_DATA_SET = 0x8001, 0x0101
"""Command Field (0000,0100) and Command Data Set Type (0000,0800) (PS3.7 §E.1)."""


def command_set(response: C_STORE) -> bytes:
    """Return the encoded command set of `response`, which has a status."""
    elements = b"".join(
        (
            _element(0x0002, _uid(response.AffectedSOPClassUID)),
            _element(0x0100, _us(C_STORE_RSP)),
            _element(0x0120, _us(response.MessageIDBeingRespondedTo)),
            _element(0x0800, _us(NO_DATA_SET)),
            _element(0x0900, _us(response.Status)),
            _element(0x0902, _even(response.ErrorComment, b" ")) if response.ErrorComment else b"",
            _element(0x1000, _uid(response.AffectedSOPInstanceUID)),
        )
    )
    return _element(0x0000, struct.pack("<L", len(elements))) + elements


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0x0000, number, len(value)) + value


def _uid(value: str | None) -> bytes:
    return _even(value or "", b"\0")


def _us(value: int | None) -> bytes:
    return struct.pack("<H", value)


def _even(value: str, padding: bytes) -> bytes:
    encoded = value.encode("ascii", "replace")
    return encoded + padding * (len(encoded) % 2)
