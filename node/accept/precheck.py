"""What the node must know of a data set before it keeps it: identifiers, structure, and whether all pixels are there.

Structure broken: refused. Content that a model cannot use: kept, acknowledged, and answered by the job; an archive
that refuses for content makes the modality retry for ever (PS3.4 §B.2.3 for the statuses).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from node import uids
from node.accept.contexts import UNCOMPRESSED
from node.accept.structure import PIXEL_DATA, UNDEFINED, Broken, Element, Structure, walk
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
_SAMPLES, _PHOTOMETRIC, _FRAMES = 0x00280002, 0x00280004, 0x00280008
_ROWS, _COLUMNS, _BITS_ALLOCATED = 0x00280010, 0x00280011, 0x00280100
_WANTED = frozenset(
    {*_IDENTIFIERS, _INSTANCE_CREATOR_UID, PIXEL_DATA}
    | {_SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS, _BITS_ALLOCATED}
)
_SUBSAMPLED = {"YBR_FULL_422": (2, 3), "YBR_PARTIAL_422": (2, 3), "YBR_PARTIAL_420": (1, 2)}
"""Share of the samples that native Pixel Data holds (PS3.3 §C.7.6.3.1.2)."""


def inspect(dataset: Encoded, transfer_syntax: str, sop_class: str, sop_instance: str) -> Header:
    """Check the encoded `dataset` against the announced SOP Class and Instance UIDs and return its identifiers.

    Raises `Refused`: C000H when the structure or a UID is broken; A900H when an identifier is missing, is not the
    announced one, or native Pixel Data is shorter or longer than Rows × Columns × Samples × Frames × Bits say.
    """
    found = _walk(dataset, transfer_syntax)
    identifiers = {tag: _identifier(dataset, found, tag) for tag in _IDENTIFIERS}
    _agree("SOP Class UID", identifiers[_SOP_CLASS_UID], sop_class)
    _agree("SOP Instance UID", identifiers[_SOP_INSTANCE_UID], sop_instance)
    _check_pixels(dataset, found)
    return Header(
        sop_class_uid=identifiers[_SOP_CLASS_UID],
        sop_instance_uid=identifiers[_SOP_INSTANCE_UID],
        study_instance_uid=identifiers[_STUDY_INSTANCE_UID],
        series_instance_uid=identifiers[_SERIES_INSTANCE_UID],
        is_own_result=_text(dataset, found.elements.get(_INSTANCE_CREATOR_UID)) == uids.INSTANCE_CREATOR_UID,
        odd_lengths=found.odd_lengths,
    )


def check_structure(dataset: Encoded, transfer_syntax: str) -> None:
    """Raise `Refused` (C000H) unless `dataset` can be parsed without risk; for the small data sets of DIMSE-N."""
    _walk(dataset, transfer_syntax)


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


def _identifier(dataset: Encoded, found: Structure, tag: int) -> str:
    name = _IDENTIFIERS[tag]
    value = _text(dataset, found.elements.get(tag))
    if not value:
        raise Refused(StoreStatus.MISMATCH, f"{name} is missing")
    if not uids.is_valid_uid(value):
        raise Refused(StoreStatus.CANNOT_UNDERSTAND, f"invalid UID: {name}")
    return value


def _agree(name: str, value: str, commanded: str) -> None:
    if value != commanded.rstrip("\0 "):
        raise Refused(StoreStatus.MISMATCH, f"{name} differs from what was announced")


def _text(dataset: Encoded, element: Element | None) -> str:
    """Return the value of a short ASCII element without its padding; what is not ASCII becomes `?`."""
    if element is None or element.length > 256:
        return "" if element is None else "?"
    value = bytes(dataset[element.offset : element.offset + element.length])
    return value.decode("ascii", "replace").replace("�", "?").rstrip("\0 ")


def _check_pixels(dataset: Encoded, found: Structure) -> None:
    """Compare the length of native Pixel Data with what the attributes promise (PS3.5 §8.1.1, §8.2)."""
    pixels = found.elements.get(PIXEL_DATA)
    if pixels is None or pixels.length == UNDEFINED:
        return
    expected = _expected_bytes(dataset, found)
    if expected is None or pixels.length in (expected, expected + expected % 2):
        return
    what = "shorter" if pixels.length < expected else "longer"
    raise Refused(StoreStatus.MISMATCH, f"Pixel Data is {what} than Rows × Columns × … says")


def _expected_bytes(dataset: Encoded, found: Structure) -> int | None:
    """Return the bytes of native Pixel Data, or None when an attribute is absent, odd or beyond belief."""
    shape = [_us(dataset, found.elements.get(tag)) for tag in (_ROWS, _COLUMNS, _SAMPLES, _BITS_ALLOCATED)]
    frames = _frames(dataset, found.elements.get(_FRAMES))
    rows, columns, samples, bits = shape
    if not (rows and columns and samples and bits and frames):
        return None
    share, whole = _SUBSAMPLED.get(_text(dataset, found.elements.get(_PHOTOMETRIC)), (1, 1))
    if (share, whole) != (1, 1) and (samples != 3 or columns % 2):
        return None
    size = (rows * columns * samples * frames * bits * share // whole + 7) // 8
    return size if size <= MAX_OBJECT else None


def _us(dataset: Encoded, element: Element | None) -> int:
    """Return one unsigned short, 0 when it is absent or anything else."""
    if element is None or element.length != 2 or element.vr not in ("", "US"):
        return 0
    return int.from_bytes(dataset[element.offset : element.offset + 2], "little")


def _frames(dataset: Encoded, element: Element | None) -> int:
    """Return Number of Frames: 1 when absent, 0 when it is no positive number."""
    text = _text(dataset, element).strip()
    if element is None:
        return 1
    return int(text) if text.isdecimal() and len(text) <= 12 else 0
