"""The bones of the chest phantom: ribs, clavicles, scapulae, spine and upper arms, as mm of bone along each ray."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.spatial import cKDTree

Map = NDArray[np.float32]
Wall = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""The half width of the pleural cavity at a height, both in mm."""
_TILE = 8


def bones(x: Map, y: Map, rib_pitch: float, wall: Wall) -> Map:
    """Return all bones; `x`, `y` in mm as in `thorax`."""
    bone = _spine(x, y)
    for number in range(1, 12):
        bone += _rib(x, y, number, rib_pitch, wall)
    bone += _clavicle(np.abs(x), y)
    bone += _scapula(np.abs(x), y)
    bone += _arm(np.abs(x), y)
    return bone


def _tube(offset: Map, half: Map | float, thick: Map | float) -> Map:
    """Return the bone across a long bone: cortex at both edges, spongy bone between, no edge sharper than 1 mm."""
    v = np.abs(offset) / half
    profile = 0.55 + 0.75 * np.clip(v, 0, 1) ** 6
    return np.asarray(thick * profile * np.clip((1.0 - v) * half / 1.0, 0, 1), np.float32)


def _rib(x: Map, y: Map, number: int, pitch: float, wall: Wall) -> Map:
    """Return one pair of ribs: the posterior arc falls gently outwards, the anterior one steeply back inwards."""
    root = 62 + 21.0 * pitch * (number - 1)
    drop = float(np.interp(number, [1, 2, 3, 5, 8, 11], [10, 20, 28, 36, 44, 54]))
    reach = float(wall(np.array(root + drop))) + 3.0 if number > 1 else 60.0
    front = float(np.interp(number, [1, 2, 4, 7, 9, 11], [30, 40, 54, 78, 104, 140]))
    fall = float(np.interp(number, [1, 2, 4, 7, 9], [16, 30, 46, 54, 46]))
    half = float(np.interp(number, [1, 3, 8, 11], [5.6, 6.2, 6.4, 4.6]))
    last = np.pi - np.arcsin(front / reach) if number < 11 else np.pi / 2
    phi = np.linspace(np.arcsin(15.0 / reach), last, 700)
    back, ahead = np.clip(phi, 0, np.pi / 2), np.clip(phi - np.pi / 2, 0, None)
    line_x = reach * np.sin(phi)
    line_y = root - 4 * np.sin(2 * back) + drop * (2 * back / np.pi) ** 1.6 + fall * (2 * ahead / np.pi) ** 1.15
    return _band(x, y, np.stack([line_x, line_y], 1), phi, half)


def _band(x: Map, y: Map, line: NDArray[np.float64], phi: NDArray[np.float64], half: float) -> Map:
    """Return a rib along its center line; `phi` runs from the spine (0) by the flank (90 degrees) to the front."""
    rib = np.zeros_like(x)
    side = np.abs(x)
    low, high = line.min(axis=0) - half, line.max(axis=0) + half
    near = (side > low[0]) & (side < high[0]) & (y > low[1]) & (y < high[1])
    tree = cKDTree(line)
    near &= _around(tree, side, y, half)
    distance, index = tree.query(np.stack([side[near], y[near]], 1), distance_upper_bound=half)
    index = np.minimum(index, len(line) - 1)
    edge = 2.6 + (half - 2.6) * np.abs(np.cos(phi[index])) ** 0.6  # at the flank the band is seen edge on
    distance = np.minimum(distance, edge)
    through = 1 / np.clip(np.abs(np.cos(phi[index])), 0.42, 1)  # at the flank the ray runs along the rib
    ends = np.clip(np.minimum(index, len(line) - 1 - index) / 25, 0, 1)
    front = np.where(phi[index] > np.pi / 2, 0.8, 1.0)
    rib[near] = _tube(distance.astype(np.float32), edge.astype(np.float32), 5.0) * through * ends * front
    return rib


def _around(tree: cKDTree, side: Map, y: Map, reach: float) -> NDArray[np.bool_]:
    """Return the tiles of pixels of which some may be within `reach` of the line."""
    corners = np.stack([side[::_TILE, ::_TILE], y[::_TILE, ::_TILE]], -1)
    diagonal = 1.5 * _TILE * float(y[1, 0] - y[0, 0])
    distance, _ = tree.query(corners, distance_upper_bound=reach + diagonal)
    tiles = np.isfinite(distance).repeat(_TILE, 0).repeat(_TILE, 1)
    return np.asarray(tiles[: y.shape[0], : y.shape[1]], np.bool_)


def _clavicle(side: Map, y: Map) -> Map:
    stations = np.array([(10.0, 88), (24, 84), (48, 75), (80, 63), (110, 53), (138, 47), (156, 48)])
    line = PchipInterpolator(stations[:, 0], stations[:, 1])(np.clip(side, 10, 156))
    half = np.interp(side, [10, 24, 60, 120, 156], [10, 7, 5.2, 5.6, 7])
    ends = np.clip((side - 10) / 4, 0, 1) * np.clip((156 - side) / 4, 0, 1)
    return np.asarray(_tube((y - line).astype(np.float32) * 0.95, half.astype(np.float32), 11.5) * ends, np.float32)


def _scapula(side: Map, y: Map) -> Map:
    """Return both shoulder blades, turned outwards: a thin plate, its borders, the spine of the blade, the glenoid."""
    inner = np.interp(y, [70, 110, 150, 188], [118, 116, 124, 138])
    outer = np.interp(y, [70, 90, 120, 160, 188], [154, 152, 147, 143, 141])
    height = np.clip((y - 66) / 4, 0, 1) * np.clip((192 - y) / 5, 0, 1)
    inside = np.clip(np.minimum(side - inner, outer - side) / 2 + 0.5, 0, 1)
    plate = 1.8 * inside * height
    border = 3.0 * np.exp(-(((side - inner) / 2.0) ** 2)) + 4.6 * np.exp(-(((side - outer) / 3.2) ** 2))
    ridge = 6.0 * np.exp(-(((y - (100 - 0.75 * (side - 118))) / 4.5) ** 2)) * np.clip((side - 116) / 8, 0, 1)
    ridge *= np.clip((168 - side) / 6, 0, 1)
    return np.asarray(plate + border * height + ridge, np.float32)


def _arm(side: Map, y: Map) -> Map:
    """Return the heads and shafts of the humeri."""
    head = 15 * np.sqrt(np.clip(1 - np.hypot(side - 157, y - 70) ** 2 / 22**2, 0, 1))
    axis = 163 + 0.50 * (y - 76)
    shaft = _tube((0.89 * (side - axis)).astype(np.float32), 10.5, 10.0) * np.clip((y - 78) / 8, 0, 1)
    return np.asarray(np.maximum(head, shaft), np.float32)


def _spine(x: Map, y: Map) -> Map:
    """Return the vertebrae: bodies with end plates and pedicles, transverse and spinous processes."""
    bone = np.zeros_like(x)
    top, height = -14.0, 15.5
    while top < 360:
        half = float(np.interp(top, [0, 60, 120, 360], [11, 13.5, 15.5, 21]))
        near = (np.abs(x) < half + 14) & (np.abs(y - top - height / 2) < 2 * height)  # beyond, it is nothing
        bone[near] += _vertebra(x[near], y[near], top, height, half)
        top, height = top + height + 3.4, min(height + 0.7, 19 + 0.012 * top)
    return bone


def _vertebra(x: Map, y: Map, top: float, height: float, half: float) -> Map:
    middle = top + height / 2
    u, v = x / half, (y - middle) / (height / 2)
    waist = 1 - 0.08 * np.clip(1 - v**2, 0, 1)
    inside = np.clip((1 - np.abs(v)) * height / 3, 0, 1) * np.clip((waist - np.abs(u)) * half / 1.5, 0, 1)
    body = inside * (4.2 + 1.8 * np.clip(np.abs(v), 0, 1) ** 8 + 1.2 * np.clip(np.abs(u), 0, 1) ** 8)
    ring = np.hypot((np.abs(x) - 0.62 * half) / (0.2 * half), (y - middle + 0.12 * height) / (0.24 * height))
    pedicle = 2.6 * np.exp(-(((ring - 1) / 0.35) ** 2))
    spinous = 3.2 * np.exp(-((x / 2.6) ** 4) - ((y - middle - 0.42 * height) / (0.36 * height)) ** 4)
    along = np.clip((np.abs(x) - 0.8 * half) / 4, 0, 1) * np.clip((half + 13 - np.abs(x)) / 4, 0, 1)
    transverse = 2.0 * along * np.exp(-(((y - middle + 0.2 * height + 0.12 * np.abs(x)) / 4.2) ** 4))
    return np.asarray(body + pedicle + spinous + transverse, np.float32)
