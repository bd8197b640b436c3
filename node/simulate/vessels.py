"""The pulmonary vessels of the chest phantom: trees that grow from the hila, taper and fork, as mm of blood."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]
THINNEST_MM = 0.35
CONTRAST = 2.6
"""How many vessels of this size a ray meets: only some of them are drawn."""


@dataclass(frozen=True)
class Twig:
    """A straight piece of vessel from a point, at an angle, with its radius at both ends; mm and radians."""

    x: float
    y: float
    angle: float
    length: float
    radius: float
    tip: float

    @property
    def end(self) -> tuple[float, float]:
        """The far end."""
        return self.x + self.length * np.cos(self.angle), self.y + self.length * np.sin(self.angle)


@dataclass(frozen=True)
class Hilum:
    """Where a tree starts, between which angles in degrees below the horizontal it fans out, in how many trunks."""

    x: float
    y: float
    up: float
    down: float
    trunks: int
    radius: float


HILA = (
    Hilum(-36, 164, -75, 84, 8, 6.4),  # right pulmonary artery
    Hilum(40, 156, -75, 86, 8, 6.2),
    Hilum(-24, 188, -50, 55, 6, 4.6),  # pulmonary veins, lower and flatter
    Hilum(28, 184, -45, 55, 6, 4.6),
)


def vessels(x: Map, y: Map, pitch: float, field: NDArray[np.bool_], rng: np.random.Generator) -> Map:
    """Return mm of blood vessel for each pixel; twigs end where `field`, the lungs, ends."""
    blood = np.zeros_like(x)
    for hilum in HILA:
        tree = np.zeros_like(x)
        for degrees in np.linspace(hilum.up, hilum.down, hilum.trunks) + rng.normal(0, 7, hilum.trunks):
            angle = np.deg2rad(degrees) if hilum.x > 0 else np.pi - np.deg2rad(degrees)
            heavy = 1.0 if degrees > 5 else 0.72  # standing, the lower lobes carry more blood
            radius = heavy * hilum.radius * rng.uniform(0.85, 1.15)
            trunk = Twig(hilum.x, hilum.y, angle, rng.uniform(9, 16), radius, radius * 0.82)
            for twig in _grow(trunk, rng, field, x, pitch):
                _draw(tree, twig, x, y, pitch)
        blood += tree  # arteries and veins cross
    return blood


def _grow(twig: Twig, rng: np.random.Generator, field: NDArray[np.bool_], x: Map, pitch: float) -> Iterator[Twig]:
    """Yield a twig and all that grows from it."""
    yield twig
    column, row = (twig.end[0] - x[0, 0]) / pitch, twig.end[1] / pitch
    inside = 0 <= row < field.shape[0] and 0 <= column < field.shape[1] and field[int(row), int(column)]
    if not inside or twig.tip < THINNEST_MM:
        return
    if rng.random() < 0.55:  # goes on, with a side branch
        daughters = [
            (rng.normal(0, 0.16), 0.93),
            (rng.choice((-1, 1)) * rng.uniform(0.5, 0.95), rng.uniform(0.4, 0.62)),
        ]
    else:  # forks
        spread = rng.uniform(0.32, 0.6)
        daughters = [(spread * rng.uniform(0.4, 0.8), 0.8), (-spread * rng.uniform(0.5, 0.9), 0.74)]
    for turn, share in daughters:
        radius = twig.tip * share
        length = rng.uniform(5.5, 9.5) * (1 + radius / 4)
        yield from _grow(Twig(*twig.end, twig.angle + turn, length, radius, radius * 0.9), rng, field, x, pitch)


def _draw(blood: Map, twig: Twig, x: Map, y: Map, pitch: float) -> None:
    """Add the thickness of a round tube, within its own window."""
    margin = twig.radius + pitch
    (x1, y1), left = twig.end, float(x[0, 0])
    rows = _window(twig.y, y1, margin, 0.0, pitch)
    columns = _window(twig.x, x1, margin, left, pitch)
    dx, dy = x[rows, columns] - twig.x, y[rows, columns] - twig.y
    along = np.clip((dx * np.cos(twig.angle) + dy * np.sin(twig.angle)) / twig.length, 0, 1)
    off = np.hypot(dx - along * (x1 - twig.x), dy - along * (y1 - twig.y))
    radius = twig.radius + (twig.tip - twig.radius) * along
    window = blood[rows, columns]
    np.maximum(window, CONTRAST * 2 * np.sqrt(np.clip(radius**2 - off**2, 0, None)), out=window)


def _window(start: float, end: float, margin: float, origin: float, pitch: float) -> slice:
    """Return the pixels of one axis between two points, with a margin."""
    low, high = min(start, end) - margin - origin, max(start, end) + margin - origin
    return slice(max(int(low / pitch), 0), int(high / pitch) + 2)
