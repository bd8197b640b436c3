"""An image of the manifest becomes a `Volume`: DICOM by the node's own path, pictures and NIfTI by an adapter.

A picture's grey values count as display values, NIfTI voxels as rescaled units on the grid that its affine states.
What the node would decline is declined here with the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import nibabel as nib
import numpy as np
from nibabel import orientations
from numpy.typing import NDArray
from PIL import Image

from node.bundles import Bundle
from node.errors import Unsuitable
from node.findings import Source, Volume
from node.route.selection import select
from node.settings import Route
from node.study import scan
from workers.load.geometry import film_affine
from workers.load.inputs import load_for
from workers.load.series import load

nibabel: Any = orientations  # without types
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
PICTURES = (".png", ".jpg", ".jpeg")
NIFTI = (".nii", ".nii.gz")
DEEP_GREY = ("I", "I;16", "I;16B", "I;16L", "F")
"""Modes of pictures with more than 8 bits."""
_LABELS = (*DEEP_GREY, "P")
"""Of a mask with a palette the numbers are the labels; its colors are for people."""
SAME_GRID = 0.05
"""How far, in voxels, the corners of a mask may lie from those of its image."""


class MaskError(ValueError):
    """The mask does not belong to the image or the bundle."""


def volume(path: Path, dimensions: Literal[2, 3]) -> Volume:
    """Return the one image at `path` as a bundle of `dimensions` reads it.

    Raises `Unsuitable` for what cannot be read, several series or films in one, and blank images.
    """
    name = path.name.lower()
    if path.is_file() and name.endswith(PICTURES):
        found = _picture(path)
    elif path.is_file() and name.endswith(NIFTI):
        found = _nifti(path)
    else:
        return _dicom(path, dimensions)
    slices = len(found.pixels)
    if (slices > 1) != (dimensions == 3):
        raise Unsuitable(f"{path.name} has {slices} slice{'s' * (slices > 1)}; the bundle reads {dimensions}D images")
    if found.pixels.min() == found.pixels.max():
        raise Unsuitable(f"{path.name} is blank: all pixels have the value {found.pixels.flat[0]:g}")
    return found


def volume_for(path: Path, bundle: Bundle) -> Volume:
    """Return the one image at `path` as `bundle` reads it: in color, or several series as channels, where it does.

    The series of one study lie in one folder. Raises as `volume` does.
    """
    if bundle.dicom.channel:
        return _channels(path, bundle)
    if not bundle.dicom.color:
        return volume(path, bundle.dicom.dimensions)
    if path.name.lower().endswith(PICTURES):
        return _color_picture(path)
    found = load_for(_series(path) if path.is_dir() else [path], bundle.dicom)
    return _only(found, path)


def _channels(path: Path, bundle: Bundle) -> Volume:
    if not path.is_dir():
        raise Unsuitable(f"{path.name} is no folder; {bundle.title} reads several DICOM series of one study together")
    route = Route(name="evaluation", models=(bundle.name,), send_to=())
    choices = [choice for study in scan(path)[0] for choice in select(study.series, bundle, route)]
    chosen = [choice for choice in choices if choice.chosen]
    if len(chosen) != 1:
        why = "; ".join(dict.fromkeys(reason for choice in choices for reason in choice.reasons))[:300]
        raise Unsuitable(f"{path.name} holds {len(chosen)} studies that {bundle.title} reads: {why or 'no DICOM file'}")
    return _only(load_for([instance.path for instance in chosen[0].instances], bundle.dicom), path)


def _only(volumes: list[Volume], path: Path) -> Volume:
    if len(volumes) != 1:
        raise Unsuitable(f"{path.name} has {len(volumes)} images; one line of a manifest is one image")
    return volumes[0]


def _color_picture(path: Path) -> Volume:
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            pixels = np.asarray(picture.convert("RGB"), np.float32)
    except Exception as error:  # Pillow raises many kinds on broken and on oversized files
        raise Unsuitable(f"{path.name} cannot be read as a picture ({type(error).__name__})") from None
    channels = tuple(np.ascontiguousarray(pixels[np.newaxis, ..., k]) for k in range(3))
    gray = pixels.mean(axis=-1)[np.newaxis]
    return Volume(gray, film_affine(None), (Source(path.name),), None, "OT", True, channels, is_color=True)


def _dicom(path: Path, dimensions: Literal[2, 3]) -> Volume:
    return _only(load(_series(path) if path.is_dir() else [path], dimensions), path)


def _series(folder: Path) -> list[Path]:
    series = [series for study in scan(folder)[0] for series in study.series]
    if len(series) != 1:
        raise Unsuitable(f"{folder.name} holds {len(series)} DICOM series; one line of a manifest is one series")
    return [instance.path for instance in series[0].instances]


def _picture(path: Path) -> Volume:
    pixels = _grey(path).astype(np.float32)[np.newaxis]
    return Volume(pixels, film_affine(None), (Source(path.name),), None, "OT", is_projection=True)


def _grey(path: Path, as_they_are: tuple[str, ...] = DEEP_GREY) -> NDArray[Any]:
    """(row, column); of the modes `as_they_are` the values themselves, all else as 8-bit grey."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            return np.asarray(picture if picture.mode in as_they_are else picture.convert("L"))
    except Exception as error:  # Pillow raises many kinds on broken and on oversized files
        raise Unsuitable(f"{path.name} cannot be read as a picture ({type(error).__name__})") from None


def _nifti(path: Path) -> Volume:
    voxels, affine = _voxels(path)
    columns = affine[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    directions = columns / np.where(spacing > 0, spacing, 1)
    if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-3):
        raise Unsuitable(f"{path.name} has an affine whose axes do not meet at right angles")
    pixels = np.ascontiguousarray(voxels.transpose(2, 1, 0), dtype=np.float32)
    if not np.isfinite(pixels).all():
        raise Unsuitable(f"{path.name} has voxels that are not finite numbers")
    depth = (float(spacing[2]), float(spacing[1]), float(spacing[0]))
    sources = tuple(Source(path.name, k) for k in range(1, len(pixels) + 1))
    return Volume(pixels, affine, sources, depth, "OT", is_projection=False)


def _voxels(path: Path, part: int | None = None) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return scaled voxels (i, j, k) and the affine to LPS millimeters; `part` of the last of four axes."""
    try:
        image: Any = nib.load(path)
        voxels, affine = np.asanyarray(image.dataobj), np.asarray(image.affine, np.float64)
    except Exception as error:  # nibabel raises many kinds on broken files
        raise Unsuitable(f"{path.name} cannot be read as NIfTI ({type(error).__name__})") from None
    if part is not None and voxels.ndim == 4:
        voxels = voxels[..., part]
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim == 2:
        voxels = voxels[..., np.newaxis]
    if voxels.ndim != 3 or not voxels.size or voxels.dtype.names:
        raise Unsuitable(f"{path.name} has {voxels.ndim} dimensions; one scalar volume was expected")
    return voxels, _RAS_TO_LPS @ affine


def masks(path: Path, image: Volume, bundle: Bundle) -> NDArray[np.bool_]:
    """Return the masks at `path` of segments that may overlap: (segment, slice, row, column), in their order.

    Raises `MaskError` where the file is no NIfTI of four dimensions with a mask for each segment, or on another grid.
    """
    wanted = len(bundle.dicom.segment)
    try:
        shape = nib.load(path).shape if path.name.lower().endswith(NIFTI) else ()  # type: ignore[attr-defined]
        if shape[3:] != (wanted,):
            raise MaskError(
                f"{path.name} has the shape {tuple(shape)}; segments of {bundle.title} may overlap: expected a NIfTI "
                f"file of four dimensions whose last has {wanted} masks, in the order of the segments in dicom.toml"
            )
        found = [_aligned(path, image, part) for part in range(wanted)]
    except Unsuitable as error:
        raise MaskError(str(error)) from None
    if found[0].shape != image.pixels.shape:
        raise MaskError(f"{path.name} lies on another grid than its image; masks are not resampled")
    if not all(np.isfinite(one).all() for one in found):
        raise MaskError(f"{path.name} has voxels that are not finite numbers; masks are 0 and 1")
    return np.stack(found) > 0


def mask(path: Path, image: Volume, bundle: Bundle) -> NDArray[np.uint8]:
    """Return the labels at `path` on the grid of `image`: uint8, (slice, row, column).

    A bundle of one segment takes any one value for it, as in masks of 0 and 255. Raises `MaskError` where the mask
    cannot be read, lies on another grid, or has values that the bundle has no segment for.
    """
    try:
        labels = _grey(path, _LABELS)[np.newaxis] if path.suffix.lower() == ".png" else _aligned(path, image)
    except Unsuitable as error:
        raise MaskError(str(error)) from None
    if labels.shape != image.pixels.shape:
        raise _of_another_size(path, labels.shape, image.pixels.shape)
    return _known(labels, path, bundle)


def _aligned(path: Path, image: Volume, part: int | None = None) -> NDArray[Any]:
    """Turn a NIfTI mask so that its axes run as those of the image; never resamples. A film has no place in space."""
    voxels, affine = _voxels(path, part)
    if len(image.pixels) > 1 or image.sources[0].sop_instance_uid.lower().endswith(NIFTI):
        turn = _turn(path, voxels.shape, affine, image.affine_mm)
        voxels = nibabel.apply_orientation(voxels, turn)
    return voxels.transpose(2, 1, 0)


def _turn(path: Path, shape: tuple[int, ...], affine: NDArray[np.float64], onto: NDArray[np.float64]) -> Any:
    """Return how the mask of `shape` is turned so that its axes run as those of the image whose affine is `onto`."""
    turn = nibabel.io_orientation(np.linalg.inv(onto) @ affine)
    if np.isnan(turn).any():
        raise MaskError(f"{path.name} has an affine in which an axis has no length; write that of its image")
    turned = affine @ nibabel.inv_ornt_aff(turn, shape)
    last = np.array([*(shape[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in range(3)), 2]) - 1
    corners = np.linalg.inv(onto) @ turned @ np.column_stack([[0, 0, 0, 1], last])
    if np.abs(corners - np.column_stack([[0, 0, 0, 1], last])).max() > SAME_GRID:
        raise MaskError(f"{path.name} lies on another grid than its image; masks are not resampled")
    return turn


def look_at(mask: Path, image: Path) -> None:
    """Raise `MaskError` where the headers say that `mask` lies on another grid; what they do not say is found later."""
    try:
        if all(path.name.lower().endswith(NIFTI) for path in (mask, image)):
            _compare(mask, image)
        elif all(path.name.lower().endswith(PICTURES) for path in (mask, image)):
            with Image.open(mask, formats=("PNG",)) as drawn, Image.open(image, formats=("PNG", "JPEG")) as film:
                if drawn.size != film.size:
                    raise _of_another_size(mask, (1, *drawn.size[::-1]), (1, *film.size[::-1]))
    except MaskError:
        raise
    except Exception:  # broken files raise many kinds, and are told of when they are read
        return


def _compare(mask: Path, image: Path) -> None:
    drawn, film = (cast("Any", nib).load(path) for path in (mask, image))
    shapes = [(*one.shape, 1, 1)[:3] for one in (drawn, film)]
    turn = _turn(mask, shapes[0], np.asarray(drawn.affine), np.asarray(film.affine))
    turned = [shapes[0][int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in range(3)]
    if turned != list(shapes[1]):
        raise _of_another_size(mask, turned[::-1], shapes[1][::-1])


def _of_another_size(mask: Path, shape: Sequence[int], expected: Sequence[int]) -> MaskError:
    told = " × ".join(map(str, shape)), " × ".join(map(str, expected))
    return MaskError(f"{mask.name} has {told[0]} voxels (slice × row × column), its image {told[1]}")


def _known(labels: NDArray[Any], path: Path, bundle: Bundle) -> NDArray[np.uint8]:
    if not np.isfinite(labels).all():
        raise MaskError(f"{path.name} has voxels that are not finite numbers; a label is a whole number, 0 around it")
    values = [entry.number for entry in bundle.dicom.segment]
    found = {float(value) for value in np.unique(labels)} - {0.0}
    if len(values) == 1 and len(found) == 1:
        return np.where(labels != 0, values[0], 0).astype(np.uint8)
    if unknown := found - set(map(float, values)):
        told = ", ".join(f"{value:g}" for value in sorted(unknown)[:5])
        raise MaskError(f"{path.name} has the labels {told}; {bundle.title} has {', '.join(map(str, values))}")
    return np.ascontiguousarray(labels).astype(np.uint8)
