"""Coded concepts: every (value, scheme, meaning) that wetread writes, in one place (PS3.16; schemes SCT, DCM, UCUM, LN).

Codes that belong to one bundle live in its `configs/dicom.toml`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """A coded entry: Code Value, Coding Scheme Designator, Code Meaning (PS3.3 §8.8)."""

    value: str
    scheme: str
    meaning: str


PRIVATE_SCHEME = "99WETREAD"

VOLUME = Code("118565006", "SCT", "Volume")
AREA = Code("42798000", "SCT", "Area")
SUM_OF_VOXELS = Code("126030", "DCM", "Sum of segmented voxel method for volume")
MILLILITER = Code("ml", "UCUM", "milliliter")
SQUARE_CENTIMETER = Code("cm2", "UCUM", "square centimeter")
PIXELS = Code("{pixels}", "UCUM", "pixels")
