"""A Model Bundle made ready to read: network, weights and the bundle's own transforms (MONAI Bundle, inference.json).

The bundle's `LoadImaged` is replaced by the volume in memory and its `SaveImaged` by the answer in memory; all
else runs as the bundle says. `$` expressions are code, so a bundle runs only when its digest is the one asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle.config_parser import ConfigParser
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray
from safetensors.torch import load_file

from node.bundles import Bundle, weights_path
from node.errors import BundleError, Permanent, Transient
from node.findings import Volume
from workers.predict import device as devices

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_READERS = ("LoadImage", "LoadImaged", "LoadImageD", "LoadImageDict")
_WRITERS = ("SaveImage", "SaveImaged", "SaveImageD", "SaveImageDict")
_NEEDED = ("network_def", "inferer", "preprocessing", "postprocessing")


class Network:
    """One bundle on one device; stays warm between series."""

    def __init__(self, bundle: Bundle, device: str, digest: str) -> None:
        """Build the network and load its weights.

        Raises `BundleError` when `digest` is not the bundle's, when `inference.json` lacks an id or does not build,
        and when the weights do not fit the network; `Permanent` for a device that is not there.
        """
        if bundle.digest != digest:
            raise BundleError(
                f"Bundle {bundle.title} has changed: its digest is {bundle.digest[:12]}, the job was made for "
                f"{digest[:12]}. It was not run. Route the study again, or restore the bundle."
            )
        self._title = bundle.title
        self._device = devices.choose(device)
        try:
            parts = _parse(bundle.folder, self._device)
        except BundleError:
            raise
        except Exception as error:  # a bundle's expressions are its author's code
            reason = f"{type(error).__name__}: {error}"
            raise BundleError(f"Bundle {bundle.title}: configs/inference.json does not build: {reason}") from error
        self._network: torch.nn.Module = parts["network_def"].to(self._device).eval()
        self._inferer, self._before, self._after = (parts[key] for key in _NEEDED[1:])
        _load_weights(self._network, weights_path(bundle.folder), bundle.title, self._device)

    def read(self, volume: Volume) -> NDArray[Any]:
        """Return what the bundle's postprocessing leaves under `pred` for one volume.

        A segmentation: (1, column, row[, slice]); a classification: (findings,). Raises `Permanent` when the
        network answers with anything but finite numbers, or its transforms fail.
        """
        with torch.inference_mode():
            try:
                case = self._before({"image": to_image(volume)})
                answer = self._inferer(case["image"].as_tensor()[None].to(self._device), self._network)
                case["pred"] = self._require_finite(answer)[0]
                answer = self._after(case)["pred"]
            except (Permanent, MemoryError):
                raise
            except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
                told = str(error).partition("\n")[0]
                raise Transient(f"{self._title} could not run on {self._device}: {told}") from error
            except Exception as error:  # a bundle's transforms are its author's code
                told = f"{type(error).__name__}: {error}"
                raise Permanent(f"{self._title} failed on an input of {volume.pixels.shape}: {told}") from error
        return np.asarray(answer.cpu() if isinstance(answer, torch.Tensor) else answer)

    def _require_finite(self, answer: Any) -> MetaTensor:
        """Before argmax or a threshold can hide it: a network that computes NaN has no answer."""
        if not isinstance(answer, torch.Tensor):
            raise Permanent(f"{self._title} answered with a {type(answer).__name__}; one tensor was expected.")
        if not bool(torch.isfinite(answer).all()):
            raise Permanent(f"{self._title} answered with values that are not finite numbers; nothing was reported.")
        return MetaTensor(answer.float().cpu())


def to_image(volume: Volume) -> MetaTensor:
    """Return `volume` as MONAI's readers hand images over: (column, row[, slice]), float32, no channel.

    A stack has a RAS affine in mm, as from a NIfTI file; a film has its pixel grid, as from a picture file.
    """
    array = np.ascontiguousarray(volume.pixels.transpose(2, 1, 0))
    affine = _LPS_TO_RAS @ volume.affine_mm
    if len(volume.sources) == 1:
        array = array[:, :, 0]
        affine = np.diag([*np.linalg.norm(volume.affine_mm[:3, :2], axis=0), 1.0, 1.0])
    meta = {"original_channel_dim": "no_channel", "space": "RAS"}
    return MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(affine), meta=meta)


def _parse(folder: Path, device: torch.device) -> dict[str, Any]:
    """Resolve the parts of `inference.json` that a reading needs, and nothing else of it."""
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    missing = [key for key in _NEEDED if key not in parser]
    if missing:
        raise BundleError(f"Bundle {folder.name}: configs/inference.json has no id {', '.join(missing)}.")
    parser["bundle_root"] = str(folder)
    parser["device"] = device
    for key, replaced in (("preprocessing", _READERS), ("postprocessing", _WRITERS)):
        steps = parser[f"{key}::transforms"]
        parser[f"{key}::transforms"] = [step for step in steps if not _is_any(step, replaced)]
    parser.parse(True)
    return {key: parser.get_parsed_content(key) for key in _NEEDED}


def _is_any(step: Any, names: tuple[str, ...]) -> bool:
    return isinstance(step, Mapping) and str(step.get("_target_", "")).rsplit(".", 1)[-1] in names


def _load_weights(network: torch.nn.Module, path: Path, title: str, device: torch.device) -> None:
    """Load a state dict; never unpickles anything else, and never loads half of one."""
    try:
        state = _read_weights(path, device)
        state = state.get("model", state.get("state_dict", state))
        missing, unexpected = network.load_state_dict(state, strict=False)
    except BundleError:
        raise
    except Exception as error:  # torch raises many kinds on files and shapes that do not fit
        raise BundleError(f"Bundle {title}: {path.name} cannot be loaded: {type(error).__name__}: {error}") from error
    if missing or unexpected:
        first = ", ".join([*missing, *unexpected][:3])
        told = f"{len(missing)} parameters are missing and {len(unexpected)} unknown ({first} …)"
        raise BundleError(f"Bundle {title}: {path.name} does not fit the network: {told}.")


def _read_weights(path: Path, device: torch.device) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return dict(load_file(path, device=str(device)))
    if path.suffix == ".ts":
        raise BundleError(f"{path}: TorchScript is a program, not weights; ship a state dict or safetensors.")
    state = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(state, dict):
        raise BundleError(f"{path} holds a {type(state).__name__}; a state dict was expected.")
    return state
