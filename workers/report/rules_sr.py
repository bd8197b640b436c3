"""Rules for the SR: TID 1500 as the standard and IHE AIR want it, and as viewers show it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from node import codes
from node.findings import Box
from workers.report.case import Case, Rule, code_of, named, references, walk
from workers.report.rules_common import model_item

_BOX_TOLERANCE = 0.05
"""Pixels; coordinates are written with two decimals, as single precision."""
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"


def groups_of(ds: Dataset) -> list[Dataset]:
    """Return the measurement groups of a report."""
    return named(ds, codes.MEASUREMENT_GROUP)


def tracking_uids(items: list[Dataset]) -> set[str]:
    """Return the Tracking UIDs in `items` (measurement groups)."""
    return {str(i.UID) for group in items for i in named(group, codes.TRACKING_UID)}


def _document(case: Case) -> Iterator[str]:
    reports = case.of_kind("SR")
    if len(reports) != int("SR" in case.context.results):
        yield f"there are {len(reports)}"
    for ds in reports:
        template = (ds.get("ContentTemplateSequence") or [Dataset()])[0]
        if ds.SOPClassUID != COMPREHENSIVE_3D_SR:
            yield f"its SOP Class is {ds.SOPClassUID}"
        if code_of(ds) != codes.REPORT_TITLE or template.get("TemplateIdentifier") != "1500":
            yield "its root is not TID 1500"
        if not named(ds, codes.LANGUAGE):
            yield "it does not name its language"


def _observer(case: Case) -> Iterator[str]:
    for ds in case.of_kind("SR"):
        if len(named(ds, codes.DEVICE_OBSERVER_UID)) != 1 or named(ds, codes.PERSON_OBSERVER_NAME):
            yield "the observer is not exactly one device"


def _same_model(case: Case) -> Iterator[str]:
    for ds in case.of_kind("SR"):
        item = model_item(ds)
        if item is None:
            return
        pairs = (
            (codes.DEVICE_OBSERVER_UID, item.DeviceUID),
            (codes.DEVICE_OBSERVER_MANUFACTURER, item.Manufacturer),
            (codes.DEVICE_OBSERVER_MODEL, item.ManufacturerModelName),
            (codes.ALGORITHM_NAME, item.ManufacturerModelName),
            (codes.ALGORITHM_VERSION, item.SoftwareVersions),
            (codes.ALGORITHM_MANUFACTURER, item.Manufacturer),
        )
        for concept, wanted in pairs:
            values = {str(found.get("UID") or found.get("TextValue")) for found in named(ds, concept)}
            if values != {str(wanted)}:
                yield f"{concept.meaning} is {sorted(values)}, Contributing Equipment has {wanted}"


def _tracked(case: Case) -> Iterator[str]:
    for ds in case.of_kind("SR"):
        for number, group in enumerate(groups_of(ds), 1):
            for concept in (codes.TRACKING_IDENTIFIER, codes.TRACKING_UID):
                if len(named(group, concept)) != 1:
                    yield f"measurement group {number} has not one {concept.meaning}"


def _numbers(case: Case) -> Iterator[str]:
    for ds in case.of_kind("SR"):
        for item in (i for i in walk(ds) if i.get("ValueType") == "NUM"):
            name = code_of(item)
            measured = (item.get("MeasuredValueSequence") or [Dataset()])[0]
            unit = code_of(measured, "MeasurementUnitsCodeSequence")
            value = float(measured.get("NumericValue", math.nan))
            if not math.isfinite(value) or unit is None or unit.scheme != "UCUM":
                yield f"{name.meaning if name else 'a number'} has no finite value in a UCUM unit"
            elif unit.value == codes.PERCENT.value and not 0 <= value <= 100:
                yield f"{value} % is no probability"


def _separate(case: Case) -> Iterator[str]:
    for ds in case.of_kind("SR"):
        for item in walk(ds):
            if item.get("ValueType") == "CONTAINER" and item.get("ContinuityOfContent") != "SEPARATE":
                yield "a container is not"


def _flags(case: Case) -> Iterator[str]:
    for ds in case.of_kind("SR"):
        if ds.CompletionFlag not in {"COMPLETE", "PARTIAL"}:
            yield f"Completion Flag is {ds.CompletionFlag}"
        if ds.VerificationFlag != "UNVERIFIED" or ds.get("PreliminaryFlag") != "PRELIMINARY":
            yield "it claims that a person has seen it"


def _evidence(case: Case) -> Iterator[str]:
    for ds in case.of_kind("SR"):
        listed = {
            str(instance.ReferencedSOPInstanceUID)
            for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
            for study in ds.get(keyword) or ()
            for series in study.ReferencedSeriesSequence
            for instance in series.ReferencedSOPSequence
        }
        used = {str(item.ReferencedSOPInstanceUID) for item in references(ds)}
        for missing in sorted((used | set(case.by_uid)) - listed):
            yield f"{missing} is not listed"


def _segments_exist(case: Case) -> Iterator[str]:
    segs = {str(seg.SOPInstanceUID): {int(s.SegmentNumber) for s in seg.SegmentSequence} for seg in case.of_kind("SEG")}
    for ds in case.of_kind("SR"):
        referenced: dict[str, set[int]] = {}
        for item in references(ds):
            if "ReferencedSegmentNumber" in item:
                numbers = item["ReferencedSegmentNumber"].value
                found = {numbers} if isinstance(numbers, int) else set(numbers)
                referenced.setdefault(str(item.ReferencedSOPInstanceUID), set()).update(found)
        if referenced != segs:
            yield f"the report names segments {referenced}, the SEGs have {segs}"


def _all_evaluated(case: Case) -> Iterator[str]:
    wanted = {finding.label for finding in case.reading.findings}
    wanted |= {detection.label for detection in case.reading.detections}
    wanted |= {segment.label for s in case.reading.segmentations for segment in s.segments}
    for ds in case.of_kind("SR"):
        groups = groups_of(ds)
        there = {str(i.TextValue) for group in groups for i in named(group, codes.TRACKING_IDENTIFIER)}
        for label in sorted(wanted - there):
            yield f'"{label}" has no group'
        if len([g for g in groups if named(g, codes.PRESENCE)]) < len(wanted):
            yield "a group does not say Present or Absent"


def _visible(case: Case) -> Iterator[str]:
    for ds in case.of_kind("SR"):
        groups = groups_of(ds)
        drawn = [g for g in groups if any(i.ValueType == "SCOORD" and list(references(i)) for i in walk(g))]
        for uid in sorted(tracking_uids(groups) - tracking_uids(drawn)):
            yield f"{uid} has no coordinates on an image, and viewers would show nothing of the report"


def _boxes(case: Case) -> Iterator[str]:
    """TID 1410: each box is a closed region on the image in which its middle lies, and nothing else is one."""
    boxes = [box for detection in case.reading.detections for box in detection.boxes]
    for ds in case.of_kind("SR"):
        made: list[tuple[str, int | None, NDArray[np.float64]]] = []
        for region in named(ds, codes.IMAGE_REGION):
            image = next(references(region))
            points = np.array(region.GraphicData, np.float64).reshape(-1, 2)
            made.append((str(image.ReferencedSOPInstanceUID), image.get("ReferencedFrameNumber"), points))
            header = case.by_uid.get(made[-1][0], Dataset())
            if points.min() < 0 or (points.max(axis=0) > [header.get("Columns", 0), header.get("Rows", 0)]).any():
                yield "a box reaches beyond its image"
        lost = [box for box in boxes if not any(_is_box(box, *region) for region in made)]
        if lost or len(made) != len(boxes):
            yield f"there are {len(made)} regions for {len(boxes)} boxes, and {len(lost)} of these have none"


def _is_box(box: Box, uid: str, frame: int | None, points: NDArray[np.float64]) -> bool:
    x, y = [box.left, box.right, box.right, box.left, box.left], [box.top, box.top, box.bottom, box.bottom, box.top]
    outline = np.column_stack([x, y])
    same = (uid, frame) == (box.source.sop_instance_uid, box.source.frame_number)
    return same and points.shape == outline.shape and np.allclose(points, outline, rtol=0, atol=_BOX_TOLERANCE)


def _same_tracking(case: Case) -> Iterator[str]:
    ours = {str(s.TrackingUID) for seg in case.of_kind("SEG") for s in seg.SegmentSequence}
    for ds in case.of_kind("SR"):
        pointing = [g for g in groups_of(ds) if any("ReferencedSegmentNumber" in item for item in references(g))]
        if tracking_uids(pointing) != ours:
            yield "their Tracking UIDs differ"


RULES = (
    Rule("1, 4, 5", "one Comprehensive 3D SR by TID 1500 that names its language", _document),
    Rule("6", "the observer is the device", _observer),
    Rule("7", "the observer, the algorithm and Contributing Equipment are the same", _same_model),
    Rule("9", "every measurement group is tracked", _tracked),
    Rule("10", "every number has a value and a unit, probabilities 0..100 %", _numbers),
    Rule("13", "every container is SEPARATE", _separate),
    Rule("14", "complete or partial, unverified, preliminary", _flags),
    Rule("15", "whatever is referenced, and every source, is listed as evidence", _evidence),
    Rule("16", "every segment is referenced and every referenced segment exists", _segments_exist),
    Rule("19", "every class of the model has a group, present or absent", _all_evaluated),
    Rule("boxes", "every box of a detector is a region on its image", _boxes),
    Rule("28", "SEG and SR track the same things", _same_tracking),
    Rule("seen", "every tracked thing has coordinates on an image", _visible),
)
