"""Let a bundle read a phantom of the shape it asks for, in the same supervised child as a job's, and say what it took.

The phantom has no anatomy: the figures are of time, memory and shapes, never of how well the bundle reads.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.uid import SecondaryCaptureImageStorage

from node import uids
from node.errors import Permanent

if TYPE_CHECKING:
    from pydicom import Dataset

    from node.bundles import Bundle
    from node.settings import Settings

_SHAPE = (64, 128, 128)
"""Slices, rows and columns where the bundle's conditions leave them open."""
_SPACING_MM = (2.0, 1.5, 1.5)
_FILM_SIZE = 512
_SLICED = ("CT", "MR")


def dry_run(bundle: Bundle, settings: Settings) -> dict[str, Any]:
    """Read a phantom twice, cold and warm, and return the figures; raises `Permanent` where the reading fails.

    Keys: `phantom`, `ready_s` (start of the child and the network), `read_s` (warm, and its parts), peak memory,
    shapes, what the bundle `says`, and the kinds of documents that it `would_write`. Nothing is kept.
    """
    with tempfile.TemporaryDirectory(prefix="wetread-check-") as scratch:
        datasets = phantom(bundle)
        files = _save(datasets, Path(scratch))
        reader = import_module("workers.reader").Reader()  # by name: the node does not know the workers
        try:
            request = _request(bundle, datasets[0], files, Path(scratch), settings)
            cold, warm = (reader.read(request, settings.worker.job_timeout) for _ in range(2))
        finally:
            reader.stop()
    for outcome in (cold, warm):
        if outcome.kind == "failed":
            raise Permanent(f"{bundle.title} could not read a phantom: {outcome.reason}")
    return {"phantom": _describe(datasets), **_figures(cold, warm)}


def phantom(bundle: Bundle) -> list[Dataset]:
    """Return a synthetic film, or a volume as large as the bundle's `[series]` asks for."""
    from node.simulate.phantoms import chest_film, volume

    series = bundle.dicom.series
    modalities = series.get("Modality")
    named = [modalities] if isinstance(modalities, str) else modalities if isinstance(modalities, list) else []
    sliced = next((name for name in _SLICED if name in named), "CT" if bundle.dicom.dimensions == 3 else None)
    if bundle.dicom.color:
        return [_colored(chest_film(size=_FILM_SIZE)[0])]
    if sliced is None:
        return [chest_film(size=_FILM_SIZE)[0]]
    keywords = ("NumberOfSeriesRelatedInstances", "Rows", "Columns")
    slices, rows, columns = (_within(series.get(key), size) for key, size in zip(keywords, _SHAPE, strict=True))
    slices = slices if bundle.dicom.dimensions == 3 else 1
    stack = volume("axial", "MR" if sliced == "MR" else "CT", (slices, rows, columns), _SPACING_MM)[0]
    return [ds for place in range(max(len(bundle.dicom.channel), 1)) for ds in _series(stack, place)]


def _series(stack: list[Dataset], place: int) -> list[Dataset]:
    """Return the stack as the series of one channel: the same images at the same place under other UIDs."""
    copies = [copy.deepcopy(ds) for ds in stack] if place else stack
    for ds in copies if place else ():
        ds.SeriesInstanceUID = uids.derive_uid("phantom", str(ds.SeriesInstanceUID), str(place))
        ds.SOPInstanceUID = uids.derive_uid("phantom", str(ds.SOPInstanceUID), str(place))
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return copies


def _colored(film: Dataset) -> Dataset:
    """Return the film as a Secondary Capture in color: three shades that differ."""
    gray = film.pixel_array.astype(np.float32)
    shade = np.asarray(gray * (255 / max(float(gray.max()), 1)), np.uint8)
    film.SOPClassUID = film.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    film.SamplesPerPixel, film.PlanarConfiguration, film.PhotometricInterpretation = 3, 0, "RGB"
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 8, 8, 7, 0
    film.PixelData = np.stack([shade, shade // 2, 255 - shade], axis=-1).tobytes()
    film["PixelData"].VR = "OB"
    return film


def _within(condition: Any, size: int) -> int:
    """Return a number that a condition on it allows: near `size`, or amid two limits (their geometric mean)."""
    if isinstance(condition, Mapping):
        least, most = condition.get("min", 1), condition.get("max", math.inf)
        amid = math.sqrt(least * most) if "min" in condition else size
        return int(min(max(min(size, amid), least), most))
    return int(condition) if isinstance(condition, int | float) else size


def _save(datasets: list[Dataset], folder: Path) -> tuple[str, ...]:
    paths = [folder / f"{number}.dcm" for number in range(len(datasets))]
    for ds, path in zip(datasets, paths, strict=True):
        ds.save_as(path, enforce_file_format=True)
    return tuple(map(str, paths))


def _request(bundle: Bundle, first: Dataset, files: tuple[str, ...], scratch: Path, settings: Settings) -> Any:
    return import_module("workers.pipeline").Request(
        job_id=f"check-{bundle.name}",
        study_instance_uid=str(first.StudyInstanceUID),
        series_instance_uid=str(first.SeriesInstanceUID),
        revision=1,
        files=files,
        bundle=str(bundle.folder),
        digest=bundle.digest,
        results=("SR", "SEG", "SC", "SALIENCY"),  # maps of volumes run the network once more: nobody asked for them
        out=str(scratch / "out"),
        device=settings.worker.device,
        runtime=settings.worker.runtime,
        key="0" * 64,
        ae_title=settings.node.ae_title,
        decline="never",
    )


def _describe(datasets: list[Dataset]) -> str:
    first, series = datasets[0], len({ds.SeriesInstanceUID for ds in datasets})
    told = f"{first.Modality}, {len(datasets) // series}×{first.Rows}×{first.Columns}"
    return f"{series} series of {told}" if series > 1 else told


def _figures(cold: Any, warm: Any) -> dict[str, Any]:
    if warm.kind == "unsuitable":
        return {"says": warm.reason}
    parts = ("load_s", "predict_s", "explain_s", "report_s")
    took = {key: warm.figures[key] for key in parts if key in warm.figures}
    shapes = {key: "×".join(map(str, shape)) for key, shape in warm.figures["shapes"].items()}
    return {
        "ready_s": cold.figures["ready_s"],
        "read_s": round(sum(took.values()), 3),
        **took,
        "peak_memory_mb": warm.figures["peak_memory_mb"],
        **({"peak_device_mb": device} if (device := warm.figures["peak_device_mb"]) else {}),
        **shapes,
        "says": warm.summary,
        "would_write": ", ".join(sorted(document["kind"] for document in warm.documents)),
    }
