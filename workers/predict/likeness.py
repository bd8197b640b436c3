"""What a guard sees of an image: a small copy of even contrast, its intensity statistics, and an autoencoder for both.

Nothing here knows what is normal: `workers/predict/guard.py` compares, `workers/train/guard.py` learns.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from node.findings import Volume

SIDE = {2: 64, 3: 32}
"""Pixels or voxels along each side of the small copy, by the dimensions of the bundle."""
CODE = {2: 32, 3: 16}
_CHANNELS = {2: (32, 48, 64), 3: (32, 48)}
_PERCENTILES = (1.0, 99.0)
_MOST_SAMPLES = 1 << 18
_DARK, _BRIGHT = 0.02, 0.98
STATISTICS = (
    "mean brightness",
    "contrast",
    "10th percentile",
    "25th percentile",
    "median",
    "75th percentile",
    "90th percentile",
    "share of black",
    "share of white",
    "share of pixels at the lower limit",
    "share of pixels at the upper limit",
    "fine detail",
    "middle detail",
    "coarse detail",
    "symmetry of left and right",
    "brightness of the border",
    "brightness of the top",
    "brightness of the bottom",
    "brightness of the middle",
)
"""The names of `statistics`, in its order, as people read them."""


class Autoencoder(nn.Module):
    """Squeezes a small copy through a code of a few numbers and draws it again from them."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        channels, code = _CHANNELS[dimensions], CODE[dimensions]
        conv, back = (nn.Conv2d, nn.ConvTranspose2d) if dimensions == 2 else (nn.Conv3d, nn.ConvTranspose3d)
        self._least = (channels[-1], *([SIDE[dimensions] // 2 ** (len(channels) + 1)] * dimensions))
        flat = int(np.prod(self._least))
        down: list[nn.Module] = [conv(1, channels[0], 4, stride=4)]  # patches first: it must be quick without a GPU
        up: list[nn.Module] = []
        for before, after in pairwise(channels):
            down += [nn.GELU(), conv(before, after, 3, stride=2, padding=1)]
            up = [nn.GELU(), back(after, before, 2, stride=2), *up]
        self.encoder = nn.Sequential(*down, nn.GELU(), nn.Flatten(), nn.Linear(flat, code))
        self.spread = nn.Linear(code, flat)
        self.decoder = nn.Sequential(*up, nn.GELU(), back(channels[0], 1, 4, stride=4))

    def forward(self, copies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, 1, …) small copies → (n, code), (n, 1, …) the copies drawn again."""
        code = self.encoder(copies)
        return code, self.decoder(self.spread(code).reshape(-1, *self._least))


def small_copy(volume: Volume, dimensions: int) -> torch.Tensor:
    """Return `volume` as (1, side, …) float32 in 0..1: a film as it hangs, a volume in the patient's axes.

    Percentile 1 is 0 and percentile 99 is 1. A volume runs from the feet up, from front to back, and from the
    patient's right to left, whatever way it was cut.
    """
    pixels = volume.pixels if dimensions == 2 else _in_patient_axes(volume)
    low, high = np.percentile(_samples(pixels), _PERCENTILES)
    image = torch.from_numpy(np.ascontiguousarray(pixels[0] if dimensions == 2 else pixels))[None, None]
    image = ((image - float(low)) / max(float(high - low), 1e-6)).clamp(0, 1)
    side = SIDE[dimensions]
    if dimensions == 2:
        return functional.adaptive_avg_pool2d(_at_least(image, side), side)[0]
    return functional.adaptive_avg_pool3d(_at_least(image, side), side)[0]


def statistics(volume: Volume, copy: torch.Tensor) -> NDArray[np.float32]:
    """Return the numbers that `STATISTICS` names."""
    x = copy[0].numpy()
    samples = _samples(volume.pixels)
    at_limits = [float((samples == limit).mean()) for limit in (samples.min(), samples.max())]
    quarter = x.shape[0] // 4
    inner = x[tuple([slice(quarter, -quarter)] * x.ndim)]
    rows = x if x.ndim == 2 else x[::-1].mean(axis=1)  # of a volume the feet come first
    return np.array(
        [
            x.mean(),
            x.std(),
            *np.percentile(x, [10, 25, 50, 75, 90]),
            *(np.log10([(x <= _DARK).mean() + 0.01, (x >= _BRIGHT).mean() + 0.01])),
            *(np.log10([share + 0.01 for share in at_limits])),
            *(np.log10(_detail(copy, factor) + 1e-3) for factor in (1, 2, 4)),
            _correlation(x, x[..., ::-1]),
            (x.sum() - inner.sum()) / (x.size - inner.size),
            rows[:quarter].mean(),
            rows[-quarter:].mean(),
            inner.mean(),
        ],
        np.float32,
    )


def features(autoencoder: Autoencoder, copies: torch.Tensor, told: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return for each of `copies` (n, 1, …) its code, its `told` statistics, and how badly it was drawn again."""
    with torch.inference_mode():
        code, drawn = autoencoder(copies)
        inside = tuple(range(1, copies.ndim))
        misses = [(drawn - copies).abs().mean(inside), _worst(drawn - copies)]
    columns = [code.numpy(), told, *(np.log(miss.numpy()[:, np.newaxis] + 1e-6) for miss in misses)]
    return np.concatenate(columns, axis=1).astype(np.float64)


def _worst(difference: torch.Tensor) -> torch.Tensor:
    """The largest mean miss of any eighth of the image along each side."""
    side = difference.shape[-1] // 8
    pool = functional.avg_pool2d if difference.ndim == 4 else functional.avg_pool3d
    found: torch.Tensor = pool(difference.abs(), side).flatten(1).max(dim=1).values
    return found


def _at_least(image: torch.Tensor, side: int) -> torch.Tensor:
    if min(image.shape[2:]) >= side:
        return image
    larger = [max(there, side) for there in image.shape[2:]]
    return functional.interpolate(image, larger, mode="bilinear" if image.ndim == 4 else "trilinear")


def _samples(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Evenly spread pixels, enough for a percentile."""
    return pixels.reshape(-1)[:: max(pixels.size // _MOST_SAMPLES, 1)]


def _in_patient_axes(volume: Volume) -> NDArray[np.float32]:
    """(slice, row, column) → (feet to head, front to back, right to left) by the nearest axes, not resampled."""
    columns = volume.affine_mm[:3, :3] / np.linalg.norm(volume.affine_mm[:3, :3], axis=0)
    runs: list[int] = []  # for z, y and x the image axis (column, row, slice) that runs along it
    for patient in (2, 1, 0):
        left = [axis for axis in range(3) if axis not in runs]
        runs.append(max(left, key=lambda axis: abs(columns[patient, axis])))
    z, y, x = runs
    turned = volume.pixels.transpose(2 - z, 2 - y, 2 - x)
    flips = [slice(None, None, -1 if columns[p, a] < 0 else 1) for p, a in ((2, z), (1, y), (0, x))]
    return np.ascontiguousarray(turned[tuple(flips)])


def _detail(copy: torch.Tensor, factor: int) -> float:
    """The mean step between neighbors after averaging over `factor` of them."""
    pool = functional.avg_pool2d if copy.ndim == 3 else functional.avg_pool3d
    x = (pool(copy[None], factor) if factor > 1 else copy[None])[0, 0]
    return float(np.mean([x.diff(dim=axis).abs().mean().item() for axis in range(x.ndim)]))


def _correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    a, b = one - one.mean(), other - other.mean()
    return float((a * b).sum() / max(np.sqrt((a**2).sum() * (b**2).sum()), 1e-9))
