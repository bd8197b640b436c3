"""Weights go into a network whole or not at all; nothing in a file of weights is ever run, TorchScript apart.

A TorchScript file is a network and its program. It runs where `inference.json` has no `network_def`, or where that
is such a network; beside a `network_def` it gives its weights alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from node import weights
from node.bundles import Bundle, weights_path
from node.errors import BundleError


def load(network: Any, bundle: Bundle, device: torch.device) -> torch.nn.Module:
    """Return `network` (None: the TorchScript one) on `device` with the weights of `bundle`, in evaluation mode.

    Raises `BundleError` with the reason and the remedy when the file is of no kind that is loaded, has another name
    than its kind, would need foreign code, holds quantized tensors, or does not fit the network.
    """
    path = weights_path(bundle.folder)
    found = weights.look(path)
    if found.fault:
        raise BundleError(f"Bundle {bundle.title}: {found.fault}")
    if network is None and found.kind != "TorchScript":
        raise BundleError(
            f"Bundle {bundle.title}: configs/inference.json has no id network_def, and {path.name} is no network but "
            "its weights; add network_def, or ship the network as TorchScript, models/model.ts."
        )
    try:
        if isinstance(network, torch.jit.ScriptModule):  # network_def loads it by itself
            return network.to(device).eval()
        if network is None:
            return _script(path, device).eval()
        state = _script(path, device).state_dict() if found.kind == "TorchScript" else _state(path, device)
        _require_fit(network.state_dict(), state, f"Bundle {bundle.title}: {path.name}")
        network.load_state_dict(state)
        ready: torch.nn.Module = network.to(device).eval()
    except BundleError:
        raise
    except Exception as error:  # torch raises many kinds on files and shapes that do not fit
        told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise BundleError(f"Bundle {bundle.title}: {path.name} cannot be loaded: {told}") from error
    return ready


def channels(network: torch.nn.Module) -> int:
    """Return how many input channels the first convolution of `network` takes, 0 where there is none.

    Weights are (out, in, …): right for all but grouped and transposed convolutions, so for an explanation only.
    """
    return next((int(p.shape[1]) for p in network.parameters() if p.ndim >= 4), 0)


def _script(path: Path, device: torch.device) -> torch.nn.Module:
    network: torch.nn.Module = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    return network


def _state(path: Path, device: torch.device) -> Mapping[str, Any]:
    if path.name == weights.INDEX:
        return _shards(path, device)
    if path.suffix == ".safetensors":
        return load_file(path, device=str(device))
    state = torch.load(path, map_location=device, weights_only=True)
    if isinstance(state, Mapping):
        state = state.get("model", state.get("state_dict", state))
    if not isinstance(state, Mapping):
        raise BundleError(
            f"{path} holds a {type(state).__name__}; a state dict was expected: "
            "torch.save(network.state_dict(), 'model.pt')."
        )
    return state


def _shards(index: Path, device: torch.device) -> Mapping[str, Any]:
    """Return the tensors of all shards; each must be where the index says, so that none is taken for another."""
    placed: Mapping[str, str] = json.loads(index.read_bytes())["weight_map"]
    state: dict[str, Any] = {}
    for shard in weights.files(index)[1:]:
        found = load_file(shard, device=str(device))
        if strange := sorted(name for name in found if placed.get(name) != shard.name):
            raise BundleError(f"{index.name} does not say that {strange[0]} is in {shard.name}; write the index again.")
        state |= found
    return state


def _require_fit(wanted: Mapping[str, Any], state: Mapping[str, Any], subject: str) -> None:
    """Same names, same kinds of numbers; PyTorch itself would cast whole numbers to real ones without a word."""
    _refuse_quantized(wanted, state, subject)
    missing, unexpected = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    if not missing and not unexpected:
        return
    first = ", ".join([*sorted(missing), *sorted(unexpected)][:3])
    told = f"{len(missing)} parameters are missing and {len(unexpected)} unknown ({first} …)"
    if state and all(name.startswith("module.") for name in state):
        remedy = "it was saved from DataParallel: save network.module.state_dict()"
    else:
        remedy = "network_def must describe the network that these weights were trained in"
    raise BundleError(f"{subject} does not fit the network: {told}; {remedy}.")


def _refuse_quantized(wanted: Mapping[str, Any], state: Mapping[str, Any], subject: str) -> None:
    for name, value in state.items():
        place = wanted.get(name)
        is_quantized = isinstance(value, torch.Tensor) and (value.is_quantized or value.dtype.itemsize < 2)
        is_real = isinstance(place, torch.Tensor) and place.is_floating_point()
        if is_quantized and (is_real or place is None) and getattr(value, "dtype", None) != torch.bool:
            raise BundleError(
                f"{subject} holds quantized tensors ({name} is {str(value.dtype).removeprefix('torch.')}), which the "
                "network has no place for; ship the weights as float32, float16 or bfloat16."
            )
