"""Linear interpolation where the axes of both grids are parallel: plane by plane, and nothing of the size of a grid.

A change of spacing never needs a general affine resampling. Positions and results are those of MONAI's `Spacing`
and `SpatialResample`; what is not such a change is left to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.inverse import TraceableTransform
from monai.transforms.spatial.array import SpatialResample
from numpy.typing import NDArray

from workers.predict import ongpu
from workers.predict.device import cores
from workers.predict.grid import Axis, labels_on_grid, nearest_axis

ALIGNED_WITHIN = 1e-6
"""Voxels by which a sampling position may lie off the axis: MONAI itself rounds more coarsely."""
UNCHANGED_WITHIN = 1e-3
"""MONAI's own tolerance (AFFINE_TOL) for a resampling that changes nothing."""
MAX_CLASSES = 255


class AxisResample(SpatialResample):
    """MONAI's SpatialResample, quick where the axes are parallel and the mode is linear; forward, on the CPU alone.

    While `to_labels` holds, the inverse makes one channel of labels out of the channels of classes: what argmax would
    say after the interpolation. `made_labels` tells whether it did.
    """

    def __init__(self, like: SpatialResample) -> None:
        super().__init__(
            mode=like.mode, padding_mode=like.padding_mode, align_corners=like.align_corners, dtype=like.dtype
        )
        self._wants_labels = False
        self.made_labels = False

    @contextmanager
    def to_labels(self) -> Iterator[None]:
        """Let the inverse give labels instead of classes within this context."""
        self._wants_labels, self.made_labels = True, False
        try:
            yield
        finally:
            self._wants_labels = False

    def __call__(  # type: ignore[override]  # of Transform, as in SpatialResample
        self, img: torch.Tensor, dst_affine: Any = None, spatial_size: Any = None, **how: Any
    ) -> torch.Tensor:
        """Resample `img` (channel, column, row, slice) onto the grid of `dst_affine`, always into new memory."""
        told = {"mode": self.mode, "padding_mode": self.padding_mode} | {k: v for k, v in how.items() if v is not None}
        is_ours = img.device.type == "cpu" and not (self.lazy or how.get("lazy"))
        plan = _plan(img, dst_affine, spatial_size, told) if is_ours else None
        if plan is None or not isinstance(img, MetaTensor):
            answer = super().__call__(img, dst_affine, spatial_size, **how)
            return answer.clone() if answer.data_ptr() == img.data_ptr() else answer
        extra = {
            "dtype": str(torch.float64)[6:],
            "mode": str(told["mode"]),
            "padding_mode": str(told["padding_mode"]),
            "align_corners": self.align_corners or False,
            "src_affine": img.affine.to(torch.float64),
        }
        made = np.stack([linear(channel, plan.axes) for channel in img.as_tensor().numpy()])
        return _tracked(torch.from_numpy(made), img, plan, extra, self.get_transform_info())

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """Bring `data` back onto the grid it came from: its channels, or their labels (see the class)."""
        applied = data.applied_operations[-1] if isinstance(data, MetaTensor) and data.applied_operations else None
        if not self._wants_labels or applied is None or not isinstance(data, MetaTensor) or len(data) > MAX_CLASSES:
            return super().inverse(data)
        extra, size = applied["extra_info"], applied["orig_size"]
        plan = _plan(data, extra["src_affine"], size, extra, or_unchanged=True)
        if plan is None:
            return super().inverse(data)
        self.pop_transform(data)
        made = _labels(data.as_tensor(), plan.axes)
        self.made_labels = True
        with self.trace_transform(False):
            return _tracked(made[None], data, plan, {}, self.get_transform_info())


def _labels(classes: torch.Tensor, axes: tuple[Axis, ...]) -> torch.Tensor:
    if classes.device.type == "cpu":
        return torch.from_numpy(labels_on_grid(classes.numpy(), axes, in_parallel))
    return ongpu.labels_on_grid(classes, axes)


@dataclass(frozen=True)
class _Plan:
    """Where the voxels of a grid lie on another: per axis, and as the affine that MONAI notes."""

    axes: tuple[Axis, ...]
    affine: NDArray[np.float64]
    from_shape: tuple[int, ...]


def _plan(
    img: torch.Tensor, dst_affine: Any, spatial_size: Any, how: dict[str, Any], or_unchanged: bool = False
) -> _Plan | None:
    """Return how to sample `img`, or None where that is not linear interpolation along its own axes."""
    if not isinstance(img, MetaTensor) or img.ndim != 4 or img.pending_operations:
        return None
    if dst_affine is None or spatial_size is None or isinstance(spatial_size, int):
        return None
    mode, padding = (str(getattr(how[key], "value", how[key])) for key in ("mode", "padding_mode"))
    source, target = (torch.as_tensor(affine).cpu().double().numpy() for affine in (img.affine, dst_affine))
    shape, size = tuple(img.shape[1:]), tuple(int(n) for n in spatial_size)
    if mode not in ("bilinear", "linear") or source.shape != (4, 4) or target.shape != (4, 4) or len(size) != 3:
        return None
    if min(size) < 1:
        return None
    affine = np.linalg.solve(source, target).astype(np.float64)
    if size == shape and (
        np.allclose(source, target, atol=UNCHANGED_WITHIN) or np.allclose(affine, np.eye(4), atol=UNCHANGED_WITHIN)
    ):
        same = tuple(nearest_axis(n) for n in shape)
        return _Plan(same, np.eye(4), shape) if or_unchanged else None
    aside = affine[:3, :3] - np.diag(np.diag(affine)[:3])
    if np.abs(aside @ np.array(size)).max() > ALIGNED_WITHIN or np.abs(aside * np.array(size)).max() > ALIGNED_WITHIN:
        return None
    axes = [_axis(affine[d, 3], affine[d, d], size[d], shape[d], padding) for d in range(3)]
    return _Plan(tuple(a for a in axes if a), affine, shape) if all(axes) else None


def _axis(first: float, step: float, count: int, size: int, padding: str) -> Axis | None:
    """Positions in voxels, held within the image as padding "border" holds them; None where another would matter."""
    places = np.round(first + step * np.arange(count), 9)
    inside = np.clip(places, 0, size - 1)
    if padding != "border" and np.abs(places - inside).max() > 0:
        return None
    low = np.floor(inside).astype(np.intp)
    return Axis(low, np.minimum(low + 1, size - 1), inside - low)


def _tracked(
    made: torch.Tensor, img: MetaTensor, plan: _Plan, extra: dict[str, Any], info: dict[str, Any]
) -> torch.Tensor:
    """Return `made` with the affine and the trace that MONAI would have given it."""
    size = made.shape[1:]
    meta = TraceableTransform.track_transform_meta(
        img,
        sp_size=size,
        affine=torch.from_numpy(plan.affine),
        extra_info=extra,
        orig_size=plan.from_shape,
        transform_info=info,
        lazy=False,
    )
    answer = MetaTensor(made)
    answer.copy_meta_from(meta)  # type: ignore[no-untyped-call]
    return answer


def linear(image: NDArray[np.float32], axes: Sequence[Axis]) -> NDArray[np.float32]:
    """Return `image` (three axes, in whatever memory order) sampled at `axes`, in the same memory order."""
    order = np.argsort([-stride for stride in image.strides], kind="stable")
    planes = image.transpose(order)
    along, down, across = (axes[k] for k in order)
    made = np.empty([len(axes[k].low) for k in order], np.float32)

    def fill(k: int) -> None:
        plane = _between(planes[along.low[k]], planes[along.high[k]], along.weight[k])
        plane = _between(plane.take(down.low, 0), plane.take(down.high, 0), down.weight[:, None])
        made[k] = _between(plane.take(across.low, 1), plane.take(across.high, 1), across.weight)

    in_parallel(fill, len(made))
    return made.transpose(np.argsort(order))


def _between(low: NDArray[Any], high: NDArray[Any], weight: Any) -> NDArray[np.float32]:
    """`low` where the weight is 0, `high` where it is 1; exactly `low` where both are equal."""
    step: NDArray[np.float32] = np.subtract(high, low, dtype=np.float32)
    step *= np.asarray(weight, np.float32)
    step += low
    return step


def in_parallel(work: Callable[[int], None], count: int) -> None:
    """Run `work(0)` … `work(count - 1)`; NumPy lets go of the interpreter for all that takes time."""
    with ThreadPoolExecutor(min(cores(), 8), thread_name_prefix="planes") as threads:
        for _ in threads.map(work, range(count)):
            pass
