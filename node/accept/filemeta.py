"""The File Meta Information that the node writes in front of what it received (PS3.10 §7.1)."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING

from node import uids

if TYPE_CHECKING:
    from node.accept.precheck import Header
    from node.accept.receive import Arrival


def part10_header(header: Header, arrival: Arrival) -> bytes:
    """Return preamble, prefix and File Meta Information (PS3.10 §7.1), the same bytes for the same arrival."""
    elements = b"".join(
        (
            _meta(0x0001, "OB", b"\x00\x01"),
            _meta(0x0002, "UI", header.sop_class_uid.encode("ascii")),
            _meta(0x0003, "UI", header.sop_instance_uid.encode("ascii")),
            _meta(0x0010, "UI", arrival.transfer_syntax_uid.encode("ascii")),
            _meta(0x0012, "UI", uids.IMPLEMENTATION_CLASS_UID.encode("ascii")),
            _meta(0x0013, "SH", uids.IMPLEMENTATION_VERSION_NAME.encode("ascii")),
            _meta(0x0016, "AE", arrival.calling_ae.strip()[:16].encode("ascii", "replace")),
        )
    )
    return bytes(128) + b"DICM" + _meta(0x0000, "UL", struct.pack("<L", len(elements))) + elements


@lru_cache(maxsize=1024)
def _meta(element: int, vr: str, value: bytes) -> bytes:
    """Return one element of group 0002 in Explicit VR Little Endian (PS3.5 §7.1.2)."""
    if len(value) % 2:
        value += b"\0" if vr in ("UI", "OB") else b" "
    length = struct.pack("<HL", 0, len(value)) if vr == "OB" else struct.pack("<H", len(value))
    return struct.pack("<HH", 0x0002, element) + vr.encode("ascii") + length + value
