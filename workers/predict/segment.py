"""A label map comes back onto the source grid, slice for slice, and becomes a Segmentation (PS3.3 §C.8.20)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.bundles import Bundle, SegmentEntry
from node.errors import Permanent
from node.findings import Segment, Segmentation, Volume
from workers.predict.measure import measure


def segmentation(pred: NDArray[Any], volume: Volume, bundle: Bundle) -> Segmentation:
    """Return the Segmentation of one volume.

    `pred`: (1, column, row[, slice]), integer-valued. Raises `Permanent` when its grid is not the volume's, or when
    it holds a value that dicom.toml does not explain.
    """
    labels = _on_source_grid(pred, volume, bundle)
    segments = tuple(_segment(entry, labels == entry.value, volume) for entry in bundle.dicom.segment)
    return Segmentation(labels, volume.sources, segments)


def _on_source_grid(pred: NDArray[Any], volume: Volume, bundle: Bundle) -> NDArray[np.uint8]:
    """(1, column, row[, slice]) → (slice, row, column) uint8."""
    slices, rows, columns = volume.pixels.shape
    expected = (1, columns, rows, slices) if slices > 1 else (1, columns, rows)
    if pred.shape != expected:
        raise Permanent(
            f"{bundle.title} answered on a grid of {pred.shape}; the source grid is {expected}. Nothing was reported. "
            "Its postprocessing must end with Invertd and a label map."
        )
    found = set(_values(pred))
    unknown = found - {0, *(entry.value for entry in bundle.dicom.segment)}
    if unknown:
        raise Permanent(f"{bundle.title} answered with labels {sorted(unknown)[:5]} that dicom.toml does not explain.")
    return np.ascontiguousarray(pred.reshape(columns, rows, slices).transpose(2, 1, 0), dtype=np.uint8)


def _values(pred: NDArray[Any]) -> list[Any]:
    """Return the values that occur; of bytes without sorting them."""
    if pred.dtype != np.uint8:
        return list(np.unique(pred).tolist())
    occurs = np.zeros(256, np.bool_)
    for part in pred.reshape(pred.shape[1:]).transpose():  # as labels lie in memory: slice by slice
        occurs[part] = True
    return list(np.flatnonzero(occurs).tolist())


def _segment(entry: SegmentEntry, mask: NDArray[np.bool_], volume: Volume) -> Segment:
    is_empty = not mask.any()
    return Segment(
        value=entry.value,
        label=entry.label,
        category=entry.category.to_code(),
        type=entry.type.to_code(),
        type_modifier=entry.type_modifier.to_code() if entry.type_modifier else None,
        color=entry.color,
        measurements=() if is_empty else measure(entry.measurements, mask, volume),
        is_empty=is_empty,
    )
