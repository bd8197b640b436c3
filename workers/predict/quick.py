"""Which parts of a bundle's transforms have a quick way to the same answer; every other chain runs as MONAI has it."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms.compose import Compose
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.post.dictionary import AsDiscreted, Invertd
from monai.transforms.spatial.dictionary import Spacingd

from workers.predict import loaded
from workers.predict.resample import AxisResample

_MOVE_VOXELS = {"Orientationd", "CropForegroundd", "SpatialPadd", "DivisiblePadd", "EnsureChannelFirstd"}
"""Before Spacingd: their inverses move labels as they move classes."""
_TAKE_WHOLE_NUMBERS = {"CastToTyped", "KeepLargestConnectedComponentd", "EnsureTyped"}
"""After argmax: they treat uint8 labels as float32 ones."""
_COMPUTE_ANYWHERE = {"Activationsd", "EnsureTyped"}
"""Before labels are made: they do on a GPU what they do on a CPU."""


def quicken(before: Any, after: Any) -> bool:
    """Give the two chains their quick ways, in place; say whether `before` leaves the memory of its image alone."""
    resampling = _resampling(before)
    copies = resampling is not None and _copies(before)
    if resampling is None or not isinstance(after, Compose) or after.lazy:
        return copies
    steps = list(after.transforms)
    for k, (back, argmax) in enumerate(itertools.pairwise(steps)):
        if _is_plain_inverse(back, before) and _is_plain_argmax(argmax, back):
            rest = {type(step).__name__ for step in steps[k + 2 :]}
            dtype = torch.uint8 if rest <= _TAKE_WHOLE_NUMBERS else torch.float32
            after.transforms = (*steps[:k], LabelsBackd(back, argmax, resampling, dtype), *steps[k + 2 :])
            break
    return copies


def makes_labels_anywhere(after: Any) -> bool:
    """Say whether `after` may be given what a network said where it lies: only labels, on the CPU, go on from there."""
    names = [type(step).__name__ for step in after.transforms] if isinstance(after, Compose) else []
    made = LabelsBackd.__name__
    return made in names and set(names[: names.index(made)]) <= _COMPUTE_ANYWHERE


class LabelsBackd:
    """`Invertd` and `AsDiscreted(argmax=True)` in one step, on the device of the classes; its labels are on the CPU.

    Where that device has no room for it, on the CPU.
    """

    argmax = (True,)
    """As `AsDiscreted` says it."""

    def __init__(self, back: Invertd, argmax: AsDiscreted, resampling: AxisResample, dtype: torch.dtype) -> None:
        self._back, self._argmax, self._resampling, self._dtype = back, argmax, resampling, dtype
        self.keys = back.keys

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with labels on the source grid in place of classes."""
        key = self._back.keys[0]
        try:
            made = self._on_its_device(data)
        except torch.OutOfMemoryError:
            if data[key].device.type == "cpu":
                raise
            made = self._on_its_device({**data, key: data[key].cpu()})
        made[key] = made[key].cpu()
        return made

    def _on_its_device(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        with self._resampling.to_labels():
            answer: dict[Hashable, Any] = self._back(data)
        if not self._resampling.made_labels:
            return dict(self._argmax(answer))
        key = self._back.keys[0]
        answer[key] = answer[key].to(self._dtype)
        return answer


def _resampling(before: Any) -> AxisResample | None:
    """Put the quick resampling into each Spacingd; return it where the inverse of the whole chain may give labels."""
    if not isinstance(before, Compose) or before.lazy:
        return None
    found: list[AxisResample] = []
    others: list[str] = []
    for step in before.transforms:
        if type(step) is Spacingd and len(step.keys) == 1 and not step.lazy:
            quick = AxisResample(step.spacing_transform.sp_resample)
            step.spacing_transform.sp_resample = quick
            found.append(quick)
        elif isinstance(step, InvertibleTransform) and not found:
            others.append(type(step).__name__)
    return found[0] if len(found) == 1 and set(others) <= _MOVE_VOXELS else None


def _copies(before: Compose) -> bool:
    """Nothing but re-ordering stands before the resampling, which gives a new image in any case."""
    names = [type(step).__name__ for step in before.transforms]
    return set(names[: names.index("Spacingd")]) <= {"Loaded", "Orientationd", "EnsureChannelFirstd"}


def _is_plain_inverse(step: Any, before: Compose) -> bool:
    if type(step) is not Invertd or step.transform is not before or len(step.keys) != 1:
        return False
    if step.orig_keys[0] not in (loaded.IMAGE, *loaded.keys(before)):  # another image may have gone another way
        return False
    return not step.nearest_interp[0] and step.post_func[0] is None and step.device[0] in (None, "cpu")


def _is_plain_argmax(step: Any, back: Invertd) -> bool:
    if type(step) is not AsDiscreted or tuple(step.keys) != tuple(back.keys):
        return False
    others = (step.to_onehot[0], step.threshold[0], step.rounding[0])
    return bool(step.argmax[0]) and others == (None, None, None) and not step.converter.kwargs
