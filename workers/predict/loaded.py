"""Images handed over in memory where a bundle would read a file: as MONAI's readers would have left them.

`Loaded` stands in the place of the bundle's `LoadImaged`, so that a step like `ensure_channel_first` is not lost; the
bundle's `SaveImaged` is left out, because the answer stays in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms.compose import Compose
from monai.transforms.transform import MapTransform
from monai.transforms.utility.array import EnsureChannelFirst
from numpy.typing import NDArray

from node.errors import Permanent
from node.findings import Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_READERS = ("LoadImage", "LoadImaged", "LoadImageD", "LoadImageDict")
_WRITERS = ("SaveImage", "SaveImaged", "SaveImageD", "SaveImageDict")
HALF_A_VOXEL = 0.5
"""How far a grid may lie from another, in voxels, before its labels belong to other voxels."""
IMAGE = "image"
"""The key that MONAI Bundles give their input, where they do not say otherwise."""


class Loaded(MapTransform):
    """The place of `LoadImaged`: the images are there already; of its options only the channel axis matters.

    Raises ValueError where another option would have turned the image: the network learned what such images look like.
    """

    def __init__(
        self, keys: Any = IMAGE, reader: Any = None, ensure_channel_first: bool = False, **options: Any
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        _require_as_it_lies(options, str(reader))
        self._first = EnsureChannelFirst() if ensure_channel_first else None

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return `data`, with the channel axis first where the bundle asked its reader for it."""
        found = dict(data)
        for key in self.key_iterator(found) if self._first else ():
            found[key] = self._first(found[key])  # type: ignore[misc]
        return found


def to_images(volume: Volume, keys: Sequence[str], title: str, copy: bool = True) -> dict[str, MetaTensor]:
    """Return `volume` under the keys that a bundle loads: all its channels under one, or one under each of several.

    Raises `Permanent` naming `title` where there are several keys and another number of channels.
    """
    if len(keys) == 1:
        return {keys[0]: to_image(volume, copy)}
    channels = volume.channels or (volume.pixels,)
    if len(channels) != len(keys) or volume.is_color:
        raise Permanent(
            f"{title} loads {len(keys)} images ({', '.join(keys)}) and its dicom.toml gives it {len(channels)}. "
            "Nothing was reported. Name one [[channel]] for each, in this order."
        )
    return {key: _tensor(pixels.copy(), volume, "no_channel") for key, pixels in zip(keys, channels, strict=True)}


def to_image(volume: Volume, copy: bool = True) -> MetaTensor:
    """Return `volume` as MONAI's readers hand images over: float32, (column, row[, slice]), no channel.

    Several series: (channel, column, row, slice), as from a list of files. A color image: (column, row, channel), as
    from a picture file. A stack has a RAS affine in mm, as from a NIfTI file; a film has its pixel grid. In memory a
    stack runs on as it did; without `copy` one series is the very memory of `volume`, which nobody may write to.
    """
    if volume.is_color:
        return _tensor(np.stack(volume.channels, axis=-1), volume, -1)
    if volume.channels:
        return _tensor(np.stack(volume.channels), volume, 0)
    return _tensor(volume.pixels.copy() if copy else volume.pixels, volume, "no_channel")


def _tensor(pixels: np.ndarray[Any, Any], volume: Volume, channel: int | str) -> MetaTensor:
    """([channel,] slice, row, column[, channel]) → its axes turned, with the affine of `volume`."""
    turned = {"no_channel": (2, 1, 0), 0: (0, 3, 2, 1), -1: (2, 1, 0, 3)}[channel]
    array = pixels.transpose(turned)
    if len(volume.sources) == 1:
        array = np.ascontiguousarray(array[..., 0] if channel != -1 else array[:, :, 0])
    meta = {"original_channel_dim": channel, "space": "RAS"}
    return MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(affine_ras_mm(volume)), meta=meta)


def affine_ras_mm(volume: Volume) -> NDArray[np.float64]:
    """Return the affine with which `volume` is handed over: to RAS mm, or of one image its pixel grid alone."""
    if len(volume.sources) == 1:
        return np.diag([*np.linalg.norm(volume.affine_mm[:3, :2], axis=0), 1.0, 1.0])
    return np.asarray(_LPS_TO_RAS @ volume.affine_mm)


def is_on_grid(affine: Any, volume: Volume) -> bool:
    """Say whether an image with this affine, of the shape of `volume`, has its voxels where `volume` has them."""
    slices, rows, columns = volume.pixels.shape
    ends = np.array([[i, j, k, 1.0] for i in (0, columns - 1) for j in (0, rows - 1) for k in (0, slices - 1)]).T
    theirs = np.asarray(to_affine_nd(3, affine), np.float64)
    apart = np.linalg.solve(affine_ras_mm(volume), theirs @ ends) - ends
    return bool(np.abs(apart).max() <= HALF_A_VOXEL)


def in_memory(steps: Any) -> Any:
    """Return the configuration of a Compose's steps with `Loaded` for each reader and without writers."""
    if not isinstance(steps, list):
        return steps
    kept = [step for step in steps if not _is_any(step, _WRITERS)]
    return [{**step, "_target_": f"{__name__}.Loaded"} if _is_any(step, _READERS) else step for step in kept]


def replace_files(steps: Any) -> None:
    """Do the same in place to a Compose that is made already, so that `Invertd` knows it however it came to be."""
    if not isinstance(steps, Compose):
        return
    kept = (step for step in steps.transforms if type(step).__name__ not in _WRITERS)
    steps.transforms = tuple(_replaced(step) if type(step).__name__ in _READERS else step for step in kept)
    for step in steps.transforms:
        replace_files(step)


def keys(before: Any) -> tuple[str, ...]:
    """Return the keys under which a bundle's preprocessing loads its images, in order; `image` where it says none."""
    found = [step for step in steps(before) if isinstance(step, Loaded)]
    return tuple(dict.fromkeys(str(key) for step in found for key in step.keys)) or (IMAGE,)


def steps(chain: Any) -> list[Any]:
    """Return the transforms of a chain, one after the other, those of chains within it among them."""
    inner = getattr(chain, "transforms", None)
    return [chain] if inner is None else [found for step in inner for found in steps(step)]


def _require_as_it_lies(options: Mapping[str, Any], reader: str) -> None:
    turns = {"as_closest_canonical": True, "affine_lps_to_ras": False, "swap_ij": False, "index_order": "C"}
    turns["reverse_indexing"] = "pil" not in reader.lower()  # a reader of pictures does it by itself
    for name, turning in turns.items():
        if name in options and options[name] == turning:
            raise ValueError(
                f"LoadImaged has {name} = {turning}, which turns an image as it is read; here it is handed over as it "
                "lies, with a RAS affine. Take the option out and let an Orientationd turn it, as the network knows it"
            )


def _replaced(step: Any) -> Loaded:
    inner = getattr(step, "_loader", step)
    for reader in getattr(inner, "readers", ()):
        _require_as_it_lies(vars(reader), type(reader).__name__)
    return Loaded(getattr(step, "keys", IMAGE), bool(getattr(inner, "ensure_channel_first", False)))


def _is_any(step: Any, names: tuple[str, ...]) -> bool:
    return isinstance(step, Mapping) and str(step.get("_target_", "")).rsplit(".", 1)[-1] in names
