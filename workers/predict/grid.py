"""Classes on one grid become labels on a finer one, as if they were interpolated first and compared then.

Where all eight corners of a cell have the same best class, it is the best everywhere between them: interpolation
takes a mean of the corners with weights that are never negative. So only voxels at a border are interpolated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BORDER = 255
"""Stands for a cell whose corners differ; no class has this number."""
InParallel = Callable[[Callable[[int], None], int], None]


@dataclass(frozen=True)
class Axis:
    """Where the voxels of one axis lie on another: between `low` and `high`, `weight` (0..1) of the latter."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    weight: NDArray[np.float64]


def nearest_axis(size: int) -> Axis:
    """Return the axis of a grid on itself."""
    every = np.arange(size, dtype=np.intp)
    return Axis(every, every, np.zeros(size))


def labels_on_grid(classes: NDArray[np.float32], axes: tuple[Axis, ...], in_parallel: InParallel) -> NDArray[np.uint8]:
    """Return argmax over `classes` (class, x, y, z) interpolated at `axes`: uint8 (x, y, z), with x fastest in memory.

    Equal values go to the lower class, as with argmax; where one is not a number the answer means nothing.
    """
    best = best_class(classes, in_parallel)
    is_same = all(not axis.weight.any() and len(axis.low) == size for axis, size in zip(axes, best.shape, strict=True))
    cells = np.ascontiguousarray((best if is_same else _cells(best)).transpose(2, 1, 0))
    made = np.empty([len(axis.low) for axis in axes[::-1]], np.uint8)
    x, y, z = axes

    def fill(k: int) -> None:
        plane = cells[z.low[k]].take(y.low, 0).take(x.low, 1)
        rows, columns = np.nonzero(plane == BORDER)
        if len(rows):
            plane[rows, columns] = _interpolated(classes, axes, columns, rows, k)
        made[k] = plane

    in_parallel(fill, len(made))
    return made.transpose(2, 1, 0)


def best_class(classes: NDArray[np.float32], in_parallel: InParallel) -> NDArray[np.uint8]:
    """Return the class with the largest value at every voxel, the lowest of equals: a running maximum."""
    best = np.zeros(classes.shape[1:], np.uint8)

    def fill(k: int) -> None:
        top = classes[0, k].copy()
        for number in range(1, len(classes)):
            better = classes[number, k] > top
            best[k][better] = number
            np.maximum(top, classes[number, k], out=top)

    in_parallel(fill, len(best))
    return best


def _cells(best: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return per cell, named by its lowest corner, the class of all its corners, or `BORDER`."""
    least, most = best, best
    for axis in range(best.ndim):
        least = _with_next(np.minimum, least, axis)
        most = _with_next(np.maximum, most, axis)
    return np.where(least == most, least, np.uint8(BORDER))


def _with_next(choose: Any, values: NDArray[np.uint8], axis: int) -> NDArray[np.uint8]:
    first = [slice(None)] * values.ndim
    second = list(first)
    first[axis], second[axis] = slice(None, -1), slice(1, None)
    made = values.copy()
    choose(values[tuple(first)], values[tuple(second)], out=made[tuple(first)])
    return made


def _interpolated(
    classes: NDArray[np.float32],
    axes: tuple[Axis, ...],
    columns: NDArray[np.intp],
    rows: NDArray[np.intp],
    k: int,
) -> NDArray[np.uint8]:
    """Interpolate all classes at some voxels of plane `k`, in double precision as MONAI does, and compare."""
    x, y, z = axes
    flat, (step, *steps) = _flat(classes)
    corners = [
        (steps[0] * i + steps[1] * j + steps[2] * h, u * v * w)
        for i, u in _ends(x, columns)
        for j, v in _ends(y, rows)
        for h, w in _ends(z, k)
    ]
    best = np.zeros(len(rows), np.uint8)
    top = np.full(len(rows), -np.inf, np.float32)
    for number in range(len(classes)):
        values = np.zeros(len(rows))
        for places, weights in corners:
            values += flat[number * step :].take(places) * weights
        single = values.astype(np.float32)
        best[single > top] = number
        np.maximum(top, single, out=top)
    return best


def _ends(axis: Axis, index: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    weight = axis.weight[index]
    return (axis.low[index], 1 - weight), (axis.high[index], weight)


def _flat(classes: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[int]]:
    """Return the memory that `classes` is a view of, as one row, and its steps there."""
    steps = [stride // classes.itemsize for stride in classes.strides]
    length = 1 + sum((size - 1) * step for size, step in zip(classes.shape, steps, strict=True))
    return np.lib.stride_tricks.as_strided(classes, (length,), (classes.itemsize,), writeable=False), steps
