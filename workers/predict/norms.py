"""Instance normalization in sums that stay exact on large images, for a runtime that adds voxels one after the other.

OpenVINO's own takes the mean and the variance of 96 × 96 × 96 voxels in one float32 sum each, which is off by up to
5e-4 of the largest value where most voxels are near zero, as after a ReLU. Sums axis by axis are off by 1e-6.
"""

from __future__ import annotations

import copy
from typing import TypeGuard

import torch

Norm = torch.nn.InstanceNorm1d | torch.nn.InstanceNorm2d | torch.nn.InstanceNorm3d
_KINDS = (torch.nn.InstanceNorm1d, torch.nn.InstanceNorm2d, torch.nn.InstanceNorm3d)


class AxisByAxis(torch.nn.Module):
    """What an instance normalization without running statistics says of (batch, channel, …)."""

    def __init__(self, like: Norm) -> None:
        super().__init__()
        self.eps = like.eps
        self.weight: torch.Tensor | None = like.weight
        self.bias: torch.Tensor | None = like.bias

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return `image` with mean 0 and variance 1 per channel, then scaled and shifted where it learned to."""
        apart = image - _mean(image)
        scale = torch.rsqrt(_mean(apart * apart) + self.eps)
        per_channel = (1, -1, *[1] * (image.ndim - 2))
        if self.weight is None or self.bias is None:
            return apart * scale
        return apart * (scale * self.weight.view(per_channel)) + self.bias.view(per_channel)


def exact(network: torch.nn.Module) -> torch.nn.Module:
    """Return `network` with its instance normalizations in exact sums: a copy, or itself where it has none."""
    if not any(_is_plain(part) for part in network.modules()):
        return network
    copied = copy.deepcopy(network)
    for parent in list(copied.modules()):
        for name, part in list(parent.named_children()):
            if _is_plain(part):
                setattr(parent, name, AxisByAxis(part))
    return copied


def _is_plain(part: torch.nn.Module) -> TypeGuard[Norm]:
    return isinstance(part, _KINDS) and type(part) in _KINDS and not part.track_running_stats


def _mean(image: torch.Tensor) -> torch.Tensor:
    """Mean over all but batch and channel, axis by axis; mean and sum take turns, because equal ones become one."""
    for axis in range(image.ndim - 1, 1, -1):
        size = image.shape[axis]
        image = image.mean(axis, keepdim=True) if axis % 2 else image.sum(axis, keepdim=True) * (1 / size)
    return image
