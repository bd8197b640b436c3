"""The frames of a BINARY Segmentation of many images, written at once: groups by the piece, pixels in one pass.

highdicom writes some five Data Sets per frame, element by element. Here its own first frame is the pattern: what
differs from frame to frame is the segment, the image, its position and the index (PS3.3 §C.8.20.3), and the same bytes
come out.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from io import BytesIO

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomIO
from pydicom.filewriter import correct_ambiguous_vr, write_dataset
from pydicom.tag import Tag
from pydicom.valuerep import DS

PER_FRAME = Tag(0x5200, 0x9230)
Build = Callable[[NDArray[np.uint8]], Dataset]


def pattern(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return Segment Numbers with one pixel of the first segment on the first image, and nothing else."""
    one = np.zeros_like(labels)
    one[0, 0, 0] = 1
    return one


def complete(
    ds: Dataset, images: Sequence[Dataset], numbers: NDArray[np.uint8], segments: int, omit_empty: bool
) -> None:
    """Give `ds`, made by highdicom of `pattern`, the frames of `numbers` (slice, row, column): Segment Numbers.

    The groups stay encoded in `ds` until somebody looks at them.
    """
    shown = [k for k in range(len(images)) if not omit_empty or numbers[k].any()]
    order = _in_order(images, shown)
    first = ds.PerFrameFunctionalGroupsSequence[0]
    derivations = _derivations(first, [images[k] for k in order])
    positions = [_position(images[k]) for k in order]
    items, masks = [], []
    for number in range(1, segments + 1):
        identification = _identification(first, number)
        for place, k in enumerate(order):
            mask = numbers[k] == number
            if omit_empty and not mask.any():
                continue
            content = _encoded_content(number, place + 1)
            items.append(_item(derivations[place] + content + positions[place] + identification))
            masks.append(np.packbits(mask, axis=None, bitorder="little") if mask.size % 8 == 0 else mask)
    ds.NumberOfFrames = len(items)
    if segments == 1 and _is_regular([images[k] for k in order]):
        ds.DimensionOrganizationType = "3D"
    ds.PixelData = _even(_joined(masks))
    del ds[PER_FRAME]
    correct_ambiguous_vr(ds, is_little_endian=True)
    ds.set_original_encoding(False, True, ds._character_set)  # else pydicom decodes what is encoded
    value = b"".join(items)
    ds[PER_FRAME] = RawDataElement(PER_FRAME, "SQ", len(value), value, 0, False, True)


def _joined(masks: Sequence[NDArray[np.generic]]) -> bytes:
    """One-bit frames follow each other without a gap (PS3.5 §8.1.1)."""
    if masks and masks[0].dtype == np.uint8:
        return b"".join(mask.tobytes() for mask in masks)
    return np.packbits(np.concatenate([mask.ravel() for mask in masks]), bitorder="little").tobytes()


def _even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)


def _in_order(images: Sequence[Dataset], shown: Sequence[int]) -> list[int]:
    """Return `shown` as highdicom sorts frames: against the normal of the planes."""
    cosines = np.array(images[0].ImageOrientationPatient, dtype=float)
    normal = np.cross(cosines[:3], cosines[3:])
    return sorted(shown, key=lambda k: -float(normal @ np.array(images[k].ImagePositionPatient, dtype=float)))


def _is_regular(images: Sequence[Dataset]) -> bool:
    """Say whether the planes of one segment, in the order of its frames, are a volume (PS3.3 §C.7.6.17)."""
    if len(images) < 2:
        return False
    positions = [[float(value) for value in image.ImagePositionPatient] for image in images]
    spacing, _ = hd.spatial.get_volume_positions(positions, images[0].ImageOrientationPatient, sort=False)
    return spacing is not None and spacing > 0


def _derivations(first: Dataset, images: Sequence[Dataset]) -> list[bytes]:
    """Encode which image each frame was derived from; once per length of its UID."""
    made: dict[int, bytes] = {}
    found = []
    for image in images:
        uid = str(image.SOPInstanceUID)
        stand_in = "9" * len(uid)
        if len(uid) not in made:
            group = _only(first, "DerivationImageSequence")
            group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = stand_in
            made[len(uid)] = _encoded(group)
        found.append(made[len(uid)].replace(stand_in.encode(), uid.encode()))
    return found


def _identification(first: Dataset, number: int) -> bytes:
    """Encode which segment a frame is of; of a single segment the shared groups say it."""
    if "SegmentIdentificationSequence" not in first:
        return b""
    return _encoded(_only(first, "SegmentIdentificationSequence", ReferencedSegmentNumber=number))


def _position(image: Dataset) -> bytes:
    """Plane Position Sequence with Image Position Patient, its numbers shortened as highdicom does (PS3.5 §6.2, DS)."""
    numbers = (DS(value, auto_format=True) for value in image.ImagePositionPatient)
    text = "\\".join(getattr(number, "original_string", None) or str(number) for number in numbers).encode()
    text += b" " * (len(text) % 2)
    values = struct.pack("<HH2sH", 0x0020, 0x0032, b"DS", len(text)) + text
    return struct.pack("<HH2sHL", 0x0020, 0x9113, b"SQ", 0, len(values) + 8) + _item(values)


def _encoded_content(number: int, place: int) -> bytes:
    """Frame Content Sequence with Dimension Index Values: the segment, then the place."""
    values = struct.pack("<HH2sHLL", 0x0020, 0x9157, b"UL", 8, number, place)
    return struct.pack("<HH2sHL", 0x0020, 0x9111, b"SQ", 0, len(values) + 8) + _item(values)


def _only(first: Dataset, keyword: str, **values: int) -> Dataset:
    """Return a group of one macro, copied from the first frame, with `values` in it."""
    group = Dataset()
    source = Dataset()
    source.add(first[keyword])
    group = Dataset.from_json(source.to_json())
    for name, value in values.items():
        setattr(group[keyword].value[0], name, value)
    return group


def _encoded(group: Dataset) -> bytes:
    buffer = BytesIO()
    file = DicomIO(buffer)
    file.is_little_endian, file.is_implicit_VR = True, False
    write_dataset(file, group)
    return buffer.getvalue()


def _item(value: bytes) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(value)) + value
