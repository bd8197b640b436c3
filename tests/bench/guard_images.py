"""The images that `tests.bench.guard` shows to the guards: each decoded once, and only what a guard needs kept."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from node.bundles import SHIPPED, Bundle
from node.errors import Unsuitable
from node.findings import Source, Volume
from node.simulate import phantoms
from node.study import scan
from workers import restraint
from workers.evaluate.images import volume
from workers.load.series import load
from workers.load.values import displayed, rescaled
from workers.predict.likeness import small_copy, statistics

MOST_OF_A_SERIES = 25
FILMS = 8
VOLUMES = ((36, 50, 36), (32, 48, 32), (40, 56, 34), (30, 60, 40))
"""Our phantoms: seeds of films, and (slice, row, column) of volumes of 1 mm about as large as a crop of a head."""
Dimensions = Literal[2, 3]


@dataclass(frozen=True)
class Shown:
    """One image: its patient or series, the folders that it lies in, its small copy and statistics.

    `outside`: the bundles whose bounds of grid and values it breaks.
    """

    name: str
    folders: frozenset[str]
    copy: torch.Tensor
    statistics: NDArray[np.float32]
    outside: frozenset[str]


def shown(name: str, where: Path, image: Volume, judges: Sequence[Bundle]) -> Shown:
    """Look at one image for all of `judges`, bundles of the same dimensions."""
    copy = small_copy(image, judges[0].dicom.dimensions)
    entries = [(bundle.name, bundle.dicom.guard) for bundle in judges]
    outside = frozenset(of for of, entry in entries if entry is not None and restraint.outside(image, entry))
    return Shown(name, frozenset(where.parts), copy, statistics(image, copy), outside)


def own(bundle: Bundle, data: Path, part: str, limit: int | None) -> Iterator[Shown]:
    """Look at the patients of `bundle` in `part`; evenly spread where `limit` is fewer than their images."""
    spec = importlib.util.spec_from_file_location("datalists", SHIPPED / "datalists.py")
    assert spec is not None
    assert spec.loader is not None
    lists = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lists)
    cases = lists.datalist(lists.LISTS[bundle.name](data))[part]
    for case in cases[:: -(-len(cases) // limit) if limit else 1]:
        path = data / case["image"]
        yield shown(str(case["patient"]), path, volume(path, bundle.dicom.dimensions), [bundle])


def others(folders: Sequence[Path], judges: Sequence[Bundle], most: int) -> Iterator[Shown]:
    """Look at what can be loaded of the studies in `folders`; what cannot is declined before any guard."""
    dimensions = judges[0].dicom.dimensions
    for name, paths in series_in(folders):
        step = -(-len(paths) // most)
        for one in [[path] for path in paths[::step]] if dimensions == 2 else [paths]:
            try:
                volumes = load(one, dimensions)
            except (Unsuitable, OSError):
                continue
            if dimensions == 2 or len(volumes[0].pixels) > 1:
                for image in volumes[:: -(-len(volumes) // most)]:
                    yield shown(name, paths[0], image, judges)


def series_in(folders: Sequence[Path]) -> Iterator[tuple[str, list[Path]]]:
    """Yield each series with pixels below `folders`, its files in order."""
    for folder in folders:
        for study in scan(folder)[0]:
            for series in study.series:
                paths = [i.path for i in series.instances if "Rows" in i.attributes]
                if paths:
                    yield series.series_instance_uid, paths


def synthetic(judges: Sequence[Bundle]) -> Iterator[Shown]:
    """Look at our own phantoms, each as a series of its own."""
    drawn = map(_film, range(FILMS)) if judges[0].dicom.dimensions == 2 else map(_volume, VOLUMES)
    for number, image in enumerate(drawn):
        yield shown(f"phantom {number}", Path("phantom"), image, judges)


def _film(seed: int) -> Volume:
    ds = phantoms.chest_film(seed)[0]
    pixels = displayed(ds.pixel_array, ds, "the phantom")[np.newaxis]
    return Volume(pixels, np.eye(4), (Source(str(ds.SOPInstanceUID)),), None, "DX", is_projection=True)


def _volume(shape: tuple[int, int, int]) -> Volume:
    slices = phantoms.volume("axial", "MR", shape, (1.0, 1.0, 1.0))[0]
    pixels = np.stack([rescaled(ds.pixel_array, ds, "the phantom") for ds in slices])
    sources = tuple(Source(str(ds.SOPInstanceUID)) for ds in slices)
    return Volume(pixels, np.eye(4), sources, (1.0, 1.0, 1.0), "MR", is_projection=False)
