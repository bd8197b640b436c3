"""The transport's limits, below the DICOM Upper Layer (PS3.8 §9.3): size, time and memory of what a peer may send.

Who breaks one is told A-ABORT or simply cut, and loses its association, never more. Before everything is the vestibule
(`vestibule.py`), where connections wait for their first PDU; behind it `wire.py` reads under these limits.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

from node.accept.precheck import MAX_OBJECT

A_ASSOCIATE_RQ, P_DATA_TF, A_RELEASE_RQ, A_RELEASE_RP, A_ABORT = 0x01, 0x04, 0x05, 0x06, 0x07
PDU_TYPES = range(0x01, 0x08)
"""PS3.8 §9.3.1."""
HEADER = struct.Struct(">BBL")
"""PDU type, a reserved byte, and the length of what follows."""
BY_USER, BY_PROVIDER = 0, 2
"""Source of an A-ABORT (PS3.8 §9.3.8)."""
NO_REASON, UNRECOGNIZED_PDU, UNEXPECTED_PDU, INVALID_PARAMETER = 0, 1, 2, 6
"""Reason/Diag. of an A-ABORT by the service provider (PS3.8 Table 9-26)."""


@dataclass(frozen=True)
class Limits:
    """What a peer may cost. Sizes in bytes, times in seconds."""

    pdu: int = 2**20
    """Maximum Length we announce (PS3.8 §D.1.1)."""
    pdu_slack: int = 4096
    """Some peers count headers differently."""
    control_pdu: int = 2**18
    """A-ASSOCIATE-RQ and every PDU but P-DATA-TF; 128 contexts with all syntaxes need about 50 KB."""
    command_set: int = 2**16
    dataset: int = MAX_OBJECT
    in_memory: int = 2**22
    """Of one data set; beyond it a data set goes to a scratch file while it comes in."""
    first_pdu_s: float = 10.0
    """From accept to the end of the first PDU."""
    pdu_s: float = 30.0
    """From the first to the last byte of any other PDU."""
    send_s: float = 30.0
    """For a PDU of ours to leave; a peer that stops reading is cut."""
    idle_s: float = 60.0
    """An association on which nothing happens for this long is aborted."""
    half_open: int = 256
    half_open_per_address: int = 64


class ProtocolViolation(Exception):
    """The peer sent what no DICOM peer sends: `reason` of the A-ABORT it gets."""

    def __init__(self, what: str, reason: int = INVALID_PARAMETER) -> None:
        super().__init__(what)
        self.reason = reason


class Gone(Exception):
    """The peer has closed the connection, or is too slow to be waited for; nobody hears an answer."""


class Idle(Exception):
    """Nothing has happened for too long."""


def abort_pdu(reason: int, source: int = BY_PROVIDER) -> bytes:
    """Return an A-ABORT with `reason`, by the service provider or by us, its user (PS3.8 §9.3.8)."""
    return HEADER.pack(A_ABORT, 0, 4) + bytes((0, 0, source, reason))


def release_pdu() -> bytes:
    """Return an A-RELEASE-RP (PS3.8 §9.3.7)."""
    return HEADER.pack(A_RELEASE_RP, 0, 4) + bytes(4)


def close(connection: socket.socket) -> None:
    """Close `connection`, whatever state it is in."""
    with suppress(OSError):  # the peer was quicker
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
