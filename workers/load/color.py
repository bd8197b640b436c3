"""Color images: Secondary Captures, endoscopy and other visible light become red, green and blue, 0..255.

What they are stored as does not matter: YBR and palettes become RGB (PS3.3 §C.7.6.3.1.2). They have no millimeters.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from node.errors import Unsuitable
from node.findings import Volume
from workers.load import patients
from workers.load.geometry import film_affine
from workers.load.header import integer, text
from workers.load.pixels import GREY, MAX_DECODED_BYTES
from workers.load.slices import Image, open_image, pixel_aspect

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
"""Of red, green and blue (ITU-R BT.601)."""


def load_color(paths: Sequence[Path]) -> list[Volume]:
    """Return one `Volume` of a single slice for each color image or frame in the files of one series, in order.

    Raises `Unsuitable` naming the instance: a gray image, more than 8 bits, a size over `MAX_DECODED_BYTES`, pixels
    that cannot be decoded, or an image that is all one color; OSError where a file cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what pydicom finds odd in foreign values is judged here
        images = sorted((open_image(Path(path)) for path in paths), key=lambda image: image.order)
        kept = {image.order[1]: image for image in reversed(images)}
        patients.require_one((image.name, image.ds) for image in images)
        found = [volume for image in reversed(kept.values()) for volume in _volumes(image)]
    if not found:
        raise Unsuitable("it has no instances")
    return found


def _volumes(image: Image) -> Iterator[Volume]:
    frames = _rgb(image)
    for frame in image.slices:
        pixels = frames[frame.index].astype(np.float32)
        if np.ptp(pixels, axis=(0, 1)).max() == 0:
            raise Unsuitable(f"{image.name} is blank: all pixels have one color")
        channels = tuple(np.ascontiguousarray(pixels[np.newaxis, ..., k]) for k in range(3))
        yield Volume(
            pixels=(pixels @ _LUMINANCE)[np.newaxis],
            affine_mm=film_affine(None),
            sources=(frame.source,),
            spacing_mm=None,
            modality=image.modality,
            is_projection=True,
            channels=channels,
            is_color=True,
            pixel_aspect=pixel_aspect(image.ds),
        )


def _rgb(image: Image) -> NDArray[np.uint8]:
    """Return the frames of `image`: (frame, row, column, 3)."""
    photometric, bits = text(image.ds, "PhotometricInterpretation"), integer(image.ds, "BitsAllocated", 0)
    if photometric in GREY:
        raise Unsuitable(f"{image.name} is a gray image ({photometric}); the model reads color")
    if bits != 8:
        raise Unsuitable(f"{image.name} has {bits} bits per sample; color is read with 8")
    rows, columns = image.slices[0].plane.shape
    if len(image.slices) * rows * columns * 12 > MAX_DECODED_BYTES:
        allowed = MAX_DECODED_BYTES >> 30
        raise Unsuitable(f"{image.name} needs more than the {allowed} GiB of memory allowed")
    decoded = _decoded(image, photometric)
    if decoded.size != len(image.slices) * rows * columns * 3:
        raise Unsuitable(f"{image.name} has no three samples per pixel ({photometric})")
    return decoded.reshape(len(image.slices), rows, columns, 3)


def _decoded(image: Image, photometric: str) -> NDArray[np.uint8]:
    try:
        pixels: NDArray[Any] = pixel_array(image.ds)  # YBR becomes RGB
        if photometric == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, image.ds)[..., :3]
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a decoder is a stranger's code on a stranger's bytes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Unsuitable(f"{image.name} cannot be decoded: {reason}") from None
    if pixels.dtype == np.uint16:  # tables of 16 bits
        pixels = pixels >> 8
    return np.asarray(pixels, np.uint8)
