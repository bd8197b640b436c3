"""Segmentation IOD (PS3.3 §A.51, §C.8.20): a label map on the source grid becomes coded, colored segments.

Every frame names the image it lies on. A film has no patient plane, so its SEG gets the pixel grid as one:
without a plane, viewers in use go blank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

import highdicom as hd
import numpy as np
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
from highdicom.seg import Segmentation as SegmentationDocument
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.coding import Code as PydicomCode
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from node import codes, uids
from node.codes import Code
from node.errors import Unsuitable
from node.findings import Algorithm, Segment, Segmentation, Source, Volume
from workers.report import frames, sources
from workers.report.run import Run, coded, finish

_Number = TypeVar("_Number", np.uint8, np.float32)
EMPTY_FRAMES_UP_TO = 400
"""Slices up to which empty frames are written too: some viewers misplace segments that have gaps."""
CROSS_SECTIONS = frozenset(
    {
        *(CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage),
        *(MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage),
        *(PositronEmissionTomographyImageStorage, EnhancedPETImageStorage, LegacyConvertedEnhancedPETImageStorage),
    }
)
"""SOP classes whose IOD has a Frame of Reference (PS3.3 §A.3, A.4, A.21, A.36, A.38, A.56, A.70–72)."""
LARGE_FRACTIONAL = 64 * 2**20
"""Bytes of 8-bit frames above which empty frames are left out after all."""


def described(segmentation: Segmentation) -> tuple[Segment, ...]:
    """Return the segments that have at least one pixel; their place here, from 1, is the Segment Number."""
    return tuple(segment for segment in segmentation.segments if not segment.is_empty)


def build(run: Run, segmentation: Segmentation, volume: Volume, ordinal: int) -> Dataset | None:
    """Return the SEG of `segmentation`, or None where nothing was found: the SR says Absent then.

    Raises `Unsuitable` where the images do not say where in the patient a SEG of them would lie.
    """
    segments = described(segmentation)
    if not segments:
        return None
    require_place({source.sop_instance_uid: run.header(source) for source in segmentation.sources}.values(), volume)
    images, pixels = on_frames(run, segmentation.sources, stacked(segmentation, segments), volume)
    kind = encoding(run.context.seg_type, pixels.shape[2])
    algorithm = run.reading.algorithm
    omits_empty = _leave_out_empty_frames(pixels, kind, len(segments), len(segmentation.sources))
    at_once = not omits_empty and pixels.ndim == 3 and _is_stack(kind, images, volume)
    ds = SegmentationDocument(
        source_images=images,
        pixel_array=frames.pattern(pixels) if at_once else pixels,
        segmentation_type=kind,
        segment_descriptions=[_describe(run, s, n, volume) for n, s in enumerate(segments, 1)],
        series_instance_uid=run.uid("SEG", ordinal, "series"),
        series_number=1,
        sop_instance_uid=run.uid("SEG", ordinal, "instance"),
        instance_number=1,
        manufacturer=algorithm.manufacturer,
        manufacturer_model_name=algorithm.name,
        software_versions=algorithm.version,
        device_serial_number=run.context.node.serial_number,
        content_label=content_label(algorithm),
        content_description="AI segmentation, unverified" + ("; plane is the pixel grid" * volume.is_projection),
        omit_empty_frames=omits_empty or at_once,
        specific_character_set=run.inherited.get("SpecificCharacterSet"),
    )
    finished = _finished(ds, run, volume, ordinal)
    if at_once:
        frames.complete(finished, images, pixels, len(segments), omits_empty)
    return finished


def encoding(asked: str, columns: int) -> Literal["BINARY", "FRACTIONAL"]:
    """Return the Segmentation Type for frames of `columns`: see `Context.seg_type`."""
    if asked == "auto":
        return "BINARY" if columns % 8 == 0 else "FRACTIONAL"
    return "BINARY" if asked == "binary" else "FRACTIONAL"


def renumbered(labels: NDArray[np.uint8], segments: Sequence[Segment]) -> NDArray[np.uint8]:
    """Return a copy of the label map whose values are Segment Numbers: 1, 2, … without the empty ones."""
    if [segment.value for segment in segments] == list(range(1, len(segments) + 1)) and labels.max() <= len(segments):
        return labels.copy()
    table = np.zeros(256, np.uint8)
    for number, segment in enumerate(segments, 1):
        table[segment.value] = number
    return np.asarray(table[labels], np.uint8)


def stacked(segmentation: Segmentation, segments: Sequence[Segment]) -> NDArray[np.uint8]:
    """Return what highdicom writes, in a new array, because it may overwrite it.

    Segment Numbers, (slice, row, column); where segments overlap, 0 or 1 in (slice, row, column, segment).
    """
    if segmentation.masks is None:
        return renumbered(segmentation.labels, segments)
    return np.stack([segmentation.mask(segment) for segment in segments], axis=-1).astype(np.uint8)


def content_label(algorithm: Algorithm) -> str:
    """Return a Content Label: CS, upper case, at most 16 characters (PS3.5 §6.2)."""
    label = re.sub(r"[^A-Z0-9]+", "_", algorithm.label.upper()).strip("_")[:16]
    return label or "AI_SEGMENTATION"


def on_frames(
    run: Run, where: Sequence[Source], pixels: NDArray[_Number], volume: Volume
) -> tuple[list[Dataset], NDArray[_Number]]:
    """Return clean headers of `where` and `pixels` in the same order; a multi-frame source gives all its frames."""
    first = where[0]
    if first.frame_number is None or volume.is_projection:
        headers = [run.header(source) for source in where]
        images = [sources.without_quirks(header, is_projection=volume.is_projection) for header in headers]
        for image in images:
            _measured(image, volume)
        return images, pixels
    header = run.header(first)
    frames = np.zeros((int(header.NumberOfFrames), *pixels.shape[1:]), pixels.dtype)
    for k, source in enumerate(where):
        frames[(source.frame_number or 1) - 1] = pixels[k]
    image = sources.without_quirks(header, is_projection=volume.is_projection)
    _measured(image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], volume)
    return [image], frames


def distance_mm(volume: Volume) -> float:
    """Return how far the slices of `volume` lie apart along their normal, as a DS has room for; 1 where unknown."""
    if volume.spacing_mm is None:
        return 1.0
    voxel_mm3 = abs(float(np.linalg.det(volume.affine_mm[:3, :3])))
    return round(voxel_mm3 / (volume.spacing_mm[1] * volume.spacing_mm[2]), 6)


def _measured(measures: Dataset, volume: Volume) -> None:
    """Say how far apart the slices lie as their positions say it: what the image says itself may be anything.

    Readers of a SEG multiply by it, or by Slice Thickness (type 2 in an image, type 1C here) where it is not there.
    """
    thickness = measures.get("SliceThickness")
    if not thickness or not float(thickness) > 0:
        measures.add_new("SliceThickness", "DS", distance_mm(volume))  # the header keeps its own element
    measures.pop("SpacingBetweenSlices", None)
    if len(volume.sources) > 1:
        measures.add_new("SpacingBetweenSlices", "DS", distance_mm(volume))


def require_place(headers: Iterable[Dataset], volume: Volume) -> None:
    """Refuse images whose SEG or map would have no Frame of Reference, or two frames at one place (PS3.3 §C.8.20).

    And a volume of several multi-frame objects: the frames of ours would have to name frames of each.
    """
    headers = list(headers)
    if len(headers) > 1 and any("PerFrameFunctionalGroupsSequence" in header for header in headers):
        raise Unsuitable(
            f"its slices lie in {len(headers)} multi-frame objects; a Segmentation is made of the frames of one"
        )
    for header in headers:
        if volume.is_projection:
            if header.SOPClassUID in CROSS_SECTIONS:
                raise Unsuitable(
                    "its images are sections without a position; a Segmentation could not say where it lies"
                )
            continue
        if not header.get("FrameOfReferenceUID"):
            raise Unsuitable("its images have no Frame of Reference UID; a Segmentation could not say where it lies")
        groups = header.get("PerFrameFunctionalGroupsSequence", ())
        planes = [plane for frame in groups for plane in frame.get("PlanePositionSequence", ())]
        places = {tuple(plane.get("ImagePositionPatient") or ()) for plane in planes}
        if len(places) < len(planes):
            raise Unsuitable(
                f"its {len(planes)} frames lie at {len(places)} positions; a Segmentation could not say which it means"
            )


def _is_stack(kind: str, images: Sequence[Dataset], volume: Volume) -> bool:
    """Say whether `frames` writes the frames: of one-bit masks on single images in the patient."""
    whole_bytes = all(image.Rows * image.Columns % 8 == 0 for image in images[:1])
    return kind == "BINARY" and len(images) > 1 and whole_bytes and not volume.is_projection


def _leave_out_empty_frames(pixels: NDArray[np.uint8], kind: str, segments: int, slices_read: int) -> bool:
    frames, rows, columns = pixels.shape[:3]
    if slices_read < frames:  # other frames of the same object were not read
        return True
    size = frames * rows * columns * segments
    return frames > EMPTY_FRAMES_UP_TO or (kind == "FRACTIONAL" and size > LARGE_FRACTIONAL)


def _describe(run: Run, segment: Segment, number: int, volume: Volume) -> SegmentDescription:
    """One item of the Segment Sequence (PS3.3 §C.8.20.4), tracked under the UID that the SR uses too."""
    algorithm = run.reading.algorithm
    red, green, blue = (int(segment.color[i : i + 2], 16) for i in (1, 3, 5))
    item = SegmentDescription(
        segment_number=number,
        segment_label=segment.label,
        segmented_property_category=_code(segment.category),
        segmented_property_type=_code(segment.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm.name,
            family=_code(codes.ARTIFICIAL_INTELLIGENCE),
            version=algorithm.version,
            source=algorithm.manufacturer,
        ),
        tracking_uid=run.tracking_uid(segment.label, volume),
        tracking_id=segment.label,
        display_color=hd.color.CIELabColor.from_rgb(red, green, blue),
    )
    if segment.type_modifier:
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [coded(segment.type_modifier)]
    return item


def _finished(ds: Dataset, run: Run, volume: Volume, ordinal: int) -> Dataset:
    ds.pop("ContentCreatorName", None)  # type 3, and a person's name: nobody drew this
    if volume.is_projection:
        _pixel_grid_as_plane(ds, run, volume)
    elif len(volume.sources) == 1 and volume.sources[0].frame_number is None:  # highdicom says 1 mm of one slice
        ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].pop("SpacingBetweenSlices", None)
    if ds.BitsAllocated == 8:  # highdicom pads with the character "0"; the standard wants the value (PS3.5 §8.1.1)
        pixels = ds.PixelData[: ds.NumberOfFrames * ds.Rows * ds.Columns]
        ds.PixelData = pixels + b"\0" * (len(pixels) % 2)
    ds.ReferencedSeriesSequence = [*ds.ReferencedSeriesSequence, *_series_read_too(ds, run)]
    ds.LossyImageCompression = "01" if run.is_lossy else "00"
    if run.first.get("BodyPartExamined"):
        ds.BodyPartExamined = run.first.BodyPartExamined
    organization = uids.derive_uid("dimensions", ds.SOPInstanceUID)
    ds.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for index in ds.DimensionIndexSequence:
        index.DimensionOrganizationUID = organization
    return finish(ds, run, "SEG", ordinal)


def _series_read_too(ds: Dataset, run: Run) -> Iterable[Dataset]:
    """Yield an item for each series that was read besides those the frames lie on: the other channels (§C.12.1.2)."""
    there = {str(item.SeriesInstanceUID) for item in ds.ReferencedSeriesSequence}
    others: dict[str, list[Dataset]] = {}
    for header in run.headers:
        if str(header.SeriesInstanceUID) not in there:
            image = Dataset()
            image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
            others.setdefault(str(header.SeriesInstanceUID), []).append(image)
    for uid, images in others.items():
        item = Dataset()
        item.SeriesInstanceUID, item.ReferencedInstanceSequence = uid, images
        yield item


def _pixel_grid_as_plane(ds: Dataset, run: Run, volume: Volume) -> None:
    """Give the SEG of a film a plane: the pixel grid, whatever the patient's true orientation.

    Spacing is the source's, else 1 mm; 0 would blank viewers. The Frame of Reference is copied, never invented.
    """
    header = run.header(volume.sources[0])
    measures, plane = Dataset(), Dataset()
    measures.PixelSpacing = _spacing(header)
    measures.SliceThickness = 1
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    for frame in ds.PerFrameFunctionalGroupsSequence:
        position = Dataset()
        position.ImagePositionPatient = [0, 0, 0]
        frame.PlanePositionSequence = [position]
        if volume.sources[0].frame_number is not None:
            image = frame.DerivationImageSequence[0].SourceImageSequence[0]
            image.ReferencedFrameNumber = volume.sources[0].frame_number
    if header.get("FrameOfReferenceUID"):
        ds.FrameOfReferenceUID = header.FrameOfReferenceUID
        ds.PositionReferenceIndicator = header.get("PositionReferenceIndicator")
    if header.get("PatientOrientation"):
        ds.PatientOrientation = header.PatientOrientation


def _spacing(header: Dataset) -> list[float]:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        values = [float(value) for value in header.get(keyword) or ()]
        if len(values) == 2 and min(values) > 0:
            return list(header[keyword].value)
    return [1, 1]


def _code(code: Code) -> PydicomCode:
    return PydicomCode(code.value, code.scheme, code.meaning)
