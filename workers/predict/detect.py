"""Boxes of a detector come back onto the images that were read: a rectangle on the one in which their middle lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.bundles import Bundle
from node.dicomconfig import BoxEntry, DetectionEntry
from node.errors import Permanent
from node.findings import Box, Detection, Volume
from workers.predict import loaded

Points = NDArray[np.float64]
Off = tuple[int, ...]
"""How many boxes of each `[[detection]]` have no extent on the images: in a padded border, or as `[boxes]` is wrong."""


@dataclass(frozen=True)
class Found:
    """What a detector says about one image, as the bundle's postprocessing leaves it.

    `boxes`: (n, 2 × axes) in the space and mode of `[boxes]`; `labels` and `scores`: (n,). `affine_ras_mm` maps
    indices of the network's input to the patient, or to the pixel grid of a film.
    """

    boxes: Points
    labels: NDArray[np.int64]
    scores: Points
    affine_ras_mm: NDArray[np.float64]


def found(said: Any, entry: BoxEntry, affine_ras_mm: Any, title: str) -> Found:
    """Read `said`, what the postprocessing left; raises `Permanent` naming `title` where it is no list of boxes."""
    if missing := [key for key in (entry.boxes, entry.labels, entry.scores) if key not in said]:
        there = ", ".join(str(key) for key in said)[:100]
        raise Permanent(
            f"{title} answered without {', '.join(missing)} (it has {there}). Nothing was reported. [boxes] of "
            "dicom.toml names the keys of boxes, labels and scores."
        )
    boxes, labels, scores = (_array(said[key]) for key in (entry.boxes, entry.labels, entry.scores))
    labels, scores = labels.ravel(), scores.ravel()
    boxes = boxes if boxes.size else boxes.reshape(0, 2 * entry.axes)
    if boxes.ndim != 2 or boxes.shape[1] != 2 * entry.axes or not len(boxes) == len(labels) == len(scores):
        raise Permanent(
            f"{title} answered with boxes of shape {boxes.shape}, {len(labels)} labels and {len(scores)} scores; "
            f'mode "{entry.mode}" needs {2 * entry.axes} numbers, a label and a score per box. Nothing was reported.'
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise Permanent(f"{title} answered with values that are not finite numbers; nothing was reported.")
    if scores.min(initial=0.0) < 0 or scores.max(initial=1.0) > 1:
        raise Permanent(f"{title} answered with scores that are not in 0..1; nothing was reported.")
    return Found(boxes, labels.astype(np.int64), scores, np.asarray(affine_ras_mm, np.float64))


def detections(said: Found, volume: Volume, bundle: Bundle) -> tuple[tuple[Detection, ...], Off]:
    """Return one Detection for each `[[detection]]` of `bundle`, with all its boxes, best first; and what is off.

    Raises `Permanent` for a label that no `[[detection]]` has.
    """
    assert bundle.dicom.boxes is not None  # noqa: S101 - a detection has it
    entries = bundle.dicom.detection
    if unknown := sorted(set(said.labels.tolist()) - {entry.value for entry in entries}):
        raise Permanent(f"{bundle.title} answered with labels {unknown[:5]} that dicom.toml does not explain.")
    low, high = _on_source(said, bundle.dicom.boxes, volume)
    made, off = [], []
    for entry in entries:
        wanted = np.flatnonzero((said.labels == entry.value) & (said.scores >= entry.threshold))
        ordered = sorted(wanted.tolist(), key=lambda k: -float(said.scores[k]))
        boxes = [box for k in ordered if (box := _box(low[k], high[k], float(said.scores[k]), volume))]
        made.append(_detection(entry, tuple(boxes), volume))
        off.append(len(ordered) - len(boxes))
    return tuple(made), tuple(off)


def joined(each: Sequence[tuple[tuple[Detection, ...], Off]]) -> tuple[tuple[Detection, ...], Off]:
    """Put the detections of the slices of one volume together, best box first."""
    together = []
    for k, middle in enumerate(each[len(each) // 2][0]):
        boxes = sorted((box for said, _ in each for box in said[k].boxes), key=lambda box: -box.score)
        together.append(_with(middle, tuple(boxes)))
    return tuple(together), tuple(map(sum, zip(*(off for _, off in each), strict=True)))


def told(found: tuple[Detection, ...], off: Off, bundle: Bundle) -> tuple[tuple[Detection, ...], tuple[str, ...]]:
    """Return `found` with as many boxes as are told of each, and remarks on those that are not."""
    kept, remarks = [], []
    for entry, detection, missed in zip(bundle.dicom.detection, found, off, strict=True):
        kept.append(_with(detection, detection.boxes[: entry.most]))
        if (number := len(detection.boxes)) > entry.most:
            remarks.append(f"{number} of {entry.label} were found; the {entry.most} with the best scores are told.")
        if missed:
            noun = "box" if missed == 1 else "boxes"
            remarks.append(f"{missed} {noun} of {entry.label} not told: without an extent, or off the images.")
    return tuple(kept), tuple(remarks)


def _array(value: Any) -> Points:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, np.float64)


def _detection(entry: DetectionEntry, boxes: tuple[Box, ...], volume: Volume) -> Detection:
    return Detection(
        label=entry.label,
        type=entry.type.to_code(),
        site=entry.site.to_code() if entry.site else None,
        threshold=entry.threshold,
        calibrated=entry.calibrated,
        color=entry.color,
        source=boxes[0].source if boxes else volume.sources[len(volume.sources) // 2],
        boxes=boxes,
    )


def _with(detection: Detection, boxes: tuple[Box, ...]) -> Detection:
    return replace(detection, boxes=boxes, source=boxes[0].source if boxes else detection.source)


def _corners(boxes: Points, mode: str) -> tuple[Points, Points]:
    """Return the low and the high corners, (n, axes), of boxes in one of MONAI's modes."""
    axes = boxes.shape[1] // 2
    if mode in ("xxyy", "xxyyzz"):
        return boxes[:, 0::2], boxes[:, 1::2]
    first, second = boxes[:, :axes], boxes[:, axes:]
    if mode in ("xywh", "xyzwhd"):
        return first, first + second
    if mode in ("ccwh", "cccwhd"):
        return first - second / 2, first + second / 2
    return first, second


def _on_source(said: Found, entry: BoxEntry, volume: Volume) -> tuple[Points, Points]:
    """Return the corners as (column, row, slice) indices of `volume`, (n, 3); the middle of the first voxel is 0."""
    low, high = _corners(said.boxes, entry.mode)
    if entry.axes == 2:
        low, high = (np.column_stack([corner, np.zeros(len(corner))]) for corner in (low, high))
    to_ras = {"image": said.affine_ras_mm, "ras": np.eye(4), "lps": np.diag([-1.0, -1.0, 1.0, 1.0])}[entry.space]
    to_index = np.linalg.inv(loaded.affine_ras_mm(volume)) @ to_ras
    picks = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    corners = np.where(picks[np.newaxis] == 0, low[:, np.newaxis], high[:, np.newaxis])
    turned = corners @ to_index[:3, :3].T + to_index[:3, 3]
    return turned.min(axis=1), turned.max(axis=1)


def _box(low: Points, high: Points, score: float, volume: Volume) -> Box | None:
    """Return the rectangle of one box in SCOORD coordinates (0 is the outer edge), None where it is off the images."""
    slices, rows, columns = volume.pixels.shape
    (left, top), (right, bottom) = (np.clip(corner[:2] + 0.5, 0, [columns, rows]) for corner in (low, high))
    if right <= left or bottom <= top or high[2] < -0.5 or low[2] > slices - 0.5:
        return None
    first, middle, last = (int(np.clip(round(z), 0, slices - 1)) for z in (low[2], (low[2] + high[2]) / 2, high[2]))
    return Box(
        source=volume.sources[middle],
        score=score,
        left=float(left),
        top=float(top),
        right=float(right),
        bottom=float(bottom),
        first=volume.sources[first],
        last=volume.sources[last],
    )
