"""Several trained networks as one teacher: the mean of what they say, for a network that learns to say it alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor


class Ensemble(torch.nn.Module):
    """The mean probability of networks of one shape, whose weights are in `files`, frozen on `device`.

    Raises `OSError` for a file that is not there, and `ValueError` where its weights are those of another network.
    """

    def __init__(self, network: torch.nn.Module, files: Sequence[str], device: torch.device) -> None:
        super().__init__()
        self.networks = torch.nn.ModuleList(copy.deepcopy(network) for _ in files)
        for one, file in zip(self.networks, files, strict=True):
            try:
                one.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
            except RuntimeError as error:
                raise ValueError(f"the teacher {file} has the weights of another network") from error
        self.to(device).eval().requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """Return probabilities (batch, channels, *size): softmax over the channels, or the sigmoid of a single one."""
        with torch.autocast(image.device.type, enabled=image.device.type == "cuda"):
            found = [network(image).float() for network in self.networks]
        said = [one.softmax(1) if one.shape[1] > 1 else one.sigmoid() for one in found]
        return torch.stack(said).mean(0)


def teacher(network: torch.nn.Module, files: Sequence[str], device: torch.device) -> Ensemble | None:
    """Return the ensemble of `files`, None where there are none."""
    return Ensemble(network, files, device) if files else None
