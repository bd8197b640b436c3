"""A CT of five synthetic organs, and a bundle that finds them: the load on which a whole reading is measured.

The network is the one of the public CT bundles of the MONAI Model Zoo (spleen_ct_segmentation: a residual U-Net from 16
to 256 channels with batch normalization), with one output more for each organ. It is trained here, in some minutes, on
the organs that are drawn: borders of untrained networks lie everywhere, and would say nothing about equal answers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from monai.bundle.config_parser import ConfigParser
from numpy.typing import NDArray

from node.bundles import SHIPPED, Bundle
from node.bundles import load as load_bundle
from node.simulate.phantoms import volume

SEED, STEPS, PATCH, BATCH = 20, 300, 32, 4
GRID_MM = 1.5
HU = (0, 40, 70, 100, 130, 160)
"""Of the body and of each organ; the noise has a deviation of 12."""
_AIR_HU, _NOISE_HU = -1000, 12
_WINDOW_HU = (-57, 164)
_BODY = (0.5, 0.5, 0.5, 0.8, 0.32, 0.42)
_ORGANS = (
    (0.62, 0.46, 0.33, 0.17, 0.17, 0.16),
    (0.60, 0.55, 0.72, 0.10, 0.10, 0.07),
    (0.42, 0.62, 0.36, 0.11, 0.06, 0.05),
    (0.42, 0.62, 0.64, 0.11, 0.06, 0.05),
    (0.16, 0.45, 0.50, 0.08, 0.08, 0.10),
)
"""Ellipsoids: center and half axes of (slice, row, column), as parts of the whole."""
_NETWORK = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": len(HU),
    "channels": [16, 32, 64, 128, 256],
    "strides": [2, 2, 2, 2],
    "num_res_units": 2,
    "norm": "batch",
}
Shape = tuple[int, int, int]
T = TypeVar("T", np.float32, np.uint8)


def series(folder: Path, shape: Shape, spacing_mm: tuple[float, float, float]) -> Path:
    """Write the CT, one file per slice of (slice, row, column); return `folder`."""
    folder.mkdir()
    for number, (ds, hu) in enumerate(zip(volume("axial", "CT", shape, spacing_mm)[0], _hu(shape), strict=True)):
        ds.PixelData = (hu - float(ds.RescaleIntercept)).clip(0, 4095).astype("<u2").tobytes()
        ds.save_as(folder / f"{number:04}.dcm", enforce_file_format=True)
    return folder


def bundle(
    folder: Path, shape: Shape, spacing_mm: tuple[float, float, float], steps: int = STEPS, device: str = "cpu"
) -> Bundle:
    """Train the network on the CT of `shape` at 1.5 mm, and return the bundle of it in `folder`."""
    shutil.copytree(SHIPPED / "hippocampus", folder)
    slices, rows, columns = (round(count * mm / GRID_MM) for count, mm in zip(shape, spacing_mm, strict=True))
    torch.save(_trained((slices, rows, columns), steps, device).state_dict(), folder / "models" / "model.pt")
    _configure(folder / "configs" / "inference.json")
    (folder / "configs" / "dicom.toml").write_text(_DICOM + "".join(map(_segment, range(1, len(HU)))))
    return load_bundle(folder)


def _trained(shape: Shape, steps: int, device: str) -> torch.nn.Module:
    """Return the network after `steps` steps on random patches, each around a voxel of an organ."""
    torch.manual_seed(SEED)
    rng, low, high = np.random.default_rng(SEED), *_WINDOW_HU
    drawn = _as_read(_labels(shape))
    voxels = [np.argwhere(drawn == value) for value in range(1, len(HU))]
    image = torch.from_numpy(_as_read(((_hu(shape) - low) / (high - low)).clip(0, 1))).to(device)
    labels = torch.from_numpy(drawn.astype(np.int64)).to(device)
    network: torch.nn.Module = ConfigParser({"network": _NETWORK}).get_parsed_content("network").to(device)
    loss = torch.nn.CrossEntropyLoss(torch.tensor([0.2] + [1.0] * (len(HU) - 1), device=device))
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(steps):
        places = [_patch(rng, voxels, drawn.shape) for _ in range(BATCH)]
        answer = network(torch.stack([image[place][None] for place in places]))
        error = loss(answer, torch.stack([labels[place] for place in places]))
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        schedule.step()
    return network.eval().cpu()


def _as_read(grid: NDArray[T]) -> NDArray[T]:
    """Turn (slice, row, column) into what Orientationd makes of it: to the right, to the front, upward."""
    return np.ascontiguousarray(grid.transpose(2, 1, 0)[::-1, ::-1])


def _patch(rng: np.random.Generator, voxels: list[NDArray[np.intp]], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return a cube somewhere around a random one of the `voxels` of a random organ."""
    organ = voxels[rng.integers(1, len(HU)) - 1]
    middle = organ[rng.integers(len(organ))] + rng.integers(-PATCH // 4, PATCH // 4, 3)
    starts = [int(np.clip(at - PATCH // 2, 0, size - PATCH)) for at, size in zip(middle, shape, strict=True)]
    return tuple(slice(start, start + PATCH) for start in starts)


def _labels(shape: Shape) -> NDArray[np.uint8]:
    """Return the organs, uint8 (slice, row, column): 1 to 5."""
    labels = np.zeros(shape, np.uint8)
    for value, organ in enumerate(_ORGANS, 1):
        labels[_inside(shape, organ)] = value
    return labels


def _hu(shape: Shape) -> NDArray[np.float32]:
    clean = np.where(_inside(shape, _BODY), np.array(HU, np.float32)[_labels(shape)], np.float32(_AIR_HU))
    noise = np.random.default_rng(SEED).standard_normal(shape, np.float32)
    return clean + _NOISE_HU * noise


def _inside(shape: Shape, ellipsoid: tuple[float, ...]) -> NDArray[np.bool_]:
    axes = np.ogrid[tuple(slice(0, 1, complex(0, size)) for size in shape)]
    parts = zip(axes, ellipsoid[:3], ellipsoid[3:], strict=True)
    return np.asarray(sum(((axis - center) / half) ** 2 for axis, center, half in parts) < 1)


def _configure(path: Path) -> None:
    """Make the inference of the hippocampus bundle that of an organ bundle: 1.5 mm, HU window, sliding window."""
    config = json.loads(path.read_text())
    low, high = _WINDOW_HU
    window = {"a_min": low, "a_max": high, "b_min": 0.0, "b_max": 1.0, "clip": True}
    before = [
        step
        for step in config["preprocessing"]["transforms"]
        if step["_target_"] not in ("ScaleIntensityRangePercentilesd", "NormalizeIntensityd", "DivisiblePadd")
    ]
    before.insert(-1, {"_target_": "ScaleIntensityRanged", "keys": "image", **window})
    for step in before:
        if step["_target_"] == "Spacingd":
            step["pixdim"] = [GRID_MM] * 3
    config["preprocessing"]["transforms"] = before
    after = config["postprocessing"]["transforms"]
    config["postprocessing"]["transforms"] = [
        step for step in after if step["_target_"] != "KeepLargestConnectedComponentd"
    ]
    config["network_def"] = _NETWORK
    config["inferer"] = {"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96], "overlap": 0.25}
    path.write_text(json.dumps(config))


_DICOM = """
label = "Organs"
kind = "segmentation"
dimensions = 3
manufacturer = "wetread"

[series]
Modality = "CT"
"""


def _segment(value: int) -> str:
    return f"""
[[segment]]
value = {value}
label = "Organ {value}"
category = {{code = "91723000", scheme = "SCT", meaning = "Anatomical Structure"}}
type = {{code = "113343008", scheme = "SCT", meaning = "Organ"}}
color = "#{40 * value:02x}a060"
measurements = ["volume"]
"""
