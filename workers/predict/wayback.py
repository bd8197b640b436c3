"""Is what the postprocessing leaves on the grid of the source? A mirrored map has the same shape, and is elsewhere.

`Invertd` brings maps back. What MONAI's SaveImaged would turn on the way to a file is not turned here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from monai.data.meta_tensor import MetaTensor
from monai.transforms.post.dictionary import Invertd
from monai.transforms.utility.dictionary import Transposed

from node.errors import Permanent
from node.findings import Volume
from workers.predict import loaded
from workers.predict.quick import LabelsBackd


def require(
    case: Mapping[Any, Any], key: str, answer: Any, volume: Volume, chains: tuple[Any, Any], title: str
) -> None:
    """Raise `Permanent` where the preprocessing moved voxels and `answer` was not moved back onto `volume`.

    `case`: what the preprocessing made, the network's input under `key`; `chains`: preprocessing and postprocessing.
    """
    image = case[key]
    if not isinstance(image, MetaTensor):
        raise Permanent(
            f"{title} takes the place from its images before its network (track_meta = false), so that nobody can "
            "bring the answer back. Nothing was reported. Let its preprocessing keep it."
        )
    before, after = (loaded.steps(chain) for chain in chains)
    if any(isinstance(step, LabelsBackd) and "pred" in step.keys for step in after):
        return
    inverses = [step for step in after if isinstance(step, Invertd) and "pred" in step.keys]
    is_turned_back = _turns(before) == _turns(after)  # Transposed leaves the affine as it was
    if is_turned_back and loaded.is_on_grid(image.affine, volume):
        return
    if inverses:
        is_undone = len(inverses) == 1 and _fits(inverses[0], case, image)
    else:
        is_undone = is_turned_back and not _says_nothing(answer)
    if not is_undone or (isinstance(answer, MetaTensor) and not loaded.is_on_grid(answer.affine, volume)):
        raise Permanent(
            f"{title} turns, crops or resamples images before its network, and does not bring the answer back: it "
            "could be mirrored. Nothing was reported. Its postprocessing must have one Invertd for pred, with "
            "`transform` its preprocessing and `orig_keys` what went through that; what SaveImaged does on the way to "
            "a file is not done here."
        )


def _fits(step: Invertd, case: Mapping[Any, Any], image: MetaTensor) -> bool:
    """Whether `step` undoes on `pred` what was done to `image`, or to what lies where it lies."""
    like = case.get(dict(zip(step.keys, step.orig_keys, strict=False))["pred"])
    return isinstance(like, MetaTensor) and bool(np.allclose(like.affine, image.affine))


def _says_nothing(answer: Any) -> bool:
    """Of where it lies: an affine that nobody gave it is the identity."""
    return not isinstance(answer, MetaTensor) or bool(np.allclose(answer.affine, np.eye(len(answer.affine))))


def _turns(steps: list[Any]) -> int:
    return sum(isinstance(step, Transposed) for step in steps)
