"""Readings with known answers: what a bundle would say about an image, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from node import codes, uids
from node.codes import Code
from node.findings import (
    Algorithm,
    Box,
    Declined,
    Detection,
    Finding,
    Measurement,
    ParametricMap,
    Reading,
    Saliency,
    Segment,
    Segmentation,
    Source,
    Volume,
)
from workers.report.context import Context

STARTED = datetime(2026, 3, 4, 5, 6, 7, 890, tzinfo=UTC)
HIPPOCAMPUS = Code("5366008", "SCT", "Hippocampus")
LUNG = Code("39607008", "SCT", "Lung")
ANTERIOR, POSTERIOR = Code("255549009", "SCT", "Anterior"), Code("255551008", "SCT", "Posterior")
ABNORMAL = Code("ABNCXR", codes.PRIVATE_SCHEME, "Abnormal chest radiograph")
EFFUSION = Code("60046008", "SCT", "Pleural effusion")


def algorithm(name: str = "lung_fields", label: str = "Lung fields", version: str = "1.0.0") -> Algorithm:
    """An algorithm with every text filled in."""
    device = uids.derive_uid("device", name, version)
    return Algorithm(name, version, label, "wetread", device, "ab" * 32, ("threshold=0.50",))


def context(paths: Sequence[Path], **more: object) -> Context:
    """A context whose manifest is the file names."""
    return replace(Context(sources=tuple(paths), key="manifest"), **more)  # type: ignore[arg-type]


def written(slices: Sequence[Dataset], folder: Path) -> list[Path]:
    """Write data sets as Part 10 files and return their paths, in the same order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.dcm" for number in range(len(slices))]
    for ds, path in zip(slices, paths, strict=True):
        ds.save_as(path, enforce_file_format=True)
    return paths


def volume_of(slices: Sequence[Dataset], spacing_mm: tuple[float, float, float] | None) -> Volume:
    """The volume of single-frame slices that are already in order; voxels as large as the spacing says."""
    pixels = np.stack([ds.pixel_array for ds in slices]).astype(np.float32)
    sources = tuple(Source(str(ds.SOPInstanceUID)) for ds in slices)
    affine = np.diag([*(spacing_mm or (1.0, 1.0, 1.0))[::-1], 1.0])
    return Volume(pixels, affine, sources, spacing_mm, str(slices[0].Modality), is_projection=False)


def film_of(ds: Dataset, spacing_mm: tuple[float, float, float] | None = None) -> Volume:
    """One film as a volume of one slice."""
    pixels = np.asarray(ds.pixel_array, np.float32)[np.newaxis]
    return Volume(
        pixels, np.eye(4), (Source(str(ds.SOPInstanceUID)),), spacing_mm, str(ds.Modality), is_projection=True
    )


def finding(volume: Volume, label: str = "Abnormal chest radiograph", probability: float = 0.873) -> Finding:
    """A calibrated finding on the first image of `volume`."""
    kind = ABNORMAL if label == ABNORMAL.meaning else EFFUSION
    return Finding(label, kind, LUNG, probability, 0.5, calibrated=True, source=volume.sources[0])


def overlapping(volume: Volume, mask: NDArray[np.uint8]) -> Reading:
    """A reading of two segments: the whole mask, and the part of it in the lower half of the slices."""
    reading = volume_reading(volume, mask)
    [found] = reading.segmentations
    whole, part = mask > 0, mask > 0
    part[len(mask) // 2 :] = False
    both = replace(found, segments=found.segments[:2], masks=np.stack([whole, part]))
    labels = np.where(part, both.segments[1].value, np.where(whole, both.segments[0].value, 0)).astype(np.uint8)
    return replace(reading, segmentations=(replace(both, labels=labels),))


def detected(volume: Volume) -> Reading:
    """A reading of a detector: two boxes of one class, and none of another."""
    middle, last = volume.sources[len(volume.sources) // 2], volume.sources[-1]
    boxes = (
        Box(middle, 0.9, 3.5, 4.5, 20.5, 16.5, volume.sources[0], last),
        Box(last, 0.6, 10.0, 12.0, 14.25, 30.0, middle, last),
    )
    nodule, mass = Code("427359005", "SCT", "Solitary nodule of lung"), Code("4147007", "SCT", "Mass")
    found = Detection("Lung nodule", nodule, LUNG, 0.5, calibrated=False, color="#e6604d", source=middle, boxes=boxes)
    none = Detection("Mass", mass, LUNG, 0.5, calibrated=True, color="#4d9de6", source=middle, boxes=())
    return Reading(algorithm("nodules", "Nodules"), STARTED, detections=(found, none))


def not_analyzed(volume: Volume) -> Reading:
    """A reading that says only that, and why, its images were declined."""
    reason = "it is unlike the images that the model was trained on, most of all in its layout"
    remark = f"Not analyzed by lung_fields 1.0.0, because {reason} (unlikeness 3.21, limit 1)"
    declined = (Declined(volume.sources[0], reason, 3.21),)
    return Reading(algorithm(), STARTED, remarks=(remark,), declined=declined)


def mapped(reading: Reading, volume: Volume) -> Reading:
    """The same reading with a map: it rises along every axis, and says nothing in the first two slices."""
    k, j, i = (np.linspace(0, 1, size, dtype=np.float32) for size in volume.pixels.shape)
    values = k[:, None, None] * j[:, None] * i
    values[:2] = 0
    one = ParametricMap("Hippocampus", values, volume.sources, codes.VISUAL_EXPLANATION, "score of the network")
    return replace(reading, maps=(one,))


def explained(found: Finding, volume: Volume) -> Finding:
    """The same finding with a map: strongest at two thirds of every axis, nothing in the first third."""
    axes = [np.clip(np.linspace(-1, 2, size + 2)[1:-1], 0, None) for size in volume.pixels.shape]
    slopes = [np.where(axis <= 1, axis, 2 - axis) for axis in axes]
    values = np.einsum("i,j,k->ijk", *slopes)
    return replace(found, saliency=Saliency((values / values.max()).astype(np.float32), "Grad-CAM"))


def parts(mask: NDArray[np.uint8], volume: Volume) -> Segmentation:
    """A label map of two segments, the object's first and second half along the columns, with their volumes."""
    columns = np.arange(mask.shape[2]) < mask.shape[2] * 0.42
    labels = np.where(mask > 0, np.where(columns, 1, 2), 0).astype(np.uint8)
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000 if volume.spacing_mm else 0.001
    segments = tuple(
        Segment(
            value=value,
            label=label,
            category=codes.ANATOMICAL_STRUCTURE,
            type=HIPPOCAMPUS,
            type_modifier=modifier,
            color=color,
            measurements=(
                Measurement(
                    codes.VOLUME, float((labels == value).sum()) * voxel_ml, codes.MILLILITER, codes.SUM_OF_VOXELS
                ),
            ),
            is_empty=not (labels == value).any(),
        )
        for value, label, modifier, color in (
            (1, "Anterior hippocampus", ANTERIOR, "#e6604d"),
            (2, "Posterior hippocampus", POSTERIOR, "#4da6e6"),
        )
    )
    return Segmentation(labels, volume.sources, segments)


def lung_fields(volume: Volume) -> Segmentation:
    """Two ellipses as one segment, its area in pixels, or square centimeters where the film is calibrated."""
    rows, columns = volume.pixels.shape[1:]
    y, x = np.mgrid[:rows, :columns] / np.array([rows, columns])[:, None, None]
    right = ((x - 0.30) / 0.16) ** 2 + ((y - 0.45) / 0.32) ** 2 < 1
    left = ((x - 0.70) / 0.15) ** 2 + ((y - 0.42) / 0.28) ** 2 < 1
    labels = (right | left).astype(np.uint8)[np.newaxis]
    count = float(labels.sum())
    area = Measurement(codes.AREA, count, codes.PIXELS)
    if volume.spacing_mm:
        square_cm = count * volume.spacing_mm[1] * volume.spacing_mm[2] / 100
        area = Measurement(codes.AREA, square_cm, codes.SQUARE_CENTIMETER)
    segment = Segment(1, "Lung fields", codes.ANATOMICAL_STRUCTURE, LUNG, codes.BILATERAL, "#4aa3ff", (area,))
    return Segmentation(labels, volume.sources, (segment,))


def absent(segmentation: Segmentation) -> Segmentation:
    """The same segmentation with nothing in it."""
    empty = tuple(
        replace(s, is_empty=True, measurements=tuple(replace(m, value=0.0) for m in s.measurements))
        for s in segmentation.segments
    )
    return Segmentation(np.zeros_like(segmentation.labels), segmentation.sources, empty)


def film_reading(volume: Volume) -> Reading:
    """A present and an absent finding, and the lung fields."""
    findings = (finding(volume), finding(volume, "Pleural effusion", 0.042))
    return Reading(algorithm(), STARTED, findings, (lung_fields(volume),))


def volume_reading(volume: Volume, mask: NDArray[np.uint8]) -> Reading:
    """Two segments of a volume."""
    return Reading(algorithm("hippocampus", "Hippocampus"), STARTED, (), (parts(mask, volume),))
