"""The images a reading was made from: their headers, what our objects inherit, and a clean copy for the library."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import pydicom
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import PersonName

# Patient Module (PS3.3 §C.7.1.1), without what refers to other objects
_PATIENT = (
    "PatientName PatientID IssuerOfPatientID TypeOfPatientID IssuerOfPatientIDQualifiersSequence "
    "OtherPatientIDsSequence PatientBirthDate PatientBirthTime PatientSex OtherPatientNames EthnicGroup "
    "QualityControlSubject PatientComments PatientSpeciesDescription PatientSpeciesCodeSequence "
    "PatientBreedDescription "
    "PatientBreedCodeSequence BreedRegistrationSequence ResponsiblePerson ResponsiblePersonRole "
    "ResponsibleOrganization PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence"
)
# Clinical Trial Subject and Study Modules (§C.7.1.3, §C.7.2.3)
_TRIAL = (
    "ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialProtocolName ClinicalTrialSiteID "
    "ClinicalTrialSiteName ClinicalTrialSubjectID ClinicalTrialSubjectReadingID ClinicalTrialTimePointID "
    "ClinicalTrialTimePointDescription"
)
# General Study Module (§C.7.2.1)
_STUDY = (
    "StudyInstanceUID StudyDate StudyTime ReferringPhysicianName StudyID AccessionNumber "
    "IssuerOfAccessionNumberSequence StudyDescription PhysiciansOfRecord NameOfPhysiciansReadingStudy "
    "RequestingService ProcedureCodeSequence"
)
# Patient Study Module (§C.7.2.2)
_PATIENT_STUDY = (
    "AdmittingDiagnosesDescription PatientAge PatientSize PatientWeight PatientSexNeutered MedicalAlerts Allergies "
    "SmokingStatus PregnancyStatus PatientState Occupation AdditionalPatientHistory AdmissionID"
)
PATIENT_AND_STUDY = f"{_PATIENT} {_TRIAL} {_STUDY} {_PATIENT_STUDY}".split()
"""Keywords of what our objects inherit from their source."""


def _tags(keywords: str) -> list[BaseTag]:
    return [Tag(keyword) for keyword in keywords.split()]


_PATIENT_TYPE_2 = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
_STUDY_TYPE_2 = ("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber")
TYPE_2 = (*_PATIENT_TYPE_2, *_STUDY_TYPE_2)
_EMPTY = [(tag, dictionary_VR(tag)) for tag in _tags(" ".join(TYPE_2))]

_FOR_THE_LIBRARY = _tags(
    "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality Rows Columns NumberOfFrames "
    "FrameOfReferenceUID PositionReferenceIndicator ImagePositionPatient ImageOrientationPatient PixelSpacing "
    "SliceThickness SpacingBetweenSlices SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence "
    "LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod"
)
_PLANE = (
    "FrameOfReferenceUID PositionReferenceIndicator PixelSpacing ImagePositionPatient ImageOrientationPatient "
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
)
_LOSSY_SYNTAXES = frozenset({f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81, 112)})
_AGE = re.compile(r"\d{3}[DWMY]")


def read_headers(paths: Iterable[Path]) -> tuple[Dataset, ...]:
    """Read the headers of Part 10 files, without pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foreign values that pydicom finds odd are judged here
        return tuple(pydicom.dcmread(path, stop_before_pixels=True) for path in paths)


def inherit(header: Dataset, *, to_utf_8: bool = False) -> Dataset:
    """Return what every object of the study shares with `header`: patient, study and character set.

    Values are copied as they are. Missing type 2 attributes are there and empty; a Patient's Age that is no AS
    ("81") is left out. A character set with code extensions (ISO 2022), or `to_utf_8`, becomes ISO_IR 192.
    """
    inherited = Dataset()
    for keyword in PATIENT_AND_STUDY:
        if keyword in header:
            inherited.add(_as_received(header, keyword))
    _drop_illegal_age(inherited)
    charset = header.get("SpecificCharacterSet") or None
    if to_utf_8 or isinstance(charset, MultiValue | list):
        inherited = _in_utf_8(inherited)
        charset = "ISO_IR 192"
    for keyword in TYPE_2:
        if keyword not in inherited:
            setattr(inherited, keyword, None)
    if charset:
        inherited.SpecificCharacterSet = charset
    return inherited


def without_quirks(header: Dataset, *, is_projection: bool) -> Dataset:
    """Return a copy for highdicom: only what it needs, the patient's and study's attributes empty.

    A film loses its Frame of Reference here, because the plane of its SEG is only the pixel grid, and one frame of a
    multi-frame film stands alone.
    """
    copy = Dataset()
    for tag in _FOR_THE_LIBRARY:
        if tag in header:
            copy.add(header[tag])
    for tag, vr in _EMPTY:
        copy.add(DataElement(tag, vr, ""))
    if "PerFrameFunctionalGroupsSequence" in copy:
        _planes_only(copy)
    if is_projection:
        for keyword in _PLANE.split():
            copy.pop(keyword, None)
        if "NumberOfFrames" in copy:
            copy.NumberOfFrames = 1
            measures, shared = Dataset(), Dataset()
            measures.PixelSpacing, measures.SliceThickness = [1, 1], 1  # asked for; the SEG gets its own
            shared.PixelMeasuresSequence = [measures]
            copy.SharedFunctionalGroupsSequence = [shared]
    return copy


def is_lossy(header: Dataset) -> bool:
    """Say whether the image went through a lossy compression (0028,2110), by its flag or its transfer syntax."""
    syntax = str(header.file_meta.get("TransferSyntaxUID", "")) if hasattr(header, "file_meta") else ""
    return header.get("LossyImageCompression") == "01" or syntax in _LOSSY_SYNTAXES


def _planes_only(copy: Dataset) -> None:
    """Keep of the functional groups where the frames lie, arranged as highdicom wants it (PS3.3 §C.7.6.16.2).

    Some vendors write measures and orientation, the same for all frames, into each.
    """
    shared = (copy.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    frames = copy.PerFrameFunctionalGroupsSequence
    kept = Dataset()
    for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        found = frames[0].get(keyword) or shared.get(keyword)  # in the order in which the images were read
        if found:
            setattr(kept, keyword, [Dataset(found[0])])
    places = []
    for frame in frames:
        place = Dataset()
        place.PlanePositionSequence = frame.get("PlanePositionSequence") or shared.get("PlanePositionSequence") or []
        places.append(place)
    copy.SharedFunctionalGroupsSequence, copy.PerFrameFunctionalGroupsSequence = [kept], places


def _drop_illegal_age(inherited: Dataset) -> None:
    """Leave out a Patient's Age that is no AS (type 3). "81" is not mended: study attributes must not differ."""
    if "PatientAge" in inherited and not _AGE.fullmatch(str(inherited.PatientAge or "")):
        del inherited.PatientAge


def _as_received(header: Dataset, keyword: str) -> DataElement:
    """Return an element that is written as it was read: pydicom would drop empty component groups of a name."""
    raw = header.get_item(keyword)
    element = header[keyword]
    if isinstance(raw, RawDataElement) and isinstance(element.value, PersonName) and raw.value:
        element.value.original_string = raw.value.rstrip(b" \0")
    return element


def _in_utf_8(inherited: Dataset) -> Dataset:
    """Return `inherited` as Unicode text that no longer remembers its old encoding."""
    converted = Dataset()
    for element in inherited:
        if element.tag != 0x00080005:
            converted.add(_unicode(element))
    return converted


def _unicode(element: DataElement) -> DataElement:
    if element.VR == "SQ":
        return DataElement(element.tag, "SQ", [_in_utf_8(item) for item in element.value])
    if element.VR == "PN" and element.value:
        values = element.value if isinstance(element.value, MultiValue) else [element.value]
        names = [PersonName(str(value)) for value in values]
        return DataElement(element.tag, "PN", names if len(names) > 1 else names[0])
    return element
