"""A series becomes what a bundle reads: one volume in LPS millimeters, or its films one by one.

What cannot be read as it is meant is refused with the reason: no resampling, no filling, no guessing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from node.errors import Unsuitable
from node.findings import Volume
from workers.load import geometry, patients
from workers.load.alike import require_alike
from workers.load.pixels import stored_values
from workers.load.slices import PROJECTIONS, Image, Slice, calibrated_spacing, open_image, pixel_aspect
from workers.load.values import displayed, is_all_padding, require_hounsfield, rescaled

T = TypeVar("T")
U = TypeVar("U")
_THREADS = 4
"""Slices decoded at a time."""
MAX_VOLUME_BYTES = 4 * 2**30
"""No series becomes more float32 pixels than this."""


def load(paths: Sequence[Path], dimensions: Literal[2, 3]) -> list[Volume]:
    """Read the Part 10 files of one series, in whatever order, and return what a bundle of `dimensions` reads.

    2: one `Volume` of a single slice per film or frame, by Instance Number; what cannot be read beside others that can
    is named in their remarks. 3: exactly one `Volume`.
    Raises `Unsuitable` naming instances and positions; OSError where a file cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what pydicom finds odd in foreign values and codestreams is judged here
        if dimensions == 2:
            return _films(paths)
        images = _sound([open_image(Path(path)) for path in paths])
        return [_volume([image for image in images if not image.is_localizer] or images)]


def _films(paths: Sequence[Path]) -> list[Volume]:
    """Read each film by itself: one that is blank, in color or broken says nothing of the others."""
    opened, broken = _each(paths, lambda path: [open_image(Path(path))])
    images = _sound(opened) if opened or not broken else []
    films, more = _each(images, lambda image: [_film(image, frame, stored) for frame, stored in _frames(image)])
    reasons = [*broken, *more]
    if not films:
        raise Unsuitable("; ".join(reasons))
    return [replace(film, remarks=tuple(f"Not analyzed: {reason}." for reason in reasons)) for film in films]


def _sound(opened: Sequence[Image]) -> list[Image]:
    """Return the images in order, each once; refuses what is no series of one patient, or more than memory holds."""
    images = _once(sorted(opened, key=lambda image: image.order))
    _require_room(images)
    patients.require_one((image.name, image.ds) for image in images)
    return images


def _each(items: Iterable[T], work: Callable[[T], Iterable[U]]) -> tuple[list[U], list[str]]:
    """Return what `work` makes of each item, and why it makes nothing of some."""
    made: list[U] = []
    reasons: list[str] = []
    for item in items:
        try:
            made += work(item)
        except Unsuitable as error:
            reasons.append(str(error))
    return made, reasons


def _once(images: Sequence[Image]) -> list[Image]:
    """One image per SOP Instance: what was sent twice counts once, unless the pixels differ."""
    kept: dict[str, Image] = {}
    for image in images:
        first = kept.setdefault(image.order[1], image)
        if first is not image and first.ds.PixelData != image.ds.PixelData:
            raise Unsuitable(f"{image.name} was sent twice with different pixels")
    return list(kept.values())


def _require_room(images: Sequence[Image]) -> None:
    if not images:
        raise Unsuitable("it has no instances")
    planes = [frame.plane for image in images for frame in image.slices]
    size = sum(4 * plane.shape[0] * plane.shape[1] for plane in planes)
    if size > MAX_VOLUME_BYTES:
        needed, allowed = size / 2**30, MAX_VOLUME_BYTES >> 30
        raise Unsuitable(
            f"its {len(planes)} slices need {needed:.1f} GiB of memory, more than the {allowed} GiB allowed"
        )


def _frames(image: Image) -> list[tuple[Slice, NDArray[np.generic]]]:
    stored = stored_values(image.ds, image.name)
    return [(frame, stored[frame.index]) for frame in image.slices]


def _film(image: Image, frame: Slice, stored: NDArray[np.generic]) -> Volume:
    """One image on its own: a projection as display values, a slice of CT, MR or PET in rescaled units."""
    plane = frame.plane
    if image.modality in PROJECTIONS or plane.position_mm is None or plane.cosines is None:
        pixels = displayed(stored, image.ds, image.name)
        spacing, projection = calibrated_spacing(image.ds), True
        affine = geometry.film_affine(spacing)
    else:
        _require_units(image, frame)
        pixels = rescaled(stored, image.ds, image.name, frame.transformation)
        spacing, projection = plane.spacing_mm, False
        affine = geometry.slice_affine(plane)
    _require_contrast(pixels, f"{image.name} is blank")
    depth = None if spacing is None else (1.0, *spacing)
    sources, aspect = (frame.source,), pixel_aspect(image.ds)
    return Volume(pixels[np.newaxis], affine, sources, depth, image.modality, projection, pixel_aspect=aspect)


def _volume(images: Sequence[Image]) -> Volume:
    where = [(image, frame) for image in images for frame in image.slices]

    def same_picture(i: int, j: int) -> bool:
        return np.array_equal(_pixels(*where[i]), _pixels(*where[j]))

    for image, frame in where:
        _require_units(image, frame)
    stack = geometry.stack([frame.plane for _, frame in where], same_picture)
    require_alike([where[i] for i in stack.order])
    kept = {id(where[i][1]): k for k, i in enumerate(stack.order)}
    pixels = np.empty((len(stack.order), *where[0][1].plane.shape), dtype=np.float32)
    is_empty = np.zeros(len(pixels), np.bool_)

    def fill(image: Image) -> None:
        for frame, stored in _frames(image):
            if id(frame) in kept:
                k = kept[id(frame)]
                rescaled(stored, image.ds, image.name, frame.transformation, out=pixels[k])
                is_empty[k] = is_all_padding(stored, image.ds)

    wanted = [image for image in images if any(id(frame) in kept for frame in image.slices)]
    # Decoders and NumPy let go of the interpreter. An object of many frames is large by itself: one at a time.
    with ThreadPoolExecutor(_THREADS if len(wanted) == len(kept) else 1) as threads:
        for _ in threads.map(fill, wanted):
            pass
    if is_empty.any() and not is_empty.all():
        pixels[is_empty] = pixels[~is_empty].min()
    _require_contrast(pixels, "its images are blank")
    sources = tuple(where[i][1].source for i in stack.order)
    return Volume(pixels, stack.affine_mm, sources, stack.spacing_mm, images[0].modality, is_projection=False)


def _require_units(image: Image, frame: Slice) -> None:
    if image.modality == "CT":
        require_hounsfield(image.ds, image.name, frame.transformation)


def _pixels(image: Image, frame: Slice) -> NDArray[np.float32]:
    return rescaled(stored_values(image.ds, image.name)[frame.index], image.ds, image.name, frame.transformation)


def _require_contrast(pixels: NDArray[np.float32], what: str) -> None:
    if all((slice_ == pixels.flat[0]).all() for slice_ in pixels):  # most often the first slice ends it
        raise Unsuitable(f"{what}: all pixels have the value {pixels.flat[0]:g}")
