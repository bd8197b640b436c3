"""One SOP Instance becomes stored pixel values: decoded, unused bits removed, sign extended (PS3.3 §C.7.6.3.1).

Runs in the supervised child only: whatever a decoder raises, `BaseException` included, ends here as `Unsuitable`
with the Transfer Syntax named. The size is checked before a byte is decoded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.encaps import get_frame
from pydicom.pixels.utils import get_j2k_parameters, pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    RLELossless,
)

from node.errors import Unsuitable
from workers.load.header import integer

MAX_DECODED_BYTES = 2 * 2**30
"""No instance decodes to more: 28 MB of RLE can claim 1.8 GB, and far more."""
PIXEL_DATA = 0x7FE00010
GREY = ("MONOCHROME1", "MONOCHROME2")
_JPEG_LS_FRAME, _NO_FRAMES = 0xF7, (0xC4, 0xC8, 0xCC)
"""Second bytes of markers: a frame of JPEG-LS; tables and extensions among those of JPEG's frames (C0 to CF)."""
_NATIVE = {ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian}
_KEEPS_STRAY_BITS = {*_NATIVE, ExplicitVRBigEndian, RLELossless}
"""Syntaxes that carry the whole cell; a codestream of the others says itself how many bits it carries."""


def stored_values(ds: Dataset, name: str) -> NDArray[Any]:
    """Return the stored values of every frame: integers, (frame, row, column).

    `name` says which instance it is. Raises `Unsuitable` for objects without Pixel Data, color, sizes over
    `MAX_DECODED_BYTES`, and whatever cannot be decoded.
    """
    frames, rows, columns = shape(ds, name)
    _require_grey(ds, name)
    cell = integer(ds, "BitsAllocated", 0)
    if cell not in (8, 16, 32):
        raise Unsuitable(f"{name} has Bits Allocated (0028,0100) {cell}; 8, 16 or 32 can be read")
    size = frames * rows * columns * cell // 8
    if size > MAX_DECODED_BYTES:
        allowed = MAX_DECODED_BYTES >> 30
        raise Unsuitable(f"{name} decodes to {size / 2**30:.1f} GiB, more than the {allowed} GiB allowed")
    syntax = UID(ds.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian))
    raw = _native(ds, name, size, cell) if syntax in _NATIVE else _decoded(ds, name, syntax)
    if raw.size != frames * rows * columns:
        raise Unsuitable(f"{name} decodes to {raw.size} pixels where its header promises {frames * rows * columns}")
    return _clean(ds, raw.reshape(frames, rows, columns), syntax)


def shape(ds: Dataset, name: str) -> tuple[int, int, int]:
    """Return (frames, rows, columns) as the header states them; raises `Unsuitable` where they are not positive."""
    frames = integer(ds, "NumberOfFrames", 1) or 1
    rows, columns = integer(ds, "Rows", 0), integer(ds, "Columns", 0)
    if "PixelData" not in ds:
        raise Unsuitable(f"{name} is no image with Pixel Data (7FE0,0010)")
    if min(frames, rows, columns) < 1:
        raise Unsuitable(f"{name} states an impossible image size: {frames} frames of {rows} × {columns}")
    return frames, rows, columns


def _require_grey(ds: Dataset, name: str) -> None:
    photometric = str(ds.get("PhotometricInterpretation", "")).strip()
    if photometric not in GREY or integer(ds, "SamplesPerPixel", 1) != 1:
        told = photometric or "Photometric Interpretation missing"
        raise Unsuitable(f"{name} is a color image ({told}), not a grey one")


def _native(ds: Dataset, name: str, size: int, cell: int) -> NDArray[Any]:
    """Little-endian native pixels without a copy; one byte of padding is legal (PS3.5 §8.1.1)."""
    data = _native_bytes(ds)
    if not size <= len(data) <= size + 1:
        raise Unsuitable(f"{name} has {len(data)} bytes of Pixel Data where its header promises {size}")
    sign = "i" if integer(ds, "PixelRepresentation", 0) == 1 else "u"
    return np.frombuffer(data, dtype=f"<{sign}{cell // 8}", count=size * 8 // cell)


def _native_bytes(ds: Dataset) -> bytes:
    """Return the Pixel Data of `ds`; where they were left in their file, from there, and `ds` stays light."""
    raw = ds.get_item(PIXEL_DATA, keep_deferred=True)
    if not isinstance(raw, RawDataElement) or raw.value is not None:
        return ds.PixelData if isinstance(ds.PixelData, bytes) else b""
    with open(ds.filename, "rb", buffering=0) as file:  # noqa: PTH123 - no second buffer
        file.seek(raw.value_tell)
        return file.read(raw.length)


def _decoded(ds: Dataset, name: str, syntax: UID) -> NDArray[Any]:
    """Decode by pydicom's plugins; a crafted RLE frame raises a `BaseException` that is no `Exception`."""
    try:
        return np.asarray(pixel_array(ds, raw=True, correct_unused_bits=False))  # it would go by Bits Stored alone
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a decoder is a stranger's code on a stranger's bytes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Unsuitable(f"{name} cannot be decoded from {syntax.name}: {reason}") from None


def _clean(ds: Dataset, raw: NDArray[Any], syntax: UID) -> NDArray[Any]:
    """Drop overlay and stray bits around the stored ones and extend the sign (PS3.5 §8.1.1)."""
    cell = raw.dtype.itemsize * 8
    stored = integer(ds, "BitsStored", cell)
    low = integer(ds, "HighBit", stored - 1) - stored + 1
    if not 0 < stored < cell or not 0 <= low <= cell - stored:
        return raw
    if low and syntax not in _KEEPS_STRAY_BITS and _precision(ds, syntax) < low + stored:
        low = 0  # the encoder took only the stored bits out of their cells
    # Up to the top of the cell and down again: the shift back fills with zeros, or with the sign.
    raised: NDArray[Any] = np.left_shift(raw, raw.dtype.type(cell - stored - low))
    np.right_shift(raised, raw.dtype.type(cell - stored), out=raised)
    return raised


def _precision(ds: Dataset, syntax: UID) -> int:
    """Return how many bits of a cell the codestream of the first frame carries, 0 where it does not say.

    Whole cells, overlays and all, are what DCMTK's encoders take by default; others take the stored bits alone.
    """
    code = get_frame(ds.PixelData, 0, number_of_frames=integer(ds, "NumberOfFrames", 1) or 1)
    if syntax in JPEG2000TransferSyntaxes:
        return int(get_j2k_parameters(code).get("precision", 0))
    place = 2  # past the start of image: segments of a marker, a length and its bytes (ISO/IEC 10918-1 §B.1.1.4)
    while place + 5 <= len(code) and code[place] == 0xFF:
        if code[place + 1] == _JPEG_LS_FRAME or (code[place + 1] & 0xF0 == 0xC0 and code[place + 1] not in _NO_FRAMES):
            return code[place + 4]
        place += 2 + int.from_bytes(code[place + 2 : place + 4], "big")
    return 0
