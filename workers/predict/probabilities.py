"""Do the numbers of a classification mean what dicom.toml says of them? A logit may lie in 0..1, too.

Shown by what the postprocessing does and, where it does nothing, by asking the network about noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.transforms.post.dictionary import Activationsd, AsDiscreted

from node.errors import Permanent
from workers.predict import loaded

_SCALES = (1.0, -1.0, 100.0, -100.0)
"""Of the noise; what no sigmoid or softmax ends is outside 0..1 for one of them."""


def require_known(after: Any, outputs: int, title: str) -> bool:
    """Say whether `after` makes probabilities of a network's `outputs`, as far as MONAI's own transforms tell.

    Raises `Permanent` where it makes none of them: the softmax of one output is always 1, and the argmax of several
    is the number of a class.
    """
    activations = [step for step in loaded.steps(after) if isinstance(step, Activationsd)]
    if outputs == 1 and any(any(step.softmax) for step in activations):
        raise Permanent(
            f"{title} takes the softmax of one output, which is 1 for every image. Nothing was reported. Its "
            "postprocessing must have Activationsd with sigmoid instead."
        )
    discrete = [step for step in loaded.steps(after) if isinstance(step, AsDiscreted)]
    if outputs > 2 and any(step.argmax[0] and step.to_onehot[0] is None for step in discrete):
        raise Permanent(
            f"{title} answers with the number of one of {outputs} classes; dicom.toml explains probabilities. Nothing "
            "was reported. Take AsDiscreted out of its postprocessing, so that pred holds a number for each class."
        )
    return bool(activations)


def require_on_noise(answer: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor, title: str) -> None:
    """Raise `Permanent` where `answer`, network and postprocessing, leaves 0..1 on noise of the shape of `like`."""
    noise = 1 + torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like.device)
    for scale in _SCALES:
        found = answer(noise * scale)
        if bool((found < 0).any() or (found > 1).any()):
            raise Permanent(
                f"{title} answers noise with {float(found.min()):.3g} to {float(found.max()):.3g}: its numbers are no "
                "probabilities, also where they lie in 0..1. Nothing was reported. Its postprocessing must have "
                "Activationsd with sigmoid or softmax."
            )
