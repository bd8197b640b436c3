"""Rules for the SEG: every frame lies where its source lies and holds exactly our mask."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from node.findings import Segmentation, Source, Volume
from workers.report import encoded
from workers.report.case import Case, Rule
from workers.report.seg import described

SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"
_CONTENT_LABEL = re.compile(r"[A-Z0-9_ ]{1,16}")
_SEGMENT = (
    "SegmentedPropertyCategoryCodeSequence",
    "SegmentedPropertyTypeCodeSequence",
    "SegmentAlgorithmName",
    "SegmentLabel",
    "TrackingID",
    "TrackingUID",
    "RecommendedDisplayCIELabValue",
)
_ALGORITHM = ("AlgorithmFamilyCodeSequence", "AlgorithmName", "AlgorithmVersion")
_POSITION_TOLERANCE_MM = 1e-3
_VOLUME_TOLERANCE = 1e-2
"""Of a voxel: pixel spacings of one series may differ by a thousandth of a millimeter."""


@dataclass(frozen=True)
class Frame:
    """One frame of a SEG as it is stored; `decode` reads its pixels."""

    segment_number: int
    source: Source
    position: tuple[float, ...] | None
    decode: Callable[[], NDArray[np.bool_]]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Which pixels are set: (row, column), decoded anew each time, because all of them at once are large."""
        return self.decode()


def frames(ds: Dataset) -> Iterator[Frame]:
    """Decode a SEG of our own frame by frame: 1-bit frames are packed without gaps (PS3.5 §8.1.1)."""
    [shared] = encoded.sequence(ds, "SharedFunctionalGroupsSequence")
    rows, columns, bits = int(ds.Rows), int(ds.Columns), int(ds.BitsAllocated)
    data = np.frombuffer(ds.PixelData, np.uint8)
    for number, groups in enumerate(encoded.sequence(ds, "PerFrameFunctionalGroupsSequence")):
        of_segment = groups.items("SegmentIdentificationSequence") or shared.items("SegmentIdentificationSequence")
        image = groups.items("DerivationImageSequence")[0].items("SourceImageSequence")[0]
        frame_number = image.text("ReferencedFrameNumber")
        plane = groups.items("PlanePositionSequence")
        yield Frame(
            of_segment[0].numbers("ReferencedSegmentNumber", "H")[0],
            Source(image.text("ReferencedSOPInstanceUID"), int(frame_number) if frame_number else None),
            tuple(map(float, plane[0].text("ImagePositionPatient").split("\\"))) if plane else None,
            partial(_mask, data, number, (rows, columns), bits),
        )


def _mask(data: NDArray[np.uint8], number: int, shape: tuple[int, int], bits: int) -> NDArray[np.bool_]:
    size = shape[0] * shape[1]
    pixels = _pixels(data, number * size, size, bits).reshape(shape)
    return pixels.view(np.bool_) if bits == 1 else pixels > 0


def _pixels(data: NDArray[np.uint8], start: int, size: int, bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return data[start : start + size]
    first, last = start // 8, -(-(start + size) // 8)
    unpacked = np.unpackbits(data[first:last], bitorder="little")
    return np.asarray(unpacked[start - 8 * first :][:size], np.uint8)


def _pairs(case: Case) -> Iterator[tuple[Dataset, Segmentation, Volume]]:
    for ds, (segmentation, volume) in zip(case.of_kind("SEG"), case.segmentations(), strict=False):
        yield ds, segmentation, volume


def _number(case: Case) -> Iterator[str]:
    wanted = len(case.segmentations()) if "SEG" in case.context.results else 0
    if len(case.of_kind("SEG")) != wanted:
        yield f"there are {len(case.of_kind('SEG'))} SEGs for {wanted} segmentations that found something"


def _kind(case: Case) -> Iterator[str]:
    for ds in case.of_kind("SEG"):
        if ds.SOPClassUID != SEGMENTATION_STORAGE or ds.SegmentationType not in {"BINARY", "FRACTIONAL"}:
            yield f"{ds.SegmentationType} in {ds.SOPClassUID}"
        if ds.SegmentationType == "FRACTIONAL":
            values = set(np.unique(np.frombuffer(ds.PixelData, np.uint8)).tolist())
            if not values <= {0, int(ds.MaximumFractionalValue)}:
                yield "a FRACTIONAL one holds more than 0 and its maximum, which viewers do not load"


def _pixels_and_places(case: Case) -> Iterator[str]:
    for ds, segmentation, volume in _pairs(case):
        numbered = dict(enumerate(described(segmentation), 1))
        where = {source: k for k, source in enumerate(segmentation.sources)}
        total = 0
        for frame in frames(ds):
            k, stored = where.get(frame.source), frame.mask
            mask = segmentation.mask_on(numbered[frame.segment_number], k) if k is not None else np.zeros(1, bool)
            if not np.array_equal(stored, mask) and (k is not None or stored.any()):
                yield f"a frame of segment {frame.segment_number} on {frame.source.sop_instance_uid} is not our mask"
            if not volume.is_projection and not _in_place(case, frame):
                yield f"a frame is not where {frame.source.sop_instance_uid} is"
            total += int(np.count_nonzero(stored))
        if total != sum(sum(segmentation.areas(segment)) for segment in numbered.values()):
            yield "voxels of the mask are in no frame"


def _in_place(case: Case, frame: Frame) -> bool:
    header = case.by_uid[frame.source.sop_instance_uid]
    if frame.source.frame_number is not None:
        groups = header.PerFrameFunctionalGroupsSequence[frame.source.frame_number - 1]
        plane = groups.get("PlanePositionSequence") or header.SharedFunctionalGroupsSequence[0].PlanePositionSequence
        header = plane[0]
    theirs = [float(value) for value in header.ImagePositionPatient]
    if frame.position is None or len(frame.position) != len(theirs):
        return False
    return all(abs(ours - there) <= _POSITION_TOLERANCE_MM for ours, there in zip(frame.position, theirs, strict=True))


def _references(case: Case) -> Iterator[str]:
    for ds, segmentation, volume in _pairs(case):
        header = case.by_uid[segmentation.sources[0].sop_instance_uid]
        if (ds.get("FrameOfReferenceUID") or None) != (header.get("FrameOfReferenceUID") or None):
            yield "its Frame of Reference is not the source's"
        listed = {str(series.SeriesInstanceUID) for series in ds.get("ReferencedSeriesSequence") or ()}
        if str(header.SeriesInstanceUID) not in listed:
            yield "Referenced Series Sequence does not name the source's series"
        if (ds.Rows, ds.Columns) != (header.Rows, header.Columns):
            yield "it is not on the source's grid"
        shared = ds.SharedFunctionalGroupsSequence[0]
        if volume.is_projection and not (
            shared.get("PixelMeasuresSequence") and shared.get("PlaneOrientationSequence")
        ):
            yield "a film's SEG has no plane, which blanks viewers"
        if len(volume.sources) > 1 and not _is_measured(shared.PixelMeasuresSequence[0], volume):
            yield "a voxel of it is not as large as one of the images"


def _is_measured(measures: Dataset, volume: Volume) -> bool:
    """Say whether spacing and distance give the voxels that the SR's volume counts."""
    rows, columns = (float(value) for value in measures.PixelSpacing)
    voxel_mm3 = abs(float(np.linalg.det(volume.affine_mm[:3, :3])))
    return abs(rows * columns * float(measures.SpacingBetweenSlices) - voxel_mm3) <= _VOLUME_TOLERANCE * voxel_mm3


def _equipment(case: Case) -> Iterator[str]:
    for ds in case.of_kind("SEG"):
        for keyword in ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions"):
            if not ds.get(keyword):
                yield f"{keyword} is empty"
        if not _CONTENT_LABEL.fullmatch(str(ds.get("ContentLabel"))):
            yield f'Content Label "{ds.get("ContentLabel")}" is no CS'


def _segments(case: Case) -> Iterator[str]:
    for ds in case.of_kind("SEG"):
        for number, segment in enumerate(ds.SegmentSequence, 1):
            algorithm = (segment.get("SegmentationAlgorithmIdentificationSequence") or [Dataset()])[0]
            for owner, keywords in ((segment, _SEGMENT), (algorithm, _ALGORITHM)):
                yield from (f"segment {number} has no {keyword}" for keyword in keywords if not owner.get(keyword))
            if segment.SegmentNumber != number or segment.SegmentAlgorithmType != "AUTOMATIC":
                yield f"segment {number} is numbered {segment.SegmentNumber}, made {segment.SegmentAlgorithmType}"


def _overlap(case: Case) -> Iterator[str]:
    for ds, segmentation, _ in _pairs(case):
        held: dict[int, bool] = {}
        wanted = "NO" if segmentation.masks is None else "YES"
        if ds.get("SegmentsOverlap") != wanted:
            yield f"SegmentsOverlap is {ds.get('SegmentsOverlap')} where {wanted} is true"
        for frame in frames(ds):
            number = frame.segment_number
            held[number] = held.get(number, False) or bool(frame.mask.any())
        yield from (f"segment {number} is empty" for number, is_held in held.items() if not is_held)


RULES = (
    Rule("20", "BINARY, or FRACTIONAL that holds only nothing and all", _kind),
    Rule("30a", "one SEG for every segmentation that found something", _number),
    Rule("23", "every frame lies on its source and holds our mask", _pixels_and_places),
    Rule("24-25, 33", "Frame of Reference, series, grid and plane are there", _references),
    Rule("26, 29", "the equipment is named and the Content Label is a CS", _equipment),
    Rule("27", "every segment is coded, colored, tracked and names its algorithm", _segments),
    Rule("30-31", "no segment is empty, and the SEG says whether any overlap", _overlap),
)
