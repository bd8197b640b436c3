"""`grid.labels_on_grid` on whatever device the classes lie on: some million voxels at a time instead of plane by plane.

The same arithmetic in the same order, and so the same labels. Classes of a whole volume stay where the network left
them; what comes back from a GPU is one byte for each voxel.
"""

from __future__ import annotations

from typing import Any

import torch

from workers.predict.grid import BORDER, Axis

VOXELS_AT_ONCE = 1 << 22
"""Where all of them are at a border, they take some hundred bytes each."""

_Ends = tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def labels_on_grid(classes: torch.Tensor, axes: tuple[Axis, ...]) -> torch.Tensor:
    """Return argmax over `classes` (class, x, y, z) interpolated at `axes`: uint8 (x, y, z), with x fastest in memory.

    On the device of `classes`. Equal values go to the lower class. Raises `torch.OutOfMemoryError` where the device
    has no room beside `classes`: some ten bytes for each of their voxels, and one for each of the finer grid.
    """
    best = classes.argmax(0).to(torch.uint8)
    is_same = all(not axis.weight.any() and len(axis.low) == size for axis, size in zip(axes, best.shape, strict=True))
    cells = (best if is_same else _cells(best)).permute(2, 1, 0).contiguous()
    x, y, z = (_Places(axis, classes.device) for axis in axes)
    made = torch.empty([len(place.low) for place in (z, y, x)], dtype=torch.uint8, device=classes.device)
    planes = max(1, VOXELS_AT_ONCE // made[0].numel())
    for first in range(0, len(made), planes):
        slab = cells[z.low[first : first + planes]][:, y.low][:, :, x.low]
        k, row, column = torch.nonzero(slab == BORDER, as_tuple=True)
        slab[k, row, column] = _interpolated(classes, (x.ends(column), y.ends(row), z.ends(k + first)))
        made[first : first + planes] = slab
    return made.permute(2, 1, 0)


class _Places:
    """An `Axis` on a device."""

    def __init__(self, axis: Axis, device: torch.device) -> None:
        self.low, self.high, self.weight = (
            torch.from_numpy(values).to(device) for values in (axis.low, axis.high, axis.weight)
        )

    def ends(self, index: torch.Tensor) -> _Ends:
        """Return where the voxels `index` lie between, and the weight of either end."""
        weight = self.weight[index]
        return (self.low[index], 1 - weight), (self.high[index], weight)


def _cells(best: torch.Tensor) -> torch.Tensor:
    """Return per cell, named by its lowest corner, the class of all its corners, or `BORDER`."""
    least, most = best, best
    for axis in range(best.ndim):
        least = _with_next(torch.minimum, least, axis)
        most = _with_next(torch.maximum, most, axis)
    return torch.where(least == most, least, BORDER)


def _with_next(choose: Any, values: torch.Tensor, axis: int) -> torch.Tensor:
    made, length = values.clone(), values.shape[axis] - 1
    made.narrow(axis, 0, length).copy_(choose(values.narrow(axis, 0, length), values.narrow(axis, 1, length)))
    return made


def _interpolated(classes: torch.Tensor, ends: tuple[_Ends, _Ends, _Ends]) -> torch.Tensor:
    """Interpolate all classes at some voxels, in double precision as MONAI does, and compare."""
    x, y, z = ends
    corners = [(i, j, h, u * v * w) for i, u in x for j, v in y for h, w in z]
    count, device = len(corners[0][3]), classes.device
    best = torch.zeros(count, dtype=torch.uint8, device=device)
    top = torch.full((count,), -torch.inf, device=device)
    for number, values in enumerate(classes):
        total = torch.zeros(count, dtype=torch.float64, device=device)
        for i, j, h, weights in corners:
            total += values[i, j, h] * weights
        single = total.to(torch.float32)
        best.masked_fill_(single > top, number)
        top = torch.maximum(top, single)
    return best
