"""Two small parts of torchvision that MONAI's RetinaNet asks for, where torchvision is not installed.

torchvision comes with GPU libraries of its own; a detector of the MONAI Model Zoo needs no more of it than this. Names
of layers, and so of weights, are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch


class LayersOf(torch.nn.ModuleDict):
    """The first children of a network, up to the last of `return_layers`, and what these layers put out."""

    def __init__(self, model: torch.nn.Module, return_layers: Mapping[str, str]) -> None:
        missing = set(return_layers)
        kept: dict[str, torch.nn.Module] = {}
        for name, child in model.named_children():
            if missing:
                kept[name] = child
                missing.discard(name)
        if missing:
            raise ValueError(f"the network has no layer {', '.join(sorted(missing))}")
        super().__init__(kept)
        self._called = dict(return_layers)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the outputs of the layers, under the names that `return_layers` gives them."""
        found = {}
        for name, layer in self.items():
            image = layer(image)
            if name in self._called:
                found[self._called[name]] = image
        return found


def trainable(pretrained: bool, layers: int | None, max_value: int, default_value: int) -> int:
    """Return how many layers may be trained: all where nothing was pretrained, else `layers` or the default."""
    if not pretrained:
        return max_value
    return default_value if layers is None else min(max(layers, 0), max_value)


def provide() -> None:
    """Give MONAI these parts unless torchvision can be imported."""
    try:
        import_module("torchvision")
    except Exception:  # not installed, or made for another torch
        parts: Any = SimpleNamespace(_utils=SimpleNamespace(IntermediateLayerGetter=LayersOf))
        fpn: Any = import_module("monai.networks.blocks.backbone_fpn_utils")
        retinanet: Any = import_module("monai.apps.detection.networks.retinanet_network")
        fpn.torchvision_models, retinanet._validate_trainable_layers = parts, trainable
