"""What the node must know of a data set before it keeps it: identifiers, structure, and whether all pixels are there.

Structure broken: refused. Content that a model cannot use: kept, acknowledged, and answered by the job; an archive
that refuses for content makes the modality retry for ever (PS3.4 §B.2.3 for the statuses).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from node import uids
from node.accept import image
from node.accept.contexts import UNCOMPRESSED
from node.accept.structure import Broken, Structure, walk
from node.configvalues import Check
from node.errors import Permanent
from node.store.spool import Encoded

MAX_OBJECT = 2 * 2**30
"""Bytes of one data set that the node takes; attributes that promise more pixels than this are not believed."""


class StoreStatus(IntEnum):
    """C-STORE response statuses (PS3.4 Table B.2-1)."""

    SUCCESS = 0x0000
    OUT_OF_RESOURCES = 0xA700
    MISMATCH = 0xA900
    CANNOT_UNDERSTAND = 0xC000


class Refused(Permanent):
    """The data set was not kept. `status` is the answer of the C-STORE, `reason` at most 64 characters for a person."""

    def __init__(self, status: StoreStatus, reason: str) -> None:
        super().__init__(f"{status:04X}H: {reason}")
        self.status, self.reason = status, reason[:64]


@dataclass(frozen=True)
class Header:
    """The identifiers of a data set that passed."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    is_own_result: bool
    """Made by this node and sent back by the PACS: kept, never read again."""
    odd_lengths: int
    """Values with an odd length (PS3.5 §7.1.1), kept as they are."""


_SOP_CLASS_UID, _SOP_INSTANCE_UID = 0x00080016, 0x00080018
_STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID = 0x0020000D, 0x0020000E
_INSTANCE_CREATOR_UID = 0x00080014
_IDENTIFIERS: Mapping[int, str] = {
    _SOP_CLASS_UID: "SOP Class UID",
    _SOP_INSTANCE_UID: "SOP Instance UID",
    _STUDY_INSTANCE_UID: "Study Instance UID",
    _SERIES_INSTANCE_UID: "Series Instance UID",
}
_WANTED = frozenset({*_IDENTIFIERS, _INSTANCE_CREATOR_UID}) | image.WANTED


def inspect(
    dataset: Encoded, transfer_syntax: str, sop_class: str, sop_instance: str, check: Check = "standard"
) -> Header:
    """Check the encoded `dataset` against the announced SOP Class and Instance UIDs and return its identifiers.

    Raises `Refused`: C000H when the structure or a UID is broken; A900H when an identifier is missing, is not the
    announced one, or native Pixel Data is shorter or longer than Rows × Columns × Samples × Frames × Bits say. With
    `lenient`, UIDs may have leading zeros and Pixel Data padding; with `strict`, no image attribute may be unusable.
    """
    found = _walk(dataset, transfer_syntax)
    identifiers = {tag: _identifier(dataset, found, tag, check) for tag in _IDENTIFIERS}
    _agree("SOP Class UID", identifiers[_SOP_CLASS_UID], sop_class)
    _agree("SOP Instance UID", identifiers[_SOP_INSTANCE_UID], sop_instance)
    if reason := image.complaint(dataset, found, check, MAX_OBJECT):
        raise Refused(StoreStatus.MISMATCH, reason)
    return _header(dataset, found, identifiers)


def identify(dataset: Encoded, transfer_syntax: str) -> Header:
    """Return the identifiers of a data set that this node once kept, whatever the check then was; raises `Refused`."""
    found = _walk(dataset, transfer_syntax)
    return _header(dataset, found, {tag: _identifier(dataset, found, tag, "lenient") for tag in _IDENTIFIERS})


def check_structure(dataset: Encoded, transfer_syntax: str) -> None:
    """Raise `Refused` (C000H) unless `dataset` can be parsed without risk; for the small data sets of DIMSE-N."""
    _walk(dataset, transfer_syntax)


def _header(dataset: Encoded, found: Structure, identifiers: Mapping[int, str]) -> Header:
    return Header(
        sop_class_uid=identifiers[_SOP_CLASS_UID],
        sop_instance_uid=identifiers[_SOP_INSTANCE_UID],
        study_instance_uid=identifiers[_STUDY_INSTANCE_UID],
        series_instance_uid=identifiers[_SERIES_INSTANCE_UID],
        is_own_result=image.ascii_value(dataset, found.elements.get(_INSTANCE_CREATOR_UID))
        == uids.INSTANCE_CREATOR_UID,
        odd_lengths=found.odd_lengths,
    )


def _walk(dataset: Encoded, transfer_syntax: str) -> Structure:
    explicit, implicit = UNCOMPRESSED
    try:
        return walk(
            dataset,
            implicit=transfer_syntax == implicit,
            encapsulated=transfer_syntax not in (explicit, implicit),
            wanted=_WANTED,
        )
    except Broken as error:
        raise Refused(StoreStatus.CANNOT_UNDERSTAND, str(error)) from None


def _identifier(dataset: Encoded, found: Structure, tag: int, check: Check) -> str:
    name = _IDENTIFIERS[tag]
    value = image.ascii_value(dataset, found.elements.get(tag))
    if not value:
        raise Refused(StoreStatus.MISMATCH, f"{name} is missing")
    if not (uids.is_readable_uid(value) if check == "lenient" else uids.is_valid_uid(value)):
        raise Refused(StoreStatus.CANNOT_UNDERSTAND, f"invalid UID: {name}")
    return value


def _agree(name: str, value: str, commanded: str) -> None:
    if value != commanded.rstrip("\0 "):
        raise Refused(StoreStatus.MISMATCH, f"{name} differs from what was announced")
