"""Coded concepts: every (value, scheme, meaning) that wetread writes, in one place (PS3.16).

Codes that belong to one bundle live in its `configs/dicom.toml`. Whatever an Evidence Document carries is in
`ALL`, or belongs to the bundle, or is derived here from the bundle's own code (`probability_of`, `number_of`,
`measured_on`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """A coded entry: Code Value, Coding Scheme Designator, Code Meaning (PS3.3 §8.8)."""

    value: str
    scheme: str
    meaning: str


PRIVATE_SCHEME = "99WETREAD"
ALLOWED_SCHEMES = frozenset({"SCT", "DCM", "LN", "UCUM", "NCIt", "RFC5646", PRIVATE_SCHEME})
"""Anything else (SRT, a vendor's own) is refused by the gate."""

# Quantities
VOLUME = Code("118565006", "SCT", "Volume")
AREA = Code("42798000", "SCT", "Area")
LONG_AXIS = Code("103339001", "SCT", "Long Axis")  # the case in which viewers look for it
SHORT_AXIS = Code("103340004", "SCT", "Short Axis")
PROBABILITY = Code("122157", "DCM", "Probability")
SUM_OF_VOXELS = Code("126030", "DCM", "Sum of segmented voxel method for volume")

# Units
MILLILITER = Code("ml", "UCUM", "milliliter")
SQUARE_CENTIMETER = Code("cm2", "UCUM", "square centimeter")
MILLIMETER = Code("mm", "UCUM", "mm")
PERCENT = Code("%", "UCUM", "Percent")
PIXELS = Code("{pixels}", "UCUM", "pixels")
NO_UNITS = Code("1", "UCUM", "no units")

# Presence (CID 240) and category of a finding (TID 1501)
PRESENCE = Code("705057003", "SCT", "Presence")
PRESENT = Code("52101004", "SCT", "Present")
ABSENT = Code("272519000", "SCT", "Absent")
CLINICAL_FINDING = Code("404684003", "SCT", "Clinical finding")

# Laterality (CID 244)
RIGHT = Code("24028007", "SCT", "Right")
LEFT = Code("7771000", "SCT", "Left")
BILATERAL = Code("51440002", "SCT", "Bilateral")
ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")
STRUCTURES = frozenset({ANATOMICAL_STRUCTURE.value, "123037004"})
"""What Anatomical Structure of CID 7150 is coded as, now and in earlier editions of PS3.16."""

# What was imaged (CID 100) and by what it was processed (CID 7005, CID 7162, CID 7202)
CT_PROCEDURE = Code("25045-6", "LN", "CT unspecified body region")
MR_PROCEDURE = Code("25056-3", "LN", "MRI unspecified body region")
IMAGING_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")
ACQUISITION_EQUIPMENT = Code("109101", "DCM", "Acquisition Equipment")
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
SEGMENTATION = Code("113076", "DCM", "Segmentation")
SOURCE_IMAGE = Code("121322", "DCM", "Source image for image processing operation")

# The skeleton of TID 1500, 1501, 1410, 1411, 4019 as highdicom writes it
REPORT_TITLE = Code("126000", "DCM", "Imaging Measurement Report")
LANGUAGE = Code("121049", "DCM", "Language of Content Item and Descendants")
ENGLISH = Code("en-US", "RFC5646", "English (United States)")
OBSERVER_TYPE = Code("121005", "DCM", "Observer Type")
DEVICE = Code("121007", "DCM", "Device")
PERSON_OBSERVER_NAME = Code("121008", "DCM", "Person Observer Name")
DEVICE_OBSERVER_UID = Code("121012", "DCM", "Device Observer UID")
DEVICE_OBSERVER_NAME = Code("121013", "DCM", "Device Observer Name")
DEVICE_OBSERVER_MANUFACTURER = Code("121014", "DCM", "Device Observer Manufacturer")
DEVICE_OBSERVER_MODEL = Code("121015", "DCM", "Device Observer Model Name")
PROCEDURE_REPORTED = Code("121058", "DCM", "Procedure reported")
IMAGING_MEASUREMENTS = Code("126010", "DCM", "Imaging Measurements")
MEASUREMENT_GROUP = Code("125007", "DCM", "Measurement Group")
TRACKING_IDENTIFIER = Code("112039", "DCM", "Tracking Identifier")
TRACKING_UID = Code("112040", "DCM", "Tracking Unique Identifier")
FINDING_CATEGORY = Code("276214006", "SCT", "Finding category")
FINDING = Code("121071", "DCM", "Finding")
FINDING_SITE = Code("363698007", "SCT", "Finding Site")
LATERALITY = Code("272741003", "SCT", "Laterality")
TOPOGRAPHICAL_MODIFIER = Code("106233006", "SCT", "Topographical modifier")
MEASUREMENT_METHOD = Code("370129005", "SCT", "Measurement Method")
ALGORITHM_NAME = Code("111001", "DCM", "Algorithm Name")
ALGORITHM_VERSION = Code("111003", "DCM", "Algorithm Version")
ALGORITHM_PARAMETERS = Code("111002", "DCM", "Algorithm Parameters")
ALGORITHM_FAMILY = Code("111000", "DCM", "Algorithm Family")
ALGORITHM_MANUFACTURER = Code("122405", "DCM", "Algorithm Manufacturer")
SOURCE_OF_MEASUREMENT = Code("121112", "DCM", "Source of Measurement")
SOURCE = Code("260753009", "SCT", "Source")
IMAGE_REGION = Code("111030", "DCM", "Image Region")
REFERENCED_SEGMENT = Code("121191", "DCM", "Referenced Segment")
REFERENCED_SEGMENTATION_FRAME = Code("121214", "DCM", "Referenced Segmentation Frame")
SOURCE_IMAGE_FOR_SEGMENTATION = Code("121233", "DCM", "Source image for segmentation")
SOURCE_SERIES_FOR_SEGMENTATION = Code("121232", "DCM", "Source series for segmentation")
COMMENT = Code("121106", "DCM", "Comment")

# What a bundle did not read (CID 6042), and the number that says how unlike its training images it is
NOT_ATTEMPTED = Code("111225", "DCM", "Not Attempted")
NO_UNITS = Code("1", "UCUM", "no units")
UNLIKENESS = Code("UNLIKENESS", "99WETREAD", "AI: not analyzed, unlikeness (limit 1)")
IMAGES_DECLINED = Code("DECLINED", "99WETREAD", "AI: not analyzed, images")

# What the numbers of a Parametric Map are
QUANTITY = Code("246205007", "SCT", "Quantity")
VISUAL_EXPLANATION = Code("130401", "DCM", "Visual explanation")
UNSPECIFIED_CALCULATION = Code("112187", "DCM", "Unspecified method of calculation")

ALL = frozenset(value for value in globals().values() if isinstance(value, Code))
"""The code table: what `docs/conformance` lists and the gate accepts."""


def probability_of(finding: Code, label: str, *, calibrated: bool) -> Code:
    """Return the concept name of a finding's NUM: viewers show the name and the value, nothing else, so it says all.

    `calibrated`: a probability; otherwise an AI score, which must not be read as one.
    """
    noun = "probability" if calibrated else "score"
    return _private("P" if calibrated else "S", finding, f"AI: {label[:48]} {noun}")


def number_of(finding: Code, label: str) -> Code:
    """Return the concept name of how many of one thing a detector found, such as "AI: Lung nodule, number found"."""
    return _private("N", finding, f"AI: {label[:44]}, number found")


def measured_on(quantity: Code, segment: Code, label: str, *, found: bool = True) -> Code:
    """Return the concept name of a quantity of one named segment, such as "AI: Left lung area".

    `found`: otherwise the name says that there is none; a viewer in use shows the number 0 as nothing at all.
    """
    noun = quantity.meaning.lower()[:11]
    meaning = f"AI: {label[:48]} {noun}" if found else f"AI: {label[:36]} not found, {noun}"
    return _private(quantity.meaning[:1], segment, meaning)


def _private(prefix: str, subject: Code, meaning: str) -> Code:
    """Return our own code; its value is stable for subject and meaning and has at most 16 characters (SH)."""
    digest = hashlib.sha256(f"{subject.scheme}|{subject.value}|{meaning}".encode()).hexdigest()[:10].upper()
    return Code(f"{prefix}-{digest}", PRIVATE_SCHEME, meaning)
