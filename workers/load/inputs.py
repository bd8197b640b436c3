"""What a bundle reads, as its dicom.toml says: one series, its films, color images, or several series as channels.

Several series are one input only where they lie in one Frame of Reference (PS3.3 §C.7.4.1): otherwise nobody knows that
a voxel of one is the same place as a voxel of another. They are brought onto the grid of the first, and that is told.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from scipy.ndimage import affine_transform

from node.dicomconfig import DicomConfig
from node.errors import Unsuitable
from node.findings import Volume
from workers.load import patients
from workers.load.color import load_color
from workers.load.header import text
from workers.load.series import MAX_VOLUME_BYTES, load

SAME_GRID_VOXELS = 0.05
"""How far, in voxels, the corners of two grids may lie apart and still be one grid."""
COVERED = 0.9
"""The least part of the first series that each other one must cover."""


def load_for(paths: Sequence[Path], dicom: DicomConfig) -> list[Volume]:
    """Read the Part 10 files at `paths` as a bundle with this dicom.toml reads them.

    Files of several series must come in the order of `[[channel]]`. Raises as `workers.load.series.load` does, and
    `Unsuitable` where series are missing, lie in different Frames of Reference, or do not cover the same place.
    """
    if dicom.color:
        return load_color(paths)
    if not dicom.channel:
        return load(paths, dicom.dimensions)
    return [together(paths, [entry.name for entry in dicom.channel])]


def together(paths: Sequence[Path], names: Sequence[str]) -> Volume:
    """Return several series, in the order of their first files, as the channels `names` on the grid of the first."""
    series: dict[str, list[Path]] = {}
    first_of: dict[str, Dataset] = {}
    for path in paths:
        ds = _belongs(path)
        uid = text(ds, "SeriesInstanceUID")
        series.setdefault(uid, []).append(path)
        first_of.setdefault(uid, ds)
    if len(series) != len(names):
        raise Unsuitable(f"{len(series)} series were given for the {len(names)} channels {', '.join(names)}")
    patients.require_one((f"channel {name}", ds) for name, ds in zip(names, first_of.values(), strict=True))
    _require_one_frame([text(ds, "FrameOfReferenceUID") for ds in first_of.values()], names)
    volumes = [_channel(files, name) for files, name in zip(series.values(), names, strict=True)]
    if sum(volume.pixels.nbytes for volume in volumes) > MAX_VOLUME_BYTES:
        allowed = MAX_VOLUME_BYTES >> 30
        raise Unsuitable(f"its {len(names)} channels need more than the {allowed} GiB of memory allowed")
    first, remarks = volumes[0], []
    channels = [first.pixels]
    for volume, name in zip(volumes[1:], names[1:], strict=True):
        on_grid = _is_same_grid(first, volume)
        channels.append(volume.pixels if on_grid else _resampled(volume, first, name))
        if not on_grid:
            remarks.append(f"Channel {name} was resampled onto the grid of channel {names[0]}.")
    return replace(first, channels=tuple(channels), remarks=tuple(remarks))


def _belongs(path: Path) -> Dataset:
    """Return of one file which series and Frame of Reference it is of, and which patient."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags = ["SeriesInstanceUID", "FrameOfReferenceUID", *patients.WHO]
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # pydicom raises many kinds on broken files
        raise Unsuitable(f"{path.name} is not a readable DICOM Part 10 file ({type(error).__name__})") from None


def _require_one_frame(frames: Sequence[str], names: Sequence[str]) -> None:
    for frame, name in zip(frames, names, strict=True):
        if not frame:
            raise Unsuitable(
                f"channel {name} has no Frame of Reference UID (0020,0052): where it lies in the others is unknown"
            )
        if frame != frames[0]:
            raise Unsuitable(
                f"channels {names[0]} and {name} lie in different Frames of Reference; register them first, so that "
                "they share one"
            )


def _channel(paths: Sequence[Path], name: str) -> Volume:
    try:
        [volume] = load(paths, 3)
    except Unsuitable as error:
        raise Unsuitable(f"channel {name}: {error}") from None
    return volume


def _is_same_grid(first: Volume, other: Volume) -> bool:
    if first.pixels.shape != other.pixels.shape:
        return False
    slices, rows, columns = first.pixels.shape
    ends = [[i, j, k, 1.0] for i in (0, columns - 1) for j in (0, rows - 1) for k in (0, slices - 1)]
    corners = np.array(ends).T
    apart = np.linalg.inv(first.affine_mm) @ other.affine_mm @ corners - corners
    return bool(np.abs(apart).max() <= SAME_GRID_VOXELS)


def _resampled(volume: Volume, first: Volume, name: str) -> NDArray[np.float32]:
    """Return `volume` on the grid of `first`, trilinear; its lowest value where it does not reach."""
    turn = np.eye(4)[[2, 1, 0, 3]]  # (column, row, slice) ↔ (slice, row, column)
    to_index = turn @ np.linalg.inv(volume.affine_mm) @ first.affine_mm @ turn
    shape = first.pixels.shape
    inside = affine_transform(
        np.ones(volume.pixels.shape, np.uint8), to_index, output_shape=shape, order=0, mode="grid-constant", cval=0
    )
    covered = float(inside.mean())
    if covered < COVERED:
        raise Unsuitable(f"channel {name} covers {covered:.0%} of the first, less than the {COVERED:.0%} needed")
    lowest = float(volume.pixels.min())
    on_grid = affine_transform(volume.pixels, to_index, output_shape=shape, output=np.float32, order=1, mode="nearest")
    return np.where(inside > 0, on_grid, np.float32(lowest)).astype(np.float32)
