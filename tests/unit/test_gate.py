"""Every rule of the gate must be able to fail: each is shown a set that breaks just that rule."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from node import codes
from node.errors import NonConformant
from node.findings import Reading, Volume
from node.simulate import phantoms
from tests import readings
from workers.report import evidence, gate
from workers.report.case import Case, named, walk
from workers.report.context import Context, EvidenceDocument
from workers.report.rules_sr import groups_of


@dataclass
class Set:
    reading: Reading
    volumes: list[Volume]
    context: Context
    documents: list[EvidenceDocument]

    def __getitem__(self, kind: str) -> Dataset:
        return next(d.dataset for d in self.documents if d.kind == kind)

    def complaints(self) -> list[str]:
        headers = tuple(pydicom.dcmread(path, stop_before_pixels=True) for path in self.context.sources)
        return gate.complaints(Case(tuple(self.documents), self.reading, tuple(self.volumes), self.context, headers))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Set:
    folder: Path = tmp_path_factory.mktemp("gate")
    slices, mask = phantoms.volume("oblique", "MR", (10, 20, 24))
    for ds in slices:
        ds.TimezoneOffsetFromUTC, ds.LossyImageCompression = "+0100", "01"
    volume = readings.volume_of(slices, (2.5, 1.2, 0.9))
    context = readings.context(readings.written(slices, folder), results=("SR", "SEG", "SC", "SALIENCY", "PM"))
    found = (readings.explained(readings.finding(volume), volume), readings.finding(volume, "Pleural effusion", 0.01))
    reading = replace(readings.mapped(readings.volume_reading(volume, mask), volume), findings=found)
    return Set(reading, [volume], context, evidence.build(reading, [volume], context))


def _first(ds: Dataset, code: codes.Code) -> Dataset:
    return named(ds, code)[0]


def _drop(ds: Dataset, code: codes.Code) -> None:
    """Remove the first content item of that name."""
    for item in walk(ds):
        children = item.get("ContentSequence") or []
        for number, child in enumerate(children):
            if child in named(child, code)[:1]:
                item.ContentSequence = [*children[:number], *children[number + 1 :]]
                return


def _number(ds: Dataset) -> Dataset:
    item: Dataset = next(i for i in walk(ds) if i.get("ValueType") == "NUM")
    return item


def _percent(ds: Dataset) -> Dataset:
    return _number(groups_of(ds)[0])


def _flip_pixels(s: Set) -> None:
    data = bytearray(s["SEG"].PixelData)
    data[len(data) // 3] ^= 0x10
    s["SEG"].PixelData = bytes(data)


def _move_frame(s: Set) -> None:
    frame = s["SEG"].PerFrameFunctionalGroupsSequence[4]
    frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 0]


def _swap_references(s: Set) -> None:
    frames = s["SEG"].PerFrameFunctionalGroupsSequence
    a, b = (frames[k].DerivationImageSequence[0].SourceImageSequence[0] for k in (4, 5))
    a.ReferencedSOPInstanceUID, b.ReferencedSOPInstanceUID = b.ReferencedSOPInstanceUID, a.ReferencedSOPInstanceUID


def _drop_drawings(s: Set) -> None:
    for item in walk(groups_of(s["SR"])[2]):
        if item.get("ValueType") == "NUM" and "ContentSequence" in item:
            del item.ContentSequence


def _leave_the_range(s: Set) -> None:
    first, *others = s.reading.findings
    assert first.saliency is not None
    beyond = replace(first, saliency=replace(first.saliency, values=first.saliency.values * 2))
    s.reading = replace(s.reading, findings=(beyond, *others))


def _change_a_number(ds: Dataset) -> None:
    ds.FloatPixelData = ds.FloatPixelData[:-4] + np.float32(0.25).tobytes()


def _leave_out_a_frame(ds: Dataset) -> None:
    ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:-1]
    ds.NumberOfFrames = int(ds.NumberOfFrames) - 1
    ds.FloatPixelData = ds.FloatPixelData[: -4 * ds.Rows * ds.Columns]


def _unknown_code(s: Set) -> None:
    s["SEG"].SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning = "Hippo campus"


def _retired_scheme(s: Set) -> None:
    _first(s["SR"], codes.FINDING).ConceptCodeSequence[0].CodingSchemeDesignator = "SRT"


def _without_predicate(s: Set, kind: str) -> None:
    s.documents = [d for d in s.documents if d.kind != kind]


def _drop_evidence(s: Set) -> None:
    del s["SR"].CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[3]


BROKEN: dict[str, tuple[str, Callable[[Set], object]]] = {
    "another patient": ("35", lambda s: setattr(s["SR"], "PatientID", "other")),
    "another description": ("35", lambda s: setattr(s["SEG"], "StudyDescription", "Changed")),
    "the images' series": ("36", lambda s: setattr(s["SC"], "SeriesInstanceUID", _series(s))),
    "two kinds in a series": ("36", lambda s: setattr(s["SC"], "SeriesInstanceUID", s["SR"].SeriesInstanceUID)),
    "a low series number": ("36", lambda s: setattr(s["SC"], "SeriesNumber", 1)),
    "no time zone": ("37", lambda s: delattr(s["SEG"], "TimezoneOffsetFromUTC")),
    "a foreign UID": ("38", lambda s: setattr(s["SR"], "SOPInstanceUID", "1.2.840.1")),
    "a foreign implementation": ("42", lambda s: setattr(s["SR"].file_meta, "ImplementationVersionName", "OTHER")),
    "no model": ("8", lambda s: delattr(s["SC"], "ContributingEquipmentSequence")),
    "a model without device UID": ("8", lambda s: delattr(s["SC"].ContributingEquipmentSequence[-1], "DeviceUID")),
    "a code of no table": ("11-12", _unknown_code),
    "a retired scheme": ("11-12", _retired_scheme),
    "an undeclared scheme": ("11-12", lambda s: delattr(s["SR"], "CodingSchemeIdentificationSequence")),
    "hidden compression": ("32", lambda s: setattr(s["SEG"], "LossyImageCompression", "00")),
    "a capture that hides its text": ("SC", lambda s: setattr(s["SC"], "BurnedInAnnotation", "NO")),
    "a map too few": ("SALIENCY", lambda s: _without_predicate(s, "SALIENCY")),
    "a map that leaves its range": ("SALIENCY", _leave_the_range),
    "a map that hides its text": ("SC", lambda s: setattr(s["SALIENCY"], "BurnedInAnnotation", "NO")),
    "a Parametric Map too few": ("PM", lambda s: _without_predicate(s, "PM")),
    "a map of whole numbers": ("PM", lambda s: delattr(s["PM"], "FloatPixelData")),
    "a map of other numbers": ("PM-values", lambda s: _change_a_number(s["PM"])),
    "a map without its last slice": ("PM-values", lambda s: _leave_out_a_frame(s["PM"])),
    "a label map": ("20", lambda s: setattr(s["SEG"], "SegmentationType", "LABELMAP")),
    "a SEG too few": ("30a", lambda s: _without_predicate(s, "SEG")),
    "a changed voxel": ("23", _flip_pixels),
    "a moved frame": ("23", _move_frame),
    "frames on each other's slices": ("23", _swap_references),
    "another frame of reference": ("24-25, 33", lambda s: setattr(s["SEG"], "FrameOfReferenceUID", "1.2.3")),
    "no series reference": ("24-25, 33", lambda s: delattr(s["SEG"], "ReferencedSeriesSequence")),
    "no serial number": ("26, 29", lambda s: setattr(s["SEG"], "DeviceSerialNumber", "")),
    "a lower-case label": ("26, 29", lambda s: setattr(s["SEG"], "ContentLabel", "lungs")),
    "no algorithm version": ("27", lambda s: delattr(_algorithm(s), "AlgorithmVersion")),
    "no color": ("27", lambda s: delattr(s["SEG"].SegmentSequence[0], "RecommendedDisplayCIELabValue")),
    "a claimed overlap": ("30-31", lambda s: setattr(s["SEG"], "SegmentsOverlap", "YES")),
    "an empty SEG": ("30-31", lambda s: setattr(s["SEG"], "PixelData", bytes(len(s["SEG"].PixelData)))),
    "no report": ("1, 4, 5", lambda s: _without_predicate(s, "SR")),
    "another class": ("1, 4, 5", lambda s: setattr(s["SR"], "SOPClassUID", "1.2.840.10008.5.1.4.1.1.88.33")),
    "no template": ("1, 4, 5", lambda s: delattr(s["SR"], "ContentTemplateSequence")),
    "no language": ("1, 4, 5", lambda s: _drop(s["SR"], codes.LANGUAGE)),
    "no observer": ("6", lambda s: _drop(s["SR"], codes.DEVICE_OBSERVER_UID)),
    "another version": ("7", lambda s: setattr(_first(s["SR"], codes.ALGORITHM_VERSION), "TextValue", "2.0")),
    "an untracked group": ("9", lambda s: _drop(s["SR"], codes.TRACKING_UID)),
    "a probability of 150 %": ("10", lambda s: setattr(_measured(s), "NumericValue", 150)),
    "a unit that is none": ("10", lambda s: delattr(_measured(s), "MeasurementUnitsCodeSequence")),
    "a continuous container": ("13", lambda s: setattr(groups_of(s["SR"])[1], "ContinuityOfContent", "CONTINUOUS")),
    "a verified report": ("14", lambda s: setattr(s["SR"], "VerificationFlag", "VERIFIED")),
    "a final report": ("14", lambda s: setattr(s["SR"], "PreliminaryFlag", "FINAL")),
    "a source that is no evidence": ("15", _drop_evidence),
    "a segment that is not there": ("16", lambda s: s["SEG"].SegmentSequence.pop()),
    "a finding left out": ("19", lambda s: setattr(_identifier(s), "TextValue", "Something else")),
    "no presence": ("19", lambda s: _drop(s["SR"], codes.PRESENCE)),
    "other tracking": ("28", lambda s: setattr(s["SEG"].SegmentSequence[0], "TrackingUID", "2.25.1")),
    "a group nobody can see": ("seen", _drop_drawings),
}


def _series(s: Set) -> str:
    return str(pydicom.dcmread(s.context.sources[0], stop_before_pixels=True).SeriesInstanceUID)


def _algorithm(s: Set) -> Dataset:
    item: Dataset = s["SEG"].SegmentSequence[1].SegmentationAlgorithmIdentificationSequence[0]
    return item


def _measured(s: Set) -> Dataset:
    item: Dataset = _percent(s["SR"]).MeasuredValueSequence[0]
    return item


def _identifier(s: Set) -> Dataset:
    return _first(groups_of(s["SR"])[0], codes.TRACKING_IDENTIFIER)


def test_a_good_set_passes(good: Set) -> None:
    assert good.complaints() == []
    gate.check(good.documents, good.reading, good.volumes, good.context)


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_set_is_stopped_by_its_rule(good: Set, name: str) -> None:
    rule, breaks = BROKEN[name]
    broken = replace(good, documents=deepcopy(good.documents))
    breaks(broken)
    assert any(complaint.startswith(f"{rule}: ") for complaint in broken.complaints()), broken.complaints()
    with pytest.raises(NonConformant, match="Nothing of this reading was filed"):
        gate.check(broken.documents, broken.reading, broken.volumes, broken.context)


def test_every_rule_can_fail() -> None:
    shown_by_test_detect = {"boxes"}
    assert {rule for rule, _ in BROKEN.values()} | shown_by_test_detect == {rule.name for rule in gate.RULES}


def test_a_mask_shifted_by_one_slice_is_stopped(good: Set) -> None:
    segmentation = good.reading.segmentations[0]
    shifted = replace(segmentation, labels=np.roll(segmentation.labels, 1, axis=0))
    reading = replace(good.reading, segmentations=(shifted,))
    with pytest.raises(NonConformant, match="is not our mask"):
        gate.check(good.documents, reading, good.volumes, good.context)


def test_a_name_of_the_patient_is_not_in_the_message(good: Set) -> None:
    broken = replace(good, documents=deepcopy(good.documents))
    broken["SR"].PatientName = "Wrong^Patient"
    with pytest.raises(NonConformant) as caught:
        gate.check(broken.documents, broken.reading, broken.volumes, broken.context)
    assert "Wrong" not in str(caught.value)
    assert "SYNTHETIC" not in str(caught.value)
