"""Where slices lie: from the Image Plane of every slice to one regular stack in LPS millimeters (PS3.3 §C.7.6.2.1.1).

Order and spacing come from positions along the normal, never from Instance Number, file name, Slice Thickness or
Spacing Between Slices. A stack that is not one regular block is refused with the reason; nothing is guessed.
Never touches pixels: where two slices coincide the caller says whether they are the same picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.errors import Unsuitable

Vector = NDArray[np.float64]

COSINE_TOLERANCE = 1e-3
"""How far direction cosines may be from unit length, from a right angle and from each other."""
TILT_MM = 0.5
"""How far a slice may lie off the normal through the first one before the stack counts as tilted."""
GAP_FACTOR = 1.5
"""A step longer than this many median steps is a gap."""
GRID_TOLERANCE = 0.1
"""How far, in steps, a slice may lie from the regular grid; at most `GRID_TOLERANCE_MM`."""
GRID_TOLERANCE_MM = 0.5
COINCIDENT_MM = 0.01
"""Slices closer than this are at the same position."""


@dataclass(frozen=True)
class Plane:
    """The Image Plane of one slice as its header states it; None where the header says nothing or nonsense.

    `cosines`: Image Orientation (Patient), row direction then column direction. `spacing_mm`: (between rows,
    between columns), the order of Pixel Spacing. `name` says which slice it is, for messages.
    """

    name: str
    position_mm: tuple[float, float, float] | None
    cosines: tuple[float, float, float, float, float, float] | None
    spacing_mm: tuple[float, float] | None
    shape: tuple[int, int]
    frame_of_reference_uid: str


@dataclass(frozen=True)
class Stack:
    """One regular block of slices.

    `order[k]` is the index of the plane that is slice k; slices ascend along row direction × column direction, so
    the grid is right-handed. `affine_mm` maps (column, row, slice, 1) to LPS millimeters; `spacing_mm` is
    (between slices, between rows, between columns).
    """

    order: tuple[int, ...]
    affine_mm: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]


def stack(planes: Sequence[Plane], same_picture: Callable[[int, int], bool]) -> Stack:
    """Order `planes` into one stack; `same_picture(i, j)` is asked only for planes at the same position.

    Raises `Unsuitable` naming slices and positions: positions missing or not numbers, cosines not orthonormal,
    several orientations, sizes, spacings or frames of reference, tilt, gaps, irregular steps, different pictures at
    one position, fewer than two slices.
    """
    _require_complete(planes)
    _require_uniform(planes)
    row, column = _directions(planes[0])
    normal = np.cross(row, column)
    positions = np.array([plane.position_mm for plane in planes], dtype=np.float64)
    order = _without_duplicates(_sorted(planes, positions @ normal), planes, positions, normal, same_picture)
    if len(order) < 2:
        raise Unsuitable("it has 1 slice; a volume needs at least 2 slices at different positions")
    ordered = positions[order]
    _require_regular(ordered, normal)
    return _build(order, ordered, row, column, planes[0])


def _require_complete(planes: Sequence[Plane]) -> None:
    if not planes:
        raise Unsuitable("it has no image that can be part of a volume")
    for plane in planes:
        if plane.position_mm is None:
            raise Unsuitable(f"{plane.name} has no valid Image Position (Patient) (0020,0032)")
        if plane.cosines is None:
            raise Unsuitable(f"{plane.name} has no valid Image Orientation (Patient) (0020,0037)")
        if plane.spacing_mm is None:
            raise Unsuitable(f"{plane.name} has no valid Pixel Spacing (0028,0030)")
        _directions(plane)


def _directions(plane: Plane) -> tuple[Vector, Vector]:
    """Return unit row and column directions; refuse cosines that are not orthonormal (PS3.3 §C.7.6.2.1.1)."""
    cosines = np.array(plane.cosines, dtype=np.float64)
    row, column = cosines[:3], cosines[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > COSINE_TOLERANCE:
        raise Unsuitable(
            f"the direction cosines of {plane.name} have lengths {lengths[0]:.3f} and {lengths[1]:.3f} instead of 1"
        )
    if abs(row @ column) > COSINE_TOLERANCE:
        angle = np.degrees(np.arccos(np.clip(row @ column, -1, 1)))
        raise Unsuitable(f"rows and columns of {plane.name} meet at {angle:.1f}° instead of 90°")
    row = row / lengths[0]
    column = column - (column @ row) * row
    return row, column / np.linalg.norm(column)


def _require_uniform(planes: Sequence[Plane]) -> None:
    """One orientation, size, spacing and Frame of Reference; a localizer among the slices shows here."""
    checks: tuple[tuple[str, list[tuple[float, ...]], float], ...] = (
        ("orientations", [plane.cosines or () for plane in planes], COSINE_TOLERANCE),
        ("image sizes", [plane.shape for plane in planes], 0.0),
        ("pixel spacings", [plane.spacing_mm or () for plane in planes], COSINE_TOLERANCE),
    )
    for what, values, tolerance in checks:
        first = np.array(values[0])
        odd = [k for k, value in enumerate(values) if np.abs(np.array(value) - first).max() > tolerance]
        if odd:
            raise Unsuitable(_mixture(what, planes, odd, values))
    frames = {plane.frame_of_reference_uid for plane in planes}
    if len(frames) > 1:
        raise Unsuitable(f"its {len(planes)} slices lie in {len(frames)} different frames of reference")


def _mixture(what: str, planes: Sequence[Plane], odd: list[int], values: Sequence[tuple[float, ...]]) -> str:
    """Name the smaller party of a mixed series and what sets its first member apart."""
    few = odd if len(odd) * 2 <= len(planes) else [k for k in range(len(planes)) if k not in set(odd)]
    many = next(k for k in range(len(planes)) if k not in set(few))
    told = "is turned against the others"
    if len(values[many]) == 2:
        told = "has {:g} × {:g}, the others {:g} × {:g}".format(*values[few[0]], *values[many])
    more = f" (and {len(few) - 1} more)" if len(few) > 1 else ""
    return f"it mixes {what}: {planes[few[0]].name}{more} {told}"


def _sorted(planes: Sequence[Plane], along: Vector) -> list[int]:
    """Indices by place along the normal; equal places by name, so that the order of files never matters."""
    rounded = np.round(along / COINCIDENT_MM).astype(np.int64)
    return sorted(range(len(planes)), key=lambda k: (int(rounded[k]), planes[k].name))


def _without_duplicates(
    order: list[int],
    planes: Sequence[Plane],
    positions: Vector,
    normal: Vector,
    same_picture: Callable[[int, int], bool],
) -> list[int]:
    kept = [order[0]]
    for k in order[1:]:
        last = kept[-1]
        if np.linalg.norm(positions[k] - positions[last]) > COINCIDENT_MM:
            kept.append(k)
        elif not same_picture(last, k):
            raise Unsuitable(
                f"{planes[last].name} and {planes[k].name} are different pictures of the same place, "
                f"{_place(positions[k], normal)}: several phases, echoes or b-values in one series"
            )
    return kept


def _require_regular(ordered: Vector, normal: Vector) -> None:
    """Refuse tilt, gaps and irregular steps, naming all that apply."""
    along = (ordered - ordered[0]) @ normal
    faults = [*_tilt(ordered, along, normal), *_steps(ordered, along, normal)]
    if faults:
        raise Unsuitable("; ".join(faults))


def _tilt(ordered: Vector, along: Vector, normal: Vector) -> list[str]:
    aside = (ordered - ordered[0]) - np.outer(along, normal)
    worst = float(np.linalg.norm(aside, axis=1).max())
    if worst <= TILT_MM:
        return []
    shear = (along @ aside) / (along @ along) if along.any() else np.zeros(3)
    if np.linalg.norm(aside - np.outer(along, shear), axis=1).max() <= TILT_MM:
        angle = np.degrees(np.arctan(np.linalg.norm(shear)))
        return [f"the slices are stacked at a slant (gantry tilt {angle:.1f}°)"]
    return [f"the slices lie up to {worst:.1f} mm off the straight line through the first one"]


def _steps(ordered: Vector, along: Vector, normal: Vector) -> list[str]:
    steps = np.diff(along)
    median = float(np.median(steps))
    gaps = np.flatnonzero(steps > GAP_FACTOR * median)
    missing = np.round(steps[gaps] / median) - 1 if median > 0 else np.zeros(0)
    filled = np.insert(steps, 0, 0.0)
    filled[gaps + 1] -= missing * median
    if median <= 0 or len(gaps) > len(steps) / 4 or not _on_grid(np.cumsum(filled)):
        return [f"the distance between slices varies from {steps.min():.2f} to {steps.max():.2f} mm"]
    if not len(gaps):
        return []
    first, count = int(gaps[0]), int(missing[0])
    verb = "slice is" if count == 1 else "slices are"
    more = f" (and at {len(gaps) - 1} more places)" if len(gaps) > 1 else ""
    between = f"{_place(ordered[first], normal)} and {_place(ordered[first + 1], normal)}"
    return [f"{count} {verb} missing between {between}{more}"]


def _on_grid(along: Vector) -> bool:
    step = (along[-1] - along[0]) / (len(along) - 1)
    grid = along[0] + step * np.arange(len(along))
    return bool(np.abs(along - grid).max() <= min(GRID_TOLERANCE * step, GRID_TOLERANCE_MM))


def _place(position: Vector, normal: Vector) -> str:
    """`z = -31.0 mm`: the coordinate on the patient axis that the stack runs along."""
    axis = int(np.abs(normal).argmax())
    return f"{'xyz'[axis]} = {position[axis]:.1f} mm"


def _build(order: list[int], ordered: Vector, row: Vector, column: Vector, plane: Plane) -> Stack:
    between_rows, between_columns = plane.spacing_mm or (1.0, 1.0)
    step = (ordered[-1] - ordered[0]) / (len(ordered) - 1)
    affine = np.eye(4)
    affine[:3, 0] = row * between_columns
    affine[:3, 1] = column * between_rows
    affine[:3, 2] = step
    affine[:3, 3] = ordered[0]
    return Stack(tuple(order), affine, (float(np.linalg.norm(step)), between_rows, between_columns))


def film_affine(spacing_mm: tuple[float, float] | None) -> NDArray[np.float64]:
    """Return the pixel grid of a film as an affine: millimeters where calibrated, else pixels; no patient axes."""
    between_rows, between_columns = spacing_mm or (1.0, 1.0)
    return np.diag([between_columns, between_rows, 1.0, 1.0])


def slice_affine(plane: Plane) -> NDArray[np.float64]:
    """Return the affine of one slice on its own, one millimeter deep, in LPS; refuses what `stack` refuses."""
    _require_complete([plane])
    row, column = _directions(plane)
    normal = np.cross(row, column)
    position = np.array([plane.position_mm], dtype=np.float64)
    return _build([0], np.vstack([position, position + normal]), row, column, plane).affine_mm
