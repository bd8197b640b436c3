"""Measurement groups of a detector: one that says how many were found (TID 1501), and one per box (TID 1410)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from highdicom import sr
from numpy.typing import NDArray

from node import codes
from node.findings import Box, Detection, Volume
from workers.report.groups import (
    Group,
    Stack,
    _algorithm,
    _image,
    _num,
    _parameters,
    _presence,
    _tracking,
    coded,
    percent,
)
from workers.report.run import Run


def detection_groups(run: Run, detection: Detection, volume: Volume, stack: Stack) -> Iterator[Group]:
    """Yield how many of one thing were found, none included (TID 1501), and each of them as a region (TID 1410)."""
    source, label = detection.source, detection.label
    drawn = ("POINT", stack.next(run.header(source), source))
    number = _num(codes.number_of(detection.type, label), len(detection.boxes), codes.NO_UNITS, drawn, run, source)
    common: dict[str, Any] = {
        "finding_category": coded(codes.CLINICAL_FINDING),
        "finding_type": coded(detection.type),
        "finding_sites": [sr.FindingSite(coded(detection.site))] if detection.site else None,
        "algorithm_id": _algorithm(run, _parameters(run, detection.threshold)),
    }
    yield sr.MeasurementsAndQualitativeEvaluations(
        **common,
        tracking_identifier=_tracking(run, label, volume),
        measurements=[number],
        qualitative_evaluations=[_presence(present=bool(detection.boxes))],
        source_images=[_image(sr.SourceImageForMeasurementGroup, run, source)],
    )
    for place, box in enumerate(detection.boxes, 1):
        yield sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            **common,
            tracking_identifier=sr.TrackingIdentifier(uid=run.box_uid(label, box), identifier=f"{label} {place}"),
            referenced_region=_region(run, box),
            measurements=list(_scores(run, detection, box)),
            qualitative_evaluations=[_presence(present=True)],
        )


def corners(box: Box) -> NDArray[np.float64]:
    """Return the closed outline of a box: (5, 2) points (column, row) as SCOORD has them."""
    x, y = [box.left, box.right, box.right, box.left, box.left], [box.top, box.top, box.bottom, box.bottom, box.top]
    return np.column_stack([x, y]).round(2)


def _region(run: Run, box: Box) -> sr.ImageRegion:
    return sr.ImageRegion("POLYLINE", corners(box), _image(sr.SourceImageForRegion, run, box.source))


def _scores(run: Run, detection: Detection, box: Box) -> Iterator[sr.Measurement]:
    """The score under a name that says all to a person and, where it is a probability, under the standard's."""
    images = [_image(sr.SourceImageForMeasurement, run, box.source)]
    names = [codes.probability_of(detection.type, detection.label, calibrated=detection.calibrated)]
    for name in names + [codes.PROBABILITY] * detection.calibrated:
        yield _num(name, percent(box.score), codes.PERCENT, images=images)
