"""How well one predicted label map fits the true one: Dice, 95 % Hausdorff distance and size, per segment."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from numpy.typing import NDArray

from node.bundles import Bundle
from node.findings import Volume

Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8] | NDArray[np.bool_]
"""A label map (slice, row, column), or a mask for each segment (segment, slice, row, column)."""


@dataclass(frozen=True)
class Overlap:
    """One segment of one image.

    `dice` is NaN where the segment is neither there nor predicted; `hausdorff95` (mm, or pixels of an uncalibrated
    film) where either is absent. `true_size` and `predicted_size` are mL, cm² or pixels.
    """

    dice: float
    hausdorff95: float
    true_size: float
    predicted_size: float

    @property
    def size_error_percent(self) -> float:
        """|predicted - true| / true in percent; NaN where the segment is not there."""
        return abs(self.predicted_size - self.true_size) / self.true_size * 100 if self.true_size else math.nan


def overlaps(predicted: Labels, truth: Labels, volume: Volume, bundle: Bundle) -> tuple[Overlap, ...]:
    """Compare label maps on the grid of `volume`, or masks that may overlap; one `Overlap` per segment of `bundle`."""
    segments = [(place, entry.number) for place, entry in enumerate(bundle.dicom.segment)]
    return tuple(_overlap(_mask(predicted, *one), _mask(truth, *one), volume) for one in segments)


def _mask(labels: Labels, place: int, value: int) -> Mask:
    return np.asarray(labels[place] > 0 if labels.ndim == 4 else labels == value)


def flat(labels: Labels) -> NDArray[np.uint8]:
    """Return masks that overlap as one label map for a picture, in which the later segment hides the earlier."""
    if labels.ndim == 3:
        return labels.astype(np.uint8)
    numbers = np.arange(1, len(labels) + 1, dtype=np.uint8)[:, None, None, None]
    return np.asarray((labels * numbers).max(axis=0), np.uint8)


def _overlap(predicted: Mask, truth: Mask, volume: Volume) -> Overlap:
    unit = _unit_size(volume)
    sizes = float(truth.sum()) * unit, float(predicted.sum()) * unit
    if not truth.any() and not predicted.any():
        return Overlap(math.nan, math.nan, *sizes)
    if not truth.any() or not predicted.any():
        return Overlap(0.0, math.nan, *sizes)
    a, b = (_tensor(mask) for mask in _cropped(predicted, truth))
    spacing = [*(volume.spacing_mm or (1.0, 1.0, 1.0))][-(a.ndim - 2) :]
    distance = compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=spacing)
    return Overlap(float(compute_dice(a, b, include_background=True)), float(distance), *sizes)


def _unit_size(volume: Volume) -> float:
    """One voxel in mL, one pixel in cm², or 1 where millimeters are not calibrated."""
    if volume.spacing_mm is None:
        return 1.0
    if len(volume.pixels) > 1:
        return abs(float(np.linalg.det(volume.affine_mm[:3, :3]))) / 1000
    return volume.spacing_mm[1] * volume.spacing_mm[2] / 100


def size_unit(volume: Volume) -> str:
    """Return the unit of the sizes of `volume`'s segments."""
    return "px" if volume.spacing_mm is None else "mL" if len(volume.pixels) > 1 else "cm²"


def _cropped(a: Mask, b: Mask) -> tuple[Mask, Mask]:
    """Cut both to the box around either with a margin of one, so that distances cost no more than they must."""
    where = np.argwhere(a | b)
    low, high = np.maximum(where.min(axis=0) - 1, 0), where.max(axis=0) + 2
    box = tuple(slice(i, j) for i, j in zip(low, high, strict=True))
    return a[box], b[box]


def _tensor(mask: Mask) -> torch.Tensor:
    """(slice, row, column) → (1, 1, [slice,] row, column)."""
    array = mask[0] if len(mask) == 1 else mask
    return torch.from_numpy(np.ascontiguousarray(array))[None, None].float()
