"""Stored values become numbers with a meaning: rescaled units for volumes, display values for films.

The grayscale pipeline of PS3.4 §N.2: Modality LUT, VOI LUT, Presentation LUT. Volumes stop after the first; films
go through all three, so that bone is bright whatever the Photometric Interpretation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from node.errors import Unsuitable
from workers.load.header import integer, number, text


def rescaled(
    stored: NDArray[Any],
    ds: Dataset,
    name: str,
    transformation: Dataset | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return one frame in rescaled units (HU, Bq/ml, arbitrary MR units), float32; padding takes the lowest value.

    `transformation` is the frame's item of Pixel Value Transformation Sequence (PS3.3 §C.7.6.16.2.9) where an
    enhanced object has one; otherwise Modality LUT, Rescale Slope and Rescale Intercept of the instance apply.
    `out`, where given, takes the frame and is returned.
    """
    if out is None:
        out = np.empty(stored.shape, np.float32)
    source, padding = transformation if transformation is not None else ds, _padding(stored, ds)
    factors = _whole_factors(stored, source, ds)
    if factors is not None and padding is None:
        np.multiply(stored, np.float32(factors[0]), out=out, dtype=np.float32, casting="same_kind")
        return np.add(out, np.float32(factors[1]), out=out) if factors[1] else out
    out[...] = _finished(_modality(stored, source, ds, name), padding, name)
    return out


def require_hounsfield(ds: Dataset, name: str, transformation: Dataset | None = None) -> None:
    """Raise `Unsuitable` where the values of a CT are not in Hounsfield units, or nobody says how they become such.

    Slope and Intercept are type 1 in a CT image; maps of iodine or of electron density are CT images too, in units of
    their own (PS3.3 §C.8.2.1.1.4, §C.11.1.1.2). "US", unspecified, is what exporters write under Hounsfield units.
    """
    source = transformation if transformation is not None else ds
    if "RescaleIntercept" not in source and not (source is ds and ds.get("ModalityLUTSequence")):
        raise Unsuitable(
            f"{name} is a CT without Rescale Intercept (0028,1052): what its values are in Hounsfield units is unknown"
        )
    kind = text(source, "RescaleType") or text(ds, "RescaleType")
    if kind in _OTHER_UNITS:
        raise Unsuitable(f"{name} is a CT in {kind} ({_OTHER_UNITS[kind]}), not in Hounsfield units")


_OTHER_UNITS = {
    "OD": "thousandths of optical density",
    "MGML": "mg/ml",
    "Z_EFF": "effective atomic number",
    "ED": "electron density",
    "EDW": "electron density relative to water",
    "PCT": "percent",
}
"""Defined Terms of Rescale Type that are none of Hounsfield units (HU, HU_MOD)."""


def is_all_padding(stored: NDArray[Any], ds: Dataset) -> bool:
    """Say whether a frame is nothing but padding, as the ends of a volume that was cut at a slant."""
    padding = _where_padded(stored, ds)
    return padding is not None and bool(padding.all())


def displayed(stored: NDArray[Any], ds: Dataset, name: str) -> NDArray[np.float32]:
    """Return one film as display values, float32, bone bright: the first VOI LUT or window, MONOCHROME1 inverted."""
    padding = _padding(stored, ds)
    values = _windowed(_modality(stored, ds, ds, name), ds)
    if text(ds, "PhotometricInterpretation") == "MONOCHROME1" or text(ds, "PresentationLUTShape") == "INVERSE":
        values = values.max() + values.min() - values
    return _finished(values, padding, name)


def _modality(stored: NDArray[Any], source: Dataset, ds: Dataset, name: str) -> NDArray[Any]:
    if source is ds and ds.get("ModalityLUTSequence"):
        try:
            return np.asarray(apply_modality_lut(stored, ds), dtype=np.float64)
        except Exception as error:  # pydicom raises many kinds on broken tables
            raise Unsuitable(f"{name} has a broken Modality LUT ({type(error).__name__})") from None
    factors = [number(source, keyword) if keyword in source else default for keyword, default in _RESCALE]
    slope, intercept = factors
    if slope is None or intercept is None:
        raise Unsuitable(f"{name} has a Rescale Slope or Intercept that is no number")
    return stored.astype(np.float64) * slope + intercept


_RESCALE = (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
_WHOLE_IN_SINGLE = 2**24
"""Whole numbers up to here are exact in float32."""


def _whole_factors(stored: NDArray[Any], source: Dataset, ds: Dataset) -> tuple[float, float] | None:
    """Return slope and intercept where float32 rescales without an error, as for nearly every CT; None elsewhere."""
    if stored.dtype.itemsize > 2 or (source is ds and "ModalityLUTSequence" in ds):
        return None
    slope, intercept = (number(source, keyword) if keyword in source else default for keyword, default in _RESCALE)
    if slope is None or intercept is None or not (slope.is_integer() and intercept.is_integer()):
        return None
    return (slope, intercept) if 2**16 * abs(slope) + abs(intercept) <= _WHOLE_IN_SINGLE else None


def _windowed(values: NDArray[Any], ds: Dataset) -> NDArray[Any]:
    """Apply the first VOI LUT or window; one that is broken or leaves nothing to see is passed over."""
    if not ds.get("VOILUTSequence") and _has_no_window(ds):
        return values
    try:
        # A VOI LUT is indexed by whole numbers; a window takes the values as they are.
        given = np.rint(values).astype(np.int64) if ds.get("VOILUTSequence") else values
        seen = np.asarray(apply_voi_lut(given, ds, index=0), dtype=np.float64)
    except Exception:  # a broken window must not hide the film; the values themselves are sound
        return values
    return seen if np.ptp(seen) > 0 and np.isfinite(seen).all() else values


def _has_no_window(ds: Dataset) -> bool:
    return not text(ds, "WindowCenter") or not text(ds, "WindowWidth")


def _padding(stored: NDArray[Any], ds: Dataset) -> NDArray[np.bool_] | None:
    """Where the pixels are padding (PS3.3 §C.7.5.1.1.2), or None where none or all of them are."""
    padding = _where_padded(stored, ds)
    return padding if padding is not None and padding.any() and not padding.all() else None


def _where_padded(stored: NDArray[Any], ds: Dataset) -> NDArray[np.bool_] | None:
    first = _as_stored(ds, "PixelPaddingValue")
    if first is None:
        return None
    last = _as_stored(ds, "PixelPaddingRangeLimit")
    low, high = sorted((first, first if last is None else last))
    return np.asarray((stored >= low) & (stored <= high))


def _as_stored(ds: Dataset, keyword: str) -> int | None:
    """The element read with the sign that Pixel Representation states, whichever VR it was written with."""
    value = number(ds, keyword)
    if value is None:
        return None
    cells = 1 << integer(ds, "BitsAllocated", 16)
    unsigned = int(value) % cells
    signed = integer(ds, "PixelRepresentation", 0) == 1
    return unsigned - cells if signed and unsigned >= cells // 2 else unsigned


def _finished(values: NDArray[Any], padding: NDArray[np.bool_] | None, name: str) -> NDArray[np.float32]:
    if padding is not None:
        values = np.where(padding, values[~padding].min(), values)
    result = values.astype(np.float32)
    if not np.isfinite(result).all():
        raise Unsuitable(f"{name} has pixel values that are not finite numbers")
    return result
