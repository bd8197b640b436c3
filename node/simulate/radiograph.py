"""From tissue along each ray to what a radiograph shows: attenuation, scatter, quantum noise, and the display curve."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from node.simulate.thorax import Grid, Map, Thorax, blurred, thorax

Lobe = Literal["right upper", "right lower", "left lower"]

MU_SOFT = 0.0190
"""Effective linear attenuation in 1/mm at about 120 kV after hardening; likewise below."""
MU_LUNG = 0.0052
MU_BONE = 0.0440
PHOTONS = 2.2e4
"""Detected photons per pixel without a patient."""
SCATTER_SHARE = 0.10
"""Scatter behind the grid, as a share of the mean open field."""

_LOBES: dict[Lobe, tuple[float, float, float, float]] = {  # center x, y and radii in mm
    "right upper": (-62, 96, 46, 34),
    "right lower": (-84, 212, 48, 36),
    "left lower": (92, 222, 40, 38),
}


@lru_cache(maxsize=8)
def radiograph(
    size: int, extent_mm: float, seed: int, opacity: Lobe | None = None
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Return a frontal film and its true lung fields (1 right, 2 left), both (row, column) and read-only.

    The film is uint16 of 12 bits, bone bright, `size` pixels on `extent_mm`. The last few are kept.
    """
    rng = np.random.default_rng(seed)
    grid = Grid.make(size, extent_mm)
    body = thorax(grid, rng)
    ray = _attenuation(grid, body, opacity, rng)
    film = _display(grid, _expose(grid, ray, rng), body)
    for image in (film, body.lung_fields):
        image.setflags(write=False)
    return film, body.lung_fields


def _attenuation(grid: Grid, body: Thorax, opacity: Lobe | None, rng: np.random.Generator) -> Map:
    """Return the line integral of attenuation, with the lung's fine texture and the consolidation, if any."""
    texture = sum(
        weight * _noise(grid, rng, width) for weight, width in ((0.012, 0.6), (0.016, 1.4), (0.018, 4.0), (0.03, 16.0))
    )
    density = 1 + texture
    lung = body.lung * MU_LUNG * density
    if opacity:
        lung = lung + _consolidation(grid, opacity, rng) * body.lung * (0.40 * MU_SOFT)
    tissue = body.soft * MU_SOFT * (1 + 0.006 * _noise(grid, rng, 9.0) + 0.003 * _noise(grid, rng, 2.5))
    marrow = 1 + 0.10 * _noise(grid, rng, 0.9)
    return np.asarray(tissue + lung + body.bone * MU_BONE * marrow + _marker(grid), np.float32)


def _noise(grid: Grid, rng: np.random.Generator, width_mm: float) -> Map:
    """Return smooth noise of unit variance, its grains about `width_mm` wide."""
    raw = blurred(rng.standard_normal(grid.x.shape).astype(np.float32), width_mm / grid.pitch)
    return np.asarray(raw / raw.std(), np.float32)


def _consolidation(grid: Grid, lobe: Lobe, rng: np.random.Generator) -> Map:
    """Return 0..1, the share of air spaces that are filled: a lobe with a soft, patchy edge."""
    x, y, wide, high = _LOBES[lobe]
    away = np.hypot((grid.x - x) / wide, (grid.y - y) / high)
    ragged = away + 0.20 * _noise(grid, rng, 9.0) + 0.12 * _noise(grid, rng, 3.0)
    return np.asarray(1 / (1 + np.exp((ragged - 0.80) / 0.16)), np.float32)


def _marker(grid: Grid) -> Map:
    """Return a lead letter R beside the patient's right shoulder, as ray attenuation."""
    x, y = grid.x + 164, grid.y - 20
    stem = (np.abs(x) < 1.2) & (np.abs(y) < 8)
    bow = (np.abs(np.hypot(x - 1.5, y + 3.6) - 3.8) < 1.2) & (x > -1)
    leg = (np.abs(y - 1.4 * (x - 1.0)) < 2.0) & (y > 0) & (y < 8)
    return np.asarray(blurred(6.0 * (stem | bow | leg).astype(np.float32), 0.28 / grid.pitch), np.float32)


def _expose(grid: Grid, ray: Map, rng: np.random.Generator) -> Map:
    """Return -ln of the detector's signal: Beer-Lambert, scatter, blur, Poisson noise."""
    primary = blurred(np.exp(-ray), 0.25 / grid.pitch)
    behind = np.where(ray > 0.3, primary, 0)
    scatter = SCATTER_SHARE * blurred(behind, 28 / grid.pitch)
    counts = rng.poisson(PHOTONS * (primary + scatter)).astype(np.float32)
    return np.asarray(-np.log(np.clip(counts, 1, None) / np.float32(PHOTONS)), np.float32)


def _display(grid: Grid, signal: Map, body: Thorax) -> NDArray[np.uint16]:
    """Return 12-bit presentation values: local contrast as processing stations set it, then an S-shaped curve."""
    broad = blurred(signal, 17 / grid.pitch)
    shown = broad + 1.44 * (signal - broad)
    dark = np.percentile(shown[body.lung_fields > 0], 3)
    bright = np.percentile(shown[(body.lung_fields == 0) & (body.soft > 60)], 88)
    level = 0.10 + 0.90 * (shown - dark) / (bright - dark)
    curve = 1 / (1 + np.exp(-4.0 * (level - 0.48)))
    low, high = 1 / (1 + np.exp(4.0 * 0.52)), 1 / (1 + np.exp(-4.0 * 0.66))
    return np.asarray(np.clip(4095 * (curve - low) / (high - low), 0, 4095), np.uint16)
