"""What a segment measures: counted voxels times their size; nothing in millimeters where none are calibrated."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.codes import AREA, MILLILITER, PIXELS, SQUARE_CENTIMETER, SUM_OF_VOXELS, VOLUME
from node.findings import Measurement, Volume


def volume_ml(mask: NDArray[np.bool_], volume: Volume) -> Measurement:
    """Return the volume of `mask` (slice, row, column) in mL: sum of voxels (126030, DCM)."""
    voxel_mm3 = abs(float(np.linalg.det(volume.affine_mm[:3, :3])))
    return Measurement(VOLUME, int(np.count_nonzero(mask)) * voxel_mm3 / 1000.0, MILLILITER, SUM_OF_VOXELS)


def area(mask: NDArray[np.bool_], volume: Volume) -> Measurement:
    """Return the area of `mask` in cm² where the film is calibrated, else in pixels."""
    pixels = int(np.count_nonzero(mask))
    if volume.spacing_mm is None:
        return Measurement(AREA, float(pixels), PIXELS)
    _, between_rows, between_columns = volume.spacing_mm
    return Measurement(AREA, pixels * between_rows * between_columns / 100.0, SQUARE_CENTIMETER)


def measure(names: list[Any], mask: NDArray[np.bool_], volume: Volume) -> tuple[Measurement, ...]:
    """Return the measurements called `names` in dicom.toml (`"volume"`, `"area"`) of one segment."""
    known = {"volume": volume_ml, "area": area}
    return tuple(known[name](mask, volume) for name in names)
