"""Measurement groups of TID 1500: one per finding, two per segment.

Every group that is to be seen has coordinates on an image: a viewer that meets a group without them shows
nothing of the whole report. The name of a NUM says what the number is of, because it is all that is displayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import numpy as np
from highdicom import sr
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.coding import Code as PydicomCode

from node import codes
from node.codes import Code
from node.findings import Declined, Finding, Measurement, Segment, Segmentation, Source, Volume
from workers.report import outline
from workers.report.run import Run
from workers.report.seg import described

Group = (
    sr.MeasurementsAndQualitativeEvaluations
    | sr.PlanarROIMeasurementsAndQualitativeEvaluations
    | sr.VolumetricROIMeasurementsAndQualitativeEvaluations
)
_Image = TypeVar(
    "_Image",
    sr.SourceImageForMeasurement,
    sr.SourceImageForMeasurementGroup,
    sr.SourceImageForRegion,
    sr.SourceImageForSegmentation,
)
_MOST_UNLIKE = 1e6
"""What a score without bound is written as: a Numeric Value is finite."""
_MARGIN, _FIRST, _STEP, _LAST = 0.04, 0.05, 0.07, 0.95
"""Where labels are stacked, as parts of the image: from the left; from the top; from each other; the lowest."""


@dataclass
class Stack:
    """Hands out the points at which labels of one report stand, one below the other on each image."""

    used: dict[str, Iterator[int]] = field(default_factory=dict)

    def next(self, header: Dataset, source: Source) -> NDArray[np.float64]:
        """Return the next (1, 2) point on the image, in SCOORD coordinates."""
        place = next(self.used.setdefault(f"{source.sop_instance_uid} {source.frame_number}", count()))
        per_column = int((_LAST - _FIRST) / _STEP) + 1
        x = _MARGIN + 0.5 * (place // per_column % 2)
        y = _FIRST + _STEP * (place % per_column)
        return np.array([[round(x * header.Columns, 1), round(y * header.Rows, 1)]])


def finding_group(run: Run, finding: Finding, volume: Volume, stack: Stack) -> Group:
    """TID 1501 of one evaluated class, present or absent: its probability stands on the image it was seen on.

    The number is there twice, under a name that says all to a person and under the standard's; viewers show the first.
    """
    name = codes.probability_of(finding.type, finding.label, calibrated=finding.calibrated)
    point = stack.next(run.header(finding.source), finding.source)
    value = percent(finding.probability, digits(finding))
    image = _image(sr.SourceImageForMeasurement, run, finding.source)
    parameters = _parameters(run, finding.threshold)
    if finding.sensitivity is not None:
        chosen = f"{percent(finding.sensitivity):g} % on validation patients"
        parameters.append(f"threshold chosen for a sensitivity of {chosen}")
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(run, finding.label, volume),
        finding_category=coded(codes.CLINICAL_FINDING),
        finding_type=coded(finding.type),
        finding_sites=[sr.FindingSite(coded(finding.site))] if finding.site else None,
        algorithm_id=_algorithm(run, parameters),
        measurements=[
            _num(name, value, codes.PERCENT, ("POINT", point), run, finding.source),
            *([_num(codes.PROBABILITY, value, codes.PERCENT, images=[image])] if finding.calibrated else []),
        ],
        qualitative_evaluations=[_presence(present=finding.present)],
        source_images=[_image(sr.SourceImageForMeasurementGroup, run, finding.source)],
    )


def declined_group(run: Run, declined: Declined, stack: Stack) -> Group:
    """TID 1501 of an image that was not analyzed: it says so where viewers show numbers, on the image itself."""
    point = stack.next(run.header(declined.source), declined.source)
    name, value = codes.IMAGES_DECLINED, 1.0
    if declined.score is not None:
        name, value = codes.UNLIKENESS, min(declined.score, _MOST_UNLIKE)
    label = f"Not analyzed: {declined.source.sop_instance_uid[-20:]}"
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=run.tracking_uid_of(declined.source), identifier=label),
        finding_type=coded(codes.NOT_ATTEMPTED),
        algorithm_id=_algorithm(run, run.reading.algorithm.parameters),
        measurements=[_num(name, round(value, 2), codes.NO_UNITS, ("POINT", point), run, declined.source)],
        source_images=[_image(sr.SourceImageForMeasurementGroup, run, declined.source)],
    )


def _parameters(run: Run, threshold: float) -> list[str]:
    """The algorithm's parameters with the one threshold that was used here."""
    others = [p for p in run.reading.algorithm.parameters if not p.startswith("threshold=")]
    return [*others, f"threshold={threshold:.4g}"]


def segment_groups(
    run: Run, segmentation: Segmentation, volume: Volume, document: Dataset | None, stack: Stack
) -> Iterator[Group]:
    """Yield, per segment, what a person sees (TID 1501) and, where there is a SEG, what a computer reads.

    Both carry the same Tracking UID: viewers merge them. The second is TID 1411 on a volume and TID 1410 on a film.
    """
    numbers = {segment.value: number for number, segment in enumerate(described(segmentation), 1)}
    for segment in segmentation.segments:
        number = numbers.get(segment.value)
        yield _seen_group(run, segmentation, segment, volume, stack, alone=document is None or number is None)
        if document is not None and number is not None:
            make = _planar_group if volume.is_projection else _volumetric_group
            yield make(run, segmentation, segment, volume, document, number)


def percent(probability: float, digits: int = 3) -> float:
    """Return a probability of 0..1 in percent, with so many significant digits."""
    return float(f"{100 * probability:.{digits}g}")


def digits(finding: Finding) -> int:
    """Return with how many digits probability and threshold are told, so that both say what the presence says."""
    for found in range(3, 6):
        if (percent(finding.probability, found) >= percent(finding.threshold, found)) == finding.present:
            return found
    return 6


def coded(code: Code) -> PydicomCode:
    """Return `code` as pydicom and highdicom take it."""
    return PydicomCode(code.value, code.scheme, code.meaning)


def key_slice(segmentation: Segmentation, segment: Segment | None = None) -> int:
    """Return the slice on which `segment`, or all of them, is largest; the middle one when there is nothing."""
    area = segmentation.areas(segment) if segment else [int(np.count_nonzero(labels)) for labels in segmentation.labels]
    return int(np.argmax(area)) if any(area) else len(segmentation.labels) // 2


def _seen_group(
    run: Run, segmentation: Segmentation, segment: Segment, volume: Volume, stack: Stack, *, alone: bool
) -> Group:
    k = key_slice(segmentation, segment)
    source = segmentation.sources[k]
    mask = segmentation.mask_on(segment, k)
    if segment.is_empty or volume.is_projection or volume.spacing_mm is None:
        measurements = list(_labels(run, segment, segmentation, volume, source, stack))
    else:
        measurements = list(_calipers(run, outline.axes(mask, *volume.spacing_mm[1:]), source))
        measurements += [_num(_named(m, segment), m.value, m.unit) for m in segment.measurements]
    if alone and not segment.is_empty:
        measurements += _standard(run, segment, source if volume.is_projection else None)
    return sr.MeasurementsAndQualitativeEvaluations(
        **_common(run, segment, volume),
        measurements=measurements,
        qualitative_evaluations=[_presence(present=not segment.is_empty)],
        source_images=[_image(sr.SourceImageForMeasurementGroup, run, source)],
    )


def _volumetric_group(
    run: Run, segmentation: Segmentation, segment: Segment, volume: Volume, document: Dataset, number: int
) -> Group:
    """TID 1411: the measurements and the segment they are of."""
    reference = sr.ReferencedSegment(
        sop_class_uid=document.SOPClassUID,
        sop_instance_uid=document.SOPInstanceUID,
        segment_number=number,
        source_series=sr.SourceSeriesForSegmentation(run.series_instance_uid),
    )
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        **_common(run, segment, volume),
        referenced_segment=reference,
        measurements=_standard(run, segment, None),
    )


def _planar_group(
    run: Run, segmentation: Segmentation, segment: Segment, volume: Volume, document: Dataset, number: int
) -> Group:
    """TID 1410: the same for one film."""
    reference = sr.ReferencedSegmentationFrame(
        sop_class_uid=document.SOPClassUID,
        sop_instance_uid=document.SOPInstanceUID,
        frame_number=number,
        segment_number=number,
        source_image=_image(sr.SourceImageForSegmentation, run, segmentation.sources[0]),
    )
    for item in reference[0].ReferencedSOPSequence:
        del item.ReferencedFrameNumber  # not beside a segment number (PS3.3 Table 10-3)
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        **_common(run, segment, volume),
        referenced_segment=reference,
        measurements=_standard(run, segment, segmentation.sources[0]),
    )


def _common(run: Run, segment: Segment, volume: Volume) -> dict[str, Any]:
    return {
        "tracking_identifier": _tracking(run, segment.label, volume),
        "finding_category": coded(segment.category),
        "finding_type": coded(segment.type),
        "finding_sites": _sites(segment),
        "algorithm_id": _algorithm(run, run.reading.algorithm.parameters),
    }


def _sites(segment: Segment) -> list[sr.FindingSite] | None:
    """An anatomical structure is its own site; its modifier is a laterality or another topographical one."""
    if segment.category.value not in codes.STRUCTURES:
        return None
    modifier = segment.type_modifier
    if modifier is None:
        return [sr.FindingSite(coded(segment.type))]
    if modifier.value in {codes.LEFT.value, codes.RIGHT.value, codes.BILATERAL.value}:
        return [sr.FindingSite(coded(segment.type), laterality=coded(modifier))]
    return [sr.FindingSite(coded(segment.type), topographical_modifier=coded(modifier))]


def _labels(
    run: Run, segment: Segment, segmentation: Segmentation, volume: Volume, source: Source, stack: Stack
) -> Iterator[sr.Measurement]:
    """The measurements as named numbers at a point; an absent segment says 0 of the quantity it would have."""
    header = run.header(source)
    for measurement in segment.measurements or (_size(segment, segmentation, volume),):
        name = _named(measurement, segment)
        value = 0.0 if segment.is_empty else measurement.value
        yield _num(name, value, measurement.unit, ("POINT", stack.next(header, source)), run, source)


def _size(segment: Segment, segmentation: Segmentation, volume: Volume) -> Measurement:
    """What a segment without measurements shows: its pixels, or on a calibrated volume that there are none."""
    if not volume.is_projection and segment.is_empty:
        return Measurement(codes.VOLUME, 0.0, codes.MILLILITER)
    return Measurement(codes.AREA, float(sum(segmentation.areas(segment))), codes.PIXELS)


def _standard(run: Run, segment: Segment, film: Source | None) -> list[sr.Measurement]:
    """The measurements under the standard's names, for computers; those of a film name it (TID 320)."""
    images = [_image(sr.SourceImageForMeasurement, run, film)] if film else None
    return [_num(m.name, m.value, m.unit, method=m.method, images=images) for m in segment.measurements]


def _named(measurement: Measurement, segment: Segment) -> Code:
    return codes.measured_on(measurement.name, segment.type, segment.label, found=not segment.is_empty)


def _calipers(run: Run, axes: outline.Axes, source: Source) -> Iterator[sr.Measurement]:
    yield _num(codes.LONG_AXIS, round(axes.long_mm, 1), codes.MILLIMETER, ("POLYLINE", axes.long), run, source)
    yield _num(codes.SHORT_AXIS, round(axes.short_mm, 1), codes.MILLIMETER, ("POLYLINE", axes.short), run, source)


def _num(
    name: Code,
    value: float,
    unit: Code,
    drawn: tuple[str, NDArray[np.float64]] | None = None,
    run: Run | None = None,
    source: Source | None = None,
    method: Code | None = None,
    images: list[sr.SourceImageForMeasurement] | None = None,
) -> sr.Measurement:
    """TID 300: one number; `drawn` are the coordinates it was taken from, on the image `source`."""
    coordinates = None
    if drawn and run and source:
        image = _image(sr.SourceImageForRegion, run, source)
        coordinates = [sr.CoordinatesForMeasurement(drawn[0], drawn[1].round(2), image)]
    return sr.Measurement(
        name=coded(name),
        value=float(f"{value:.6g}"),
        unit=coded(unit),
        method=coded(method) if method else None,
        referenced_images=images,
        referenced_coordinates=coordinates,
    )


def _image(kind: type[_Image], run: Run, source: Source) -> _Image:
    """An IMAGE content item of the given kind; the frame is named only where the image has several."""
    header = run.header(source)
    frames: Sequence[int] | None = [source.frame_number] if source.frame_number is not None else None
    return kind(header.SOPClassUID, header.SOPInstanceUID, frames)


def _tracking(run: Run, label: str, volume: Volume) -> sr.TrackingIdentifier:
    return sr.TrackingIdentifier(uid=run.tracking_uid(label, volume), identifier=label)


def _presence(*, present: bool) -> sr.QualitativeEvaluation:
    return sr.QualitativeEvaluation(coded(codes.PRESENCE), coded(codes.PRESENT if present else codes.ABSENT))


def _algorithm(run: Run, parameters: Sequence[str]) -> sr.AlgorithmIdentification:
    """TID 4019, the same values as the Contributing Equipment Sequence."""
    algorithm = run.reading.algorithm
    weights = f"weights_sha256={algorithm.weights_sha256}"
    return sr.AlgorithmIdentification(
        name=algorithm.name,
        version=algorithm.version,
        parameters=list(dict.fromkeys([*parameters, weights])),
        family=coded(codes.ARTIFICIAL_INTELLIGENCE),
        manufacturer=algorithm.manufacturer,
    )
