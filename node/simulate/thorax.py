"""The body of the chest phantom: maps of how many millimeters of tissue a ray meets, drawn from formulas alone.

Nothing here comes from an image of a person. Lengths are millimeters on the film: x from the midline, positive
towards the patient's left (the right side of the picture); y downwards from the upper edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, idctn
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import distance_transform_edt, gaussian_filter

from node.simulate.bones import bones
from node.simulate.vessels import vessels

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]
_WIDE = 4.0
"""Pixels from which a blur goes by way of frequencies."""


@dataclass(frozen=True)
class Build:
    """How this patient differs from the next: factors around 1, and shifts in mm."""

    width: float
    heart: float
    right_dome: float
    left_dome: float
    rib_pitch: float
    girth: float
    tilt: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Build:
        """Return a plausible adult."""
        return cls(
            width=rng.uniform(0.96, 1.03),
            heart=rng.uniform(0.93, 1.05),
            right_dome=rng.uniform(-5, 5),
            left_dome=rng.uniform(-5, 5),
            rib_pitch=rng.uniform(0.97, 1.03),
            girth=rng.uniform(0.94, 1.06),
            tilt=rng.uniform(-0.018, 0.018),
        )


@dataclass(frozen=True)
class Grid:
    """The film: `x` and `y` of each pixel in mm, float32 (row, column), and the pixel pitch."""

    x: Map
    y: Map
    pitch: float

    @classmethod
    def make(cls, size: int, extent_mm: float) -> Grid:
        """Return a square film of `size` pixels on `extent_mm`."""
        pitch = extent_mm / size
        line = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(pitch)
        y, x = np.meshgrid(line, line - np.float32(extent_mm / 2), indexing="ij")
        return cls(x, y, pitch)

    def inside(self, points: NDArray[np.float64]) -> Mask:
        """Return the mask of a closed outline given as (x, y) points."""
        (height, width), half = self.x.shape, self.x.shape[1] * self.pitch / 2
        column, row = (points[:, 0] + half) / self.pitch - 0.5, points[:, 1] / self.pitch - 0.5
        to_column, to_row = np.roll(column, -1) - column, np.roll(row, -1) - row
        lines = np.arange(height)[:, None]
        line, edge = np.nonzero((row <= lines) != (row + to_row <= lines))
        crossed = column[edge] + (line - row[edge]) / to_row[edge] * to_column[edge]
        turns = np.zeros((height, width + 1), np.intp)
        np.add.at(turns, (line, np.clip(np.ceil(crossed), 0, width).astype(np.intp)), 1)
        return np.asarray(np.cumsum(turns, axis=1)[:, :-1] % 2, np.bool_)  # even-odd rule


def blurred(image: Map, width: float) -> Map:
    """Return a map blurred by a Gaussian of `width` pixels; what is beyond the edge mirrors what is before it.

    A wide one is a product of cosine transforms, which takes the same time for any width.
    """
    if width < _WIDE:
        return np.asarray(gaussian_filter(image, width), np.float32)
    rows, columns = (np.exp(-0.5 * (width * np.pi * np.arange(size) / size) ** 2) for size in image.shape)
    return np.asarray(idctn(dctn(image) * (rows[:, None] * columns).astype(np.float32)), np.float32)


@dataclass(frozen=True)
class Thorax:
    """What the rays meet, each map float32 (row, column) in mm; `lung_fields` is the truth to find.

    `lung_fields` follows the usual hand-drawn masks: from the apex down to the dome of the diaphragm, with the part
    behind the heart, without the spine. Row and column as in the picture; 1 right lung, 2 left lung.
    """

    soft: Map
    lung: Map
    bone: Map
    lung_fields: NDArray[np.uint8]


# The pleural outline of the right lung, apex to costophrenic angle, as |x| and y; the left one is its mirror image.
_WALL_Y = np.array([54.0, 56, 62, 76, 104, 140, 180, 220, 255, 283, 320, 350])
_WALL_X = np.array([50.0, 60, 73, 88, 106, 121, 133, 142, 148, 151, 150, 147])
_APEX = np.array([(17.0, 84), (20, 72), (28, 62), (38, 56)])
# The dome of each diaphragm, from the spine outwards.
_DOME_X = np.array([0.0, 16, 35, 55, 80, 100, 122, 138, 151, 170])
_RIGHT_DOME_Y = np.array([260.0, 256, 250, 245, 242, 244, 252, 264, 283, 310])
_LEFT_DOME_Y = np.array([261.0, 259, 255, 252, 251, 254, 262, 272, 286, 312])

# Great vessels, heart's foot and spine side of the mediastinum: y, x of the middle, half width.
_PEDICLE = [
    *((44.0, 0.0, 30.0), (75, -1, 30), (105, -5, 33), (125, -6, 34), (148, -4, 30), (170, -3, 34)),
    *((215.0, 2.0, 40.0), (242, 12, 50), (262, 22, 60), (300, 24, 64)),
]


def thorax(grid: Grid, rng: np.random.Generator) -> Thorax:
    """Return one thorax, standing, in deep inspiration, seen from behind (PA)."""
    build = Build.draw(rng)
    pleura = {side: grid.inside(_lung_outline(build, side)) for side in (-1, 1)}
    domes = {-1: _dome(grid, _RIGHT_DOME_Y + build.right_dome), 1: _dome(grid, _LEFT_DOME_Y + build.left_dome)}
    fields = np.zeros(grid.x.shape, np.uint8)
    for label, side in ((1, -1), (2, 1)):
        fields[pleura[side] & (grid.y < domes[side])] = label
    body = _body(grid, build)
    lung = _lungs(grid, build, pleura, domes)
    lung = np.minimum(lung, 0.82 * body)
    lung = np.clip(lung - _mediastinum(grid, build), 0.06 * lung, None)
    tree = vessels(grid.x, grid.y, grid.pitch, fields > 0, rng)
    blood = np.minimum(tree * np.clip(lung / 60, 0.25, 1), 0.9 * lung)
    lung = lung - blood
    air = _airways(grid) + _gas(grid, rng)
    wall = build.width
    bone = bones(grid.x / wall, grid.y + build.tilt * grid.x, build.rib_pitch, lambda y: np.interp(y, _WALL_Y, _WALL_X))
    soft = np.clip(body - lung - air - 0.5 * bone, 0, None)
    return Thorax(soft, lung, np.where(body > 5, bone, 0).astype(np.float32), fields)


def _lung_outline(build: Build, side: int) -> NDArray[np.float64]:
    """Return the outline of the pleural cavity of one side down to the lowest recess, (x, y) in mm."""
    smooth = PchipInterpolator(_WALL_Y, _WALL_X)
    y = np.linspace(_WALL_Y[0], 330, 120)
    wall = np.stack([smooth(y) * build.width, y], axis=1)
    spine = np.array([(17.0, 330), (15.0, 200), (15.5, 120)])
    points = np.concatenate([_APEX, wall, spine])
    return points * (side, 1)


def _dome(grid: Grid, heights: NDArray[np.float64]) -> Map:
    """Return, for each pixel, the y of the diaphragm's dome at its x."""
    return np.asarray(PchipInterpolator(_DOME_X, heights)(np.clip(np.abs(grid.x), 0, 170)), np.float32)


def _round(distance: Map, radius: float) -> Map:
    """Return 0..1, how thick a body with a circular edge is at a depth below its edge."""
    depth = np.clip(distance / radius, 0, 1)
    return np.asarray(np.sqrt(1 - (1 - depth) ** 2), np.float32)


def _ellipse(grid: Grid, center: tuple[float, float], axes: tuple[float, float], turn: float = 0.0) -> Map:
    """Return sqrt(1 - r²) inside an ellipse, turned clockwise by `turn` degrees: an ellipsoid's share of its depth."""
    angle = np.deg2rad(turn)
    x, y = grid.x - center[0], grid.y - center[1]
    along = x * np.cos(angle) + y * np.sin(angle)
    across = -x * np.sin(angle) + y * np.cos(angle)
    return np.asarray(np.sqrt(np.clip(1 - (along / axes[0]) ** 2 - (across / axes[1]) ** 2, 0, 1)), np.float32)


def _body(grid: Grid, build: Build) -> Map:
    """Return the thickness of neck, trunk, shoulders and arms."""
    x, y = np.abs(grid.x) / build.width, grid.y
    edge = np.interp(y, [0, 14, 26, 36, 46, 60, 80, 120, 200, 360], [54, 56, 64, 82, 118, 158, 170, 169, 166, 171])
    deep = np.interp(y, [0, 30, 60, 90, 140, 200, 260, 300, 360], [112, 116, 130, 160, 196, 212, 216, 222, 226])
    trunk = build.girth * deep * np.clip(1 - (x / edge) ** 2.5, 0, None) ** 0.5
    along = np.clip(((x - 118) * 0.46 + (y - 62) * 0.89) / 200, -0.15, 1)
    off = np.hypot(x - 118 - along * 200 * 0.62, y - 74 - along * 200 * 0.78)
    arm = 1.75 * np.sqrt(np.clip(np.interp(along, [-0.15, 0.3, 1], [30, 44, 40]) ** 2 - off**2, 0, None))
    breast = 14 * (_ellipse(grid, (-78, 222), (58, 44)) + _ellipse(grid, (78, 222), (58, 44)))
    return np.asarray((trunk**2 + arm**2) ** 0.5 + breast * (trunk > 40), np.float32)


def _lungs(grid: Grid, build: Build, pleura: dict[int, Mask], domes: dict[int, Map]) -> Map:
    """Return how much lung a ray would meet without a heart."""
    y = np.linspace(_WALL_Y[0], 350, 150)
    wall = PchipInterpolator(_WALL_Y, _WALL_X)(y) * build.width
    hull = np.concatenate([np.stack([-wall, y], 1), np.stack([wall, y], 1)[::-1]])
    cavity = grid.inside(hull)
    cavity[-1] = False
    depth = distance_transform_edt(np.pad(cavity, ((0, 400), (0, 0)), mode="edge"))[: cavity.shape[0]] * grid.pitch
    thick = 150 * _round(depth.astype(np.float32), 92)
    thick *= np.interp(np.abs(grid.x), [14, 20, 30, 45, 60], [0.30, 0.48, 0.78, 0.94, 1.0]).astype(np.float32)
    lung = np.zeros_like(thick)
    for side, mask in pleura.items():
        below = np.clip(grid.y - domes[side], 0, None)
        lung += np.where(mask, thick * (1 - _round(below, 26)), 0)
    return lung


def _mediastinum(grid: Grid, build: Build) -> Map:
    """Return the depth of heart and great vessels, which stand where lung would be."""
    k = build.heart
    ventricles = 112 * k * _ellipse(grid, (31, 225), (68 * k, 43 * k), 34)
    outflow = 84 * k * _ellipse(grid, (16, 196), (44 * k, 34 * k), 58)
    atrium = 92 * k * _ellipse(grid, (-6, 216), (36 * k, 47 * k), -4)
    trunk = 58 * _ellipse(grid, (19, 163), (21, 34), -12)
    arch = 62 * _ellipse(grid, (17, 122), (20, 21))
    aorta = 30 * _column(grid, [(112, 23, 10), (160, 21, 11), (300, 12, 11)])
    pedicle = 74 * _column(grid, _PEDICLE)
    crus = 70 * _ellipse(grid, (26, 266), (50, 20))
    fat_pad = 18 * _ellipse(grid, (86, 258), (26, 15))
    parts = [ventricles, outflow, atrium, trunk, arch, pedicle, crus]
    merged = np.sum([part**4 for part in parts], axis=0) ** 0.25  # a soft maximum: one silhouette runs into the next
    return np.asarray(merged + aorta + fat_pad, np.float32)


def _column(grid: Grid, stations: list[tuple[float, float, float]]) -> Map:
    """Return the share of depth of an upright body through stations (y, x, radius), thin towards its edges."""
    y, x, radius = np.array(sorted(stations)).T
    center, wide = PchipInterpolator(y, x), PchipInterpolator(y, radius)
    rows = np.clip(grid.y[:, :1], y[0], y[-1])
    ends = np.clip((grid.y - y[0] + 10) / 20, 0, 1) * np.clip((y[-1] - grid.y) / 10, 0, 1)
    share = np.clip(1 - ((grid.x - center(rows)) / wide(rows)) ** 2, 0, 1) ** 0.8
    return np.asarray(share * ends, np.float32)


def _airways(grid: Grid) -> Map:
    """Return the air in trachea and main bronchi."""
    trachea = 17 * _column(grid, [(-20, 0, 8.5), (0, 0, 8.5), (60, 0, 8.5), (110, -3, 8.2), (170, -4, 8)])
    air = trachea * np.clip((150 - grid.y) / 6, 0, 1)
    for x_end, y_end in ((-34.0, 172.0), (38.0, 176.0)):
        air = np.maximum(air, _bronchus(grid, (-4, 142), (x_end, y_end), 6.5))
    return air.astype(np.float32)


def _bronchus(grid: Grid, start: tuple[float, float], end: tuple[float, float], radius: float) -> Map:
    along = np.array(end) - start
    t = np.clip(((grid.x - start[0]) * along[0] + (grid.y - start[1]) * along[1]) / (along @ along), 0, 1)
    off = np.hypot(grid.x - start[0] - t * along[0], grid.y - start[1] - t * along[1])
    return np.asarray(1.6 * np.sqrt(np.clip((radius * (1 - 0.4 * t)) ** 2 - off**2, 0, None)), np.float32)


def _gas(grid: Grid, rng: np.random.Generator) -> Map:
    """Return the gas under the left dome: the stomach's bubble with its fluid level, and some bowel."""
    bubble = 26 * np.maximum(_ellipse(grid, (60, 290), (30, 21), 14), _ellipse(grid, (82, 296), (24, 24)))
    bubble = blurred(bubble * np.clip((301 - grid.y) / 2, 0, 1), 0.8 / grid.pitch)
    for _ in range(2):
        left, low = rng.uniform(70, 110), rng.uniform(312, 338)
        for step in range(4):  # the haustra of the colon
            center = (left + 9 * step, low + rng.uniform(-4, 4))
            loop = 9 * _ellipse(grid, center, (rng.uniform(6, 10), rng.uniform(5, 8)), rng.uniform(-40, 40))
            bubble = np.maximum(bubble, blurred(loop, 1.2 / grid.pitch))
    return np.asarray(bubble, np.float32)
