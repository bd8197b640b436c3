"""Saliency as color: a ramp of even steps for the eye, laid over the gray film so that the film stays readable.

The ramp is computed in Oklab (Ottosson 2020), where equal distances look equally far apart: from dark violet to light
yellow, lightness rising all the way, so that it also reads in gray and without red and green.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLORS = 256
CLEAR_BELOW, MOST_OPAQUE = 0.2, 0.55
"""Values up to the first are not drawn; 1 is drawn with the second."""
_LIGHTNESS = (0.38, 0.85)
_HUE_DEG = (310.0, 445.0)  # violet, through red and orange, to yellow
_CHROMA = 0.150
_TO_LMS = np.array(
    [[1.0, 0.3963377774, 0.2158037573], [1.0, -0.1055613458, -0.0638541728], [1.0, -0.0894841775, -1.2914855480]]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


@cache
def ramp() -> NDArray[np.uint8]:
    """Return `COLORS` colors, (color, 3) sRGB, from weak to strong, in steps of equal length in Oklab."""
    dense = _path(np.linspace(0, 1, 64 * COLORS))
    walked = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(dense, axis=0), axis=1))])
    even = np.interp(np.linspace(0, walked[-1], COLORS), walked, np.linspace(0, 1, len(walked)))
    colors = np.asarray(np.round(255 * srgb(_path(even))), np.uint8)
    colors.setflags(write=False)
    return colors


def _path(at: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) in 0..1 → (n, 3) Oklab: lightness, green to red, blue to yellow."""
    hue = np.radians(_HUE_DEG[0] + at * (_HUE_DEG[1] - _HUE_DEG[0]))
    lightness = _LIGHTNESS[0] + at * (_LIGHTNESS[1] - _LIGHTNESS[0])
    return np.stack([lightness, _CHROMA * np.cos(hue), _CHROMA * np.sin(hue)], axis=-1)


def srgb(oklab: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 3) Oklab → (n, 3) sRGB; within 0..1 where the screen can show the color."""
    linear = (oklab @ _TO_LMS.T) ** 3 @ _TO_RGB.T
    curved = 1.055 * np.clip(linear, 0.0031308, None) ** (1 / 2.4) - 0.055
    return np.asarray(np.where(linear <= 0.0031308, 12.92 * linear, curved))


def opacity(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how much of the film the color hides: nothing for weak values, never all."""
    rise = np.clip((values - CLEAR_BELOW) / (1 - CLEAR_BELOW), 0, 1)
    return np.asarray(MOST_OPAQUE * np.sqrt(rise), np.float32)


def over(film: Image.Image, values: NDArray[np.float32]) -> Image.Image:
    """Return `film` with `values` (row, column, 0..1) in color over it; the two cover the same field."""
    scaled = Image.fromarray(np.asarray(values, np.float32)).resize(film.size, Image.Resampling.BILINEAR)
    return Image.fromarray(_blended(np.asarray(film, np.float32), np.clip(np.asarray(scaled, np.float32), 0, 1)))


def bar(width: int, height: int) -> Image.Image:
    """Return the key to the colors, weak on the left, as they look over middle gray."""
    values = np.broadcast_to(np.linspace(0, 1, width, dtype=np.float32), (height, width))
    return Image.fromarray(_blended(np.full((height, width, 3), 128, np.float32), values))


def _blended(ground: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(row, column, 3) ground, (row, column) values → (row, column, 3) uint8."""
    colors = ramp()[np.round(values * (COLORS - 1)).astype(np.intp)]
    share = opacity(values)[..., np.newaxis]
    return np.asarray(np.round(ground * (1 - share) + colors * share), np.uint8)
