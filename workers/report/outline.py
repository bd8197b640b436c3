"""What a person would draw on a mask: outlines, and the two axes of a caliper. numpy and skimage only.

Points are (column, row) as SCOORD has them (PS3.3 §C.18.6.1.2): 0\\0 is the outer corner of the first pixel, so
the center of pixel (row r, column c) is c + 0.5\\r + 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from skimage.measure import approximate_polygon, find_contours, label

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Axes:
    """The longest diameter and the longest one across it; lines are (2, 2) points, lengths in millimeters."""

    long: Points
    short: Points
    long_mm: float
    short_mm: float


def outlines(mask: NDArray[np.bool_], tolerance: float = 0.0) -> list[Points]:
    """Return the closed outlines of a (row, column) mask, holes included, longest first; `tolerance` in pixels."""
    padded = np.pad(mask.astype(np.float32), 1)
    found = []
    for contour in find_contours(padded, 0.5):  # type: ignore[no-untyped-call]
        kept = approximate_polygon(contour, tolerance) if tolerance else contour  # type: ignore[no-untyped-call]
        found.append(kept[:, ::-1] - 0.5)  # (row, column) centers of the padded grid → SCOORD
    return sorted(found, key=len, reverse=True)


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the connected part of `mask` with the most pixels; `mask` must not be empty."""
    parts = label(mask, connectivity=1)  # type: ignore[no-untyped-call]
    return np.asarray(parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:])))


def axes(mask: NDArray[np.bool_], row_spacing_mm: float, column_spacing_mm: float) -> Axes:
    """Measure the largest part of a (row, column) mask: its maximum diameter, and the longest chord across it.

    Both ends lie on the outline and the short chord inside it, so neither is longer than what the mask shows.
    """
    scale = np.array([column_spacing_mm, row_spacing_mm])
    outline = max(outlines(largest_component(mask)), key=_area) * scale
    first, second = _farthest(outline)
    direction = (second - first) / np.linalg.norm(second - first)
    turn = np.array([direction, [-direction[1], direction[0]]])  # rows: along and across, in mm
    x, low, high = _longest_chord(outline @ turn.T)
    across = np.array([[x, low], [x, high]]) @ turn
    along = np.array([first, second])
    return Axes(along / scale, across / scale, float(np.linalg.norm(second - first)), float(high - low))


def _area(points: Points) -> float:
    x, y = points.T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def _farthest(points: Points) -> tuple[Points, Points]:
    """Return the two points that lie farthest apart; both are on the convex hull."""
    hull = points[ConvexHull(points).vertices]
    distance = np.linalg.norm(hull[:, None] - hull[None], axis=-1)
    i, j = np.unravel_index(int(np.argmax(distance)), distance.shape)
    return hull[i], hull[j]


def _longest_chord(outline: Points) -> tuple[float, float, float]:
    """Return (x, low y, high y) of the longest vertical chord inside a closed outline (even-odd rule)."""
    start, end = outline[:-1], outline[1:]
    stops = np.unique(outline[:, 0].round(6))
    best = (float(stops[0]), 0.0, 0.0)
    for x in (stops[:-1] + stops[1:]) / 2:
        crossed = (start[:, 0] < x) != (end[:, 0] < x)
        a, b = start[crossed], end[crossed]
        y = np.sort(a[:, 1] + (x - a[:, 0]) * (b[:, 1] - a[:, 1]) / (b[:, 0] - a[:, 0]))
        for low, high in zip(y[::2], y[1::2], strict=True):
            if high - low > best[2] - best[1]:
                best = (float(x), float(low), float(high))
    return best
