"""Where a classification network looked: Grad-CAM (Selvaraju 2017) or occlusion sensitivity (Zeiler, Fergus 2014).

A map says what moved this network towards one finding, for a person who wonders whether to believe it. It is made
only when a route asks, works on a copy of the network, and leaves nothing behind: readings stay as fast as they were.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from monai.visualize.class_activation_maps import GradCAM, ModelWithHooks
from monai.visualize.occlusion_sensitivity import OcclusionSensitivity
from numpy.typing import NDArray

from node.bundles import Bundle, ExplainEntry
from node.errors import BundleError, Permanent
from node.findings import Finding, Reading, Saliency, Volume
from workers.predict.network import Network

METHODS = {"grad-cam": "Grad-CAM", "occlusion": "occlusion sensitivity"}
PATCHES = 8
"""Occlusion covers 1/8 of each side at a time, in steps of half of that."""
_BATCH = 8


def explain(network: Network, volumes: Sequence[Volume], bundle: Bundle, reading: Reading) -> Reading:
    """Return `reading`, in which each finding that is present says where the network looked.

    `reading` is what `network` said about `volumes`. It comes back as it is when dicom.toml has no `[explain]`.
    Raises `BundleError` where the network has no such layer, `Permanent` when the map cannot be made.
    """
    how = bundle.dicom.explain
    if how is None:
        return reading
    _require_same_outputs(network, bundle)
    found: list[Finding] = []
    each = len(bundle.dicom.finding)
    for number, volume in enumerate(volumes):
        found += _explained(network, volume, bundle, reading.findings[number * each : (number + 1) * each])
    return replace(reading, findings=tuple(found))


def saliency(network: Network, volume: Volume, how: ExplainEntry, outputs: Sequence[int]) -> list[Saliency]:
    """Return for each of `outputs` (of the network) where it looked on `volume`."""
    if not outputs:
        return []
    draw = _grad_cam if how.method == "grad-cam" else _occlusion
    maps = network.draw(volume, lambda module, image: draw(module, image, how.layer, outputs))
    return [Saliency(_on_source_grid(values, volume), METHODS[how.method]) for values in maps]


def _explained(network: Network, volume: Volume, bundle: Bundle, findings: Sequence[Finding]) -> list[Finding]:
    assert bundle.dicom.explain is not None  # noqa: S101 - `explain` asked
    present = [k for k, finding in enumerate(findings) if finding.present]
    outputs = [bundle.dicom.finding[k].output for k in present]
    maps = dict(zip(present, saliency(network, volume, bundle.dicom.explain, outputs), strict=True))
    return [replace(finding, saliency=maps.get(k)) for k, finding in enumerate(findings)]


def _require_same_outputs(network: Network, bundle: Bundle) -> None:
    """The map is made of the network's own outputs; postprocessing may change their values, not their number."""
    given, told = network.shapes["network_output"], network.shapes["answer"]
    if given[1:] != told:
        raise BundleError(
            f"{bundle.title} cannot be explained: its network has outputs of shape {given[1:]}, and its postprocessing "
            f"makes {told} of them. Nothing was reported. Remove SALIENCY from the route, or [explain] from dicom.toml."
        )


def _grad_cam(module: torch.nn.Module, image: torch.Tensor, layer: str, outputs: Sequence[int]) -> torch.Tensor:
    """(outputs, column, row[, slice]). Hooks and gradients live on a copy, because MONAI never takes them off."""
    names = [name for name, _ in module.named_modules() if name]
    if isinstance(module, torch.jit.ScriptModule):
        raise BundleError('A TorchScript network keeps its layers to itself; [explain] needs method = "occlusion".')
    if layer not in names:
        known = ", ".join(name for name in names if "." not in name)
        raise BundleError(f'[explain] of dicom.toml names the layer "{layer}"; the network has none; it has {known}.')
    camera = GradCAM(copy.deepcopy(module), layer, postprocessing=lambda values: values)
    try:
        with torch.enable_grad():
            return torch.cat([camera(image, class_idx=output)[0].detach() for output in outputs])
    finally:
        _let_go(camera.nn_module)


def _let_go(hooked: ModelWithHooks) -> None:
    """Part what holds each other, or a worker would keep every copy until the collector comes: it counts no bytes."""
    hooked.activations.clear()
    hooked.gradients.clear()
    hooked.score = None
    for part in hooked.model.modules():
        part._forward_hooks.clear()
        part._backward_hooks.clear()


def _occlusion(module: torch.nn.Module, image: torch.Tensor, layer: str, outputs: Sequence[int]) -> torch.Tensor:
    """(outputs, column, row[, slice]): how far the output falls where a patch of the image's mean lies over it."""
    patch = [max(size // PATCHES, 1) for size in image.shape[2:]]
    probe = OcclusionSensitivity(
        module, patch, n_batch=_BATCH, mode="mean_img", overlap=0.5, activate=False, verbose=False
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a non-tuple sequence", UserWarning)  # MONAI's own way to index
        occluded = torch.as_tensor(probe(image)[0])[0]
    whole = module(image)[0]
    falls = [whole[output] - occluded[output] for output in outputs]
    return torch.stack(falls)


def _on_source_grid(values: NDArray[np.float32], volume: Volume) -> NDArray[np.float32]:
    """(column, row[, slice]) → (slice, row, column), what speaks against the finding left out, 1 the strongest."""
    slices, rows, columns = volume.pixels.shape
    if values.shape != ((columns, rows, slices) if slices > 1 else (columns, rows)):
        raise Permanent(
            f"A saliency map came back on a grid of {values.shape}; the source grid is {(columns, rows, slices)}. "
            "Nothing was reported. The bundle's preprocessing cannot be inverted: remove [explain] from dicom.toml."
        )
    speaks = np.clip(values.reshape(columns, rows, slices).transpose(2, 1, 0), 0, None)
    strongest = float(speaks.max())
    return np.ascontiguousarray(speaks / strongest if strongest > 0 else speaks, dtype=np.float32)
