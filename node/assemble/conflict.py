"""Do two copies of one SOP Instance show the same image? A corrected header is one thing, other pixels are another.

The pixels are compared as they were sent, never decoded: this process must live. What gives them their meaning (the
Image Pixel Module, the rescale, the geometry) counts with them: a film with another pixel spacing is another film.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from node.store.conflicts import Copy
from node.store.spool import Spool
from node.store.studies import InstanceRow

_NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_MEANING = (
    "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PhotometricInterpretation", "PlanarConfiguration", "PixelPaddingValue", "RescaleSlope",
    "RescaleIntercept", "PixelSpacing", "ImagerPixelSpacing", "ImagePositionPatient", "ImageOrientationPatient",
    "PatientOrientation", "Laterality", "ImageLaterality", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
_EXPLICIT_HEADER, _IMPLICIT_HEADER = 12, 8
"""Bytes before the value of Pixel Data: tag, VR and length, or tag and length (PS3.5 §7.1)."""
_CHUNK = 1 << 20


def image_digest(path: Path) -> str | None:
    """Return the SHA-256 of the image in a Part 10 file, whatever else its header says; None where none can be read.

    Both little endian encodings of native pixels count as one. Another compression is another image: nobody here
    decodes it to find out.
    """
    total = hashlib.sha256()
    try:
        with path.open("rb") as file:
            ds = pydicom.dcmread(file, stop_before_pixels=True)
            syntax = ds.file_meta.TransferSyntaxUID
            total.update(("native" if syntax in _NATIVE else str(syntax)).encode())
            for keyword in _MEANING:
                total.update(f"|{ds.get(keyword, '')}".encode())
            file.read(_IMPLICIT_HEADER if syntax == ImplicitVRLittleEndian else _EXPLICIT_HEADER)
            while chunk := file.read(_CHUNK):
                total.update(chunk)
    except (OSError, InvalidDicomError, AttributeError, ValueError):
        return None
    return total.hexdigest()


def disputed(spool: Spool, copies: Sequence[Copy]) -> list[str]:
    """Return the SOP Instance UIDs whose copies show different images, or cannot be read to find out."""
    digests: dict[str, set[str | None]] = {}
    for copy in copies:
        digests.setdefault(copy.sop_instance_uid, set()).add(image_digest(spool.path(copy.path)))
    return sorted(uid for uid, found in digests.items() if len(found) > 1 or None in found)


def same_images(spool: Spool, before: Sequence[InstanceRow], after: Sequence[InstanceRow]) -> bool:
    """Say whether two manifests hold the same images, so that what was read of one holds for the other."""
    old, new = ({row.sop_instance_uid: row for row in rows} for rows in (before, after))
    if old.keys() != new.keys():
        return False
    changed = [(old[uid], new[uid]) for uid in old if old[uid].sha256 != new[uid].sha256]
    return all(_same(spool, one, other) for one, other in changed)


def _same(spool: Spool, one: InstanceRow, other: InstanceRow) -> bool:
    digest = image_digest(spool.path(one.path))
    return digest is not None and digest == image_digest(spool.path(other.path))
