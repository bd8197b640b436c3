"""Labels come back onto the source grid, slice for slice, and become a Segmentation (PS3.3 §C.8.20).

They are a label map, or a channel for each segment; such segments may overlap.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.bundles import Bundle, SegmentEntry
from node.errors import Permanent
from node.findings import Segment, Segmentation, Volume
from workers.predict.measure import measure

_FEW = 16
"""Labels up to which it is quicker to look for each than to note every voxel's."""


def segmentation(pred: NDArray[Any], volume: Volume, bundle: Bundle) -> Segmentation:
    """Return the Segmentation of one volume.

    `pred`: (1, column, row[, slice]), integer-valued; where dicom.toml tells segments by channel, (channels, column,
    row[, slice]) in 0..1. Raises `Permanent` when its grid is not the volume's, when it holds a value that dicom.toml
    does not explain, or lacks a channel that it names.
    """
    if bundle.dicom.overlaps:
        return _by_channel(pred, volume, bundle)
    labels = _on_source_grid(pred, volume, bundle)
    segments = tuple(_segment(entry, labels == entry.number, volume) for entry in bundle.dicom.segment)
    return Segmentation(labels, volume.sources, segments)


def _on_source_grid(pred: NDArray[Any], volume: Volume, bundle: Bundle) -> NDArray[np.uint8]:
    """(1, column, row[, slice]) → (slice, row, column) uint8."""
    _require_grid(pred, 1, volume, bundle)
    found = set(_values(pred))
    unknown = found - {0, *(entry.number for entry in bundle.dicom.segment)}
    if between := [value for value in unknown if value % 1]:
        raise Permanent(
            f"{bundle.title} answered with {between[0]:g} where labels are whole numbers. Nothing was reported. Its "
            "postprocessing must have argmax, and an Invertd that comes after argmax nearest_interp = true."
        )
    if unknown:
        raise Permanent(f"{bundle.title} answered with labels {sorted(unknown)[:5]} that dicom.toml does not explain.")
    return np.ascontiguousarray(_turned(pred, volume)[0], dtype=np.uint8)


def _by_channel(pred: NDArray[Any], volume: Volume, bundle: Bundle) -> Segmentation:
    """A voxel belongs to every segment whose channel reaches its threshold there."""
    entries = bundle.dicom.segment
    _require_grid(pred, len(pred), volume, bundle)
    last = max(entry.channel or 0 for entry in entries)
    if last >= len(pred):
        raise Permanent(f"{bundle.title} answered with {len(pred)} channels; dicom.toml names channel {last}.")
    values = _turned(pred, volume)
    if not (float(values.min()) >= 0 and float(values.max()) <= 1):  # nor where one is not a number
        raise Permanent(
            f"{bundle.title} answered with channels of {values.min():g} to {values.max():g}; segments by channel need "
            "0..1. Nothing was reported. Its postprocessing must have Activationsd with sigmoid or softmax."
        )
    masks = np.stack([values[entry.channel or 0] >= (entry.threshold or 0) for entry in entries])
    labels = np.zeros(volume.pixels.shape, np.uint8)
    for entry, mask in zip(entries, masks, strict=True):
        labels[mask] = entry.number
    segments = tuple(_segment(entry, mask, volume) for entry, mask in zip(entries, masks, strict=True))
    shared = bool((masks.sum(axis=0, dtype=np.uint8) > 1).any())
    return Segmentation(labels, volume.sources, segments, masks if shared else None)


def _require_grid(pred: NDArray[Any], channels: int, volume: Volume, bundle: Bundle) -> None:
    slices, rows, columns = volume.pixels.shape
    expected = (channels, columns, rows, slices) if slices > 1 else (channels, columns, rows)
    if pred.shape != expected:
        what = "a channel for each segment" if bundle.dicom.overlaps else "a label map"
        raise Permanent(
            f"{bundle.title} answered on a grid of {pred.shape}; the source grid is {expected}. Nothing was reported. "
            f"Its postprocessing must end with Invertd and {what}."
        )


def _turned(pred: NDArray[Any], volume: Volume) -> NDArray[Any]:
    """(channel, column, row[, slice]) → (channel, slice, row, column)."""
    slices, rows, columns = volume.pixels.shape
    return pred.reshape(len(pred), columns, rows, slices).transpose(0, 3, 2, 1)


def _values(pred: NDArray[Any]) -> list[Any]:
    """Return the values that occur; of bytes without sorting them."""
    if pred.dtype != np.uint8:
        return list(np.unique(pred).tolist())
    parts = pred.reshape(pred.shape[1:]).transpose()  # as labels lie in memory: slice by slice
    most = int(parts.max())
    if most <= _FEW:  # each is soon found, and a pass for one that is absent is quick
        return [value for value in range(most + 1) if any(bool((part == value).any()) for part in parts)]
    occurs = np.zeros(256, np.bool_)
    for part in parts:
        occurs[part] = True
    return list(np.flatnonzero(occurs).tolist())


def _segment(entry: SegmentEntry, mask: NDArray[np.bool_], volume: Volume) -> Segment:
    is_empty = not mask.any()
    return Segment(
        value=entry.number,
        label=entry.label,
        category=entry.category.to_code(),
        type=entry.type.to_code(),
        type_modifier=entry.type_modifier.to_code() if entry.type_modifier else None,
        color=entry.color,
        measurements=() if is_empty else measure(entry.measurements, mask, volume),
        is_empty=is_empty,
    )
