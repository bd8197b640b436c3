"""The images before a training: masks are looked at, and what of a manifest `train.json` cannot open becomes PNG."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from node.bundles import Bundle
from node.errors import ConfigError, Unsuitable
from node.findings import Volume
from workers.evaluate import images, manifest
from workers.evaluate.overlap import Labels
from workers.train import datalist
from workers.train.datalist import Lists

Tell = Callable[[dict[str, Any]], None]
FOLDER = "films"
_DARKEST, _BRIGHTEST = 0.1, 99.9
"""Percentiles that become 0 and 255: a burned-in mark beyond would take grey levels from the rest."""


def prepared(lists: Lists, data: Path, out: Path, bundle: Bundle, tell: Tell) -> Lists:
    """Return `lists`; of a manifest, films in DICOM, NIfTI or of more than 8 bits and their masks become PNG in `out`.

    Volumes and color stay as they are, and so does all that a data list names; the test part is left alone. Raises
    `ConfigError` for an image that the node would not read, and a mask that lies on another grid or has values that the
    bundle has no segment for.
    """
    if bundle.dicom.channel:
        return lists
    is_table = datalist.is_table(data, bundle)
    source = data / ("manifest.csv" if is_table else f"{bundle.name}.json")
    todo = [case for part in datalist.PARTS[:2] for case in lists[part]]
    made: dict[str, dict[str, Any]] = {}
    for number, case in enumerate(todo):
        tell({"total": len(todo), "done": number, "image": f"looking at {Path(str(case['image'])).name}"})
        try:
            if is_table:
                made[case["image"]] = case | _files(case, data, out / FOLDER / str(number), bundle)
            elif bundle.dicom.segment and _is_known(case, data):
                _look(images.volume_for(data / case["image"], bundle), case, data, bundle)
        except (Unsuitable, images.MaskError) as error:
            told = f"{error}. Nothing was trained; mend the file, or take its line out"
            raise ConfigError(source, None, told) from None
    return {part: [made.get(str(case["image"]), case) for case in cases] for part, cases in lists.items()}


def _files(case: dict[str, Any], data: Path, beside: Path, bundle: Bundle) -> dict[str, Any]:
    """What of `case` has another path now; PNG files are named after `beside`."""
    image, is_mask = data / case["image"], bool(bundle.dicom.segment)
    is_opened = bundle.dicom.dimensions == 3 or bundle.dicom.color or _opens(image)
    if is_opened and not is_mask:
        return {}
    volume = images.volume_for(image, bundle)
    found = {} if is_opened else {"image": _grey(volume)}
    if is_mask:
        label = _look(volume, case, data, bundle)
        if bundle.dicom.dimensions == 2 and label.ndim == 3 and not case["label"].lower().endswith(".png"):
            found["label"] = label[0].astype(np.uint8)
    return {key: _saved(pixels, beside, key, data) for key, pixels in found.items()}


def _look(volume: Volume, case: Mapping[str, Any], data: Path, bundle: Bundle) -> Labels:
    read_mask = images.masks if bundle.dicom.overlaps else images.mask
    return read_mask(data / case["label"], volume, bundle)


def _is_known(case: Mapping[str, Any], data: Path) -> bool:
    """Whether image and mask are of the kinds that the node knows; a train.json may open others, and several as one."""
    image, label = str(case["image"]).lower(), str(case["label"]).lower()
    is_file = image.endswith((*images.PICTURES, *images.NIFTI, ".dcm")) or (data / str(case["image"])).is_dir()
    return is_file and isinstance(case["label"], str) and label.endswith(manifest.MASK_SUFFIXES)


def _opens(image: Path) -> bool:
    """Whether any reader takes `image` as it is; those of deep grey are clipped at 255 by some."""
    try:
        with Image.open(image, formats=("PNG", "JPEG")) as picture:
            return picture.mode not in images.DEEP_GREY
    except Exception:  # Pillow raises many kinds; what else it is, or what is wrong, is told by who reads it next
        return False


def _saved(pixels: NDArray[np.uint8], beside: Path, key: str, data: Path) -> str:
    beside.parent.mkdir(parents=True, exist_ok=True)
    path = beside.with_name(f"{beside.name}-{key}.png")
    Image.fromarray(pixels).save(path)
    return os.path.relpath(path.resolve(), data.resolve())


def _grey(volume: Volume) -> NDArray[np.uint8]:
    film = volume.pixels[0]
    low, high = np.percentile(film, (_DARKEST, _BRIGHTEST))
    grey: NDArray[np.uint8] = np.rint(255 * np.clip((film - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)
    return grey
