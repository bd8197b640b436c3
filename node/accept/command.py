"""Command sets: the requests that come in, and the responses, byte by byte (PS3.7 §6.3.1, §9.3, §10.3).

Elements are in Implicit VR Little Endian and in ascending order, whatever the context. One of each is due for every
instance, so neither goes through a data set object.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from node.accept.guard import HEADER, P_DATA_TF, ProtocolViolation

C_STORE_RQ, C_ECHO_RQ, N_EVENT_REPORT_RQ, N_ACTION_RQ, C_CANCEL_RQ = 0x0001, 0x0030, 0x0100, 0x0130, 0x0FFF
REQUESTS = frozenset(
    {C_STORE_RQ, C_ECHO_RQ, N_EVENT_REPORT_RQ, N_ACTION_RQ, C_CANCEL_RQ}
    | {0x0010, 0x0020, 0x0021, 0x0110, 0x0120, 0x0140, 0x0150}
)
"""Every Command Field of a request; the second line is C-GET, C-FIND, C-MOVE, N-GET, N-SET, N-CREATE, N-DELETE,
which are understood but not offered (PS3.7 §E.1)."""
_RESPONSE, _NO_DATA_SET = 0x8000, 0x0101
"""Bit of Command Field (0000,0100), and Command Data Set Type (0000,0800) (PS3.7 §E.1)."""
_LAST_OF_COMMAND = 0x03
"""Message control header of the last fragment of a command set (PS3.8 §E.2)."""
_PDV_HEADER = 6
"""Bytes of a PDV before its fragment: length, context and message control header (PS3.8 §9.3.5.1, §E.2)."""
_head_of = struct.Struct("<HHL").unpack_from
_pdv = struct.Struct(">LBB").pack
_HEAD = 8


@dataclass(frozen=True)
class Command:
    """A request; UIDs as they came, `""` where there is none. `type_id` is an Event or Action Type ID, 0 for none."""

    field: int
    message_id: int
    has_dataset: bool
    sop_class_uid: str
    sop_instance_uid: str
    type_id: int


def parse(data: bytes | bytearray) -> Command:
    """Return the request in a command set; raises `ProtocolViolation` when it is none."""
    elements = _elements(data)
    field = _us(elements, 0x0100)
    if field not in REQUESTS:
        raise ProtocolViolation(f"no request has Command Field {field:04X}H")
    return Command(
        field=field,
        message_id=_us(elements, 0x0120 if field == C_CANCEL_RQ else 0x0110),
        has_dataset=_us(elements, 0x0800) != _NO_DATA_SET,
        sop_class_uid=_uid(elements.get(0x0002) or elements.get(0x0003, b"")),
        sop_instance_uid=_uid(elements.get(0x1000) or elements.get(0x1001, b"")),
        type_id=_type_id(elements),
    )


def response(request: Command, status: int, comment: str = "") -> bytes:
    """Return the command set that answers `request`; `comment` is for Error Comment (0000,0902), 64 characters.

    A C-ECHO-RSP has no SOP Instance; Event and Action Type ID are those of the request (PS3.7 §10.3.1.2, §10.3.5.2).
    """
    type_number = {N_EVENT_REPORT_RQ: 0x1002, N_ACTION_RQ: 0x1008}.get(request.field)
    elements = b"".join(
        (
            _element(0x0002, _padded(request.sop_class_uid, b"\0")),
            _element(0x0100, struct.pack("<H", request.field | _RESPONSE)),
            _element(0x0120, struct.pack("<H", request.message_id)),
            _element(0x0800, struct.pack("<H", _NO_DATA_SET)),
            _element(0x0900, struct.pack("<H", status)),
            _element(0x0902, _padded(comment[:64], b" ")) if comment else b"",
            _element(0x1000, _padded(request.sop_instance_uid, b"\0")) if request.sop_instance_uid else b"",
            _element(type_number, struct.pack("<H", request.type_id)) if type_number else b"",
        )
    )
    return _element(0x0000, struct.pack("<L", len(elements))) + elements


def pdus(command_set: bytes, context_id: int, most: int) -> bytes:
    """Return `command_set` as P-DATA-TFs of at most `most` bytes, 0 for no limit (PS3.8 §9.3.5, §D.1)."""
    room = max(most - _PDV_HEADER, 1) if most else len(command_set)
    parts = [command_set[start : start + room] for start in range(0, len(command_set), room)]
    return b"".join(
        HEADER.pack(P_DATA_TF, 0, len(part) + _PDV_HEADER)
        + _pdv(len(part) + 2, context_id, _LAST_OF_COMMAND if number == len(parts) else 0x01)
        + part
        for number, part in enumerate(parts, 1)
    )


def _elements(data: bytes | bytearray) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    position, end = 0, len(data)
    while position < end:
        if end - position < _HEAD:
            raise ProtocolViolation("the command set is cut off")
        group, number, length = _head_of(data, position)
        position += _HEAD
        if group or number in found or length > end - position:
            raise ProtocolViolation("the command set cannot be understood")
        found[number] = bytes(data[position : position + length])
        position += length
    return found


def _us(elements: dict[int, bytes], number: int) -> int:
    value = elements.get(number, b"")
    if len(value) != 2:
        raise ProtocolViolation(f"the command set has no (0000,{number:04X})")
    return int.from_bytes(value, "little")


def _type_id(elements: dict[int, bytes]) -> int:
    value = elements.get(0x1002) or elements.get(0x1008, b"")
    return int.from_bytes(value[:2], "little")


def _uid(value: bytes) -> str:
    return value.decode("ascii", "replace").rstrip("\0 ")


@lru_cache(maxsize=1024)
def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0x0000, number, len(value)) + value


def _padded(value: str, padding: bytes) -> bytes:
    encoded = value.encode("ascii", "replace")
    return encoded + padding * (len(encoded) % 2)
