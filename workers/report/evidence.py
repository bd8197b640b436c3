"""Stage 6: one reading becomes its Evidence Documents: SEG, pictures, and the SR that is the way into all of them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

from pydicom import Dataset

from node.errors import NonConformant
from node.findings import Reading, Segmentation, Volume
from workers.report import pm, saliency, sc, seg, sr
from workers.report.context import Context, EvidenceDocument, NodeIdentity, ResultKind
from workers.report.run import Run

__all__ = ["Context", "EvidenceDocument", "NodeIdentity", "ResultKind", "build", "to_bytes"]


def build(reading: Reading, volumes: Sequence[Volume], context: Context) -> list[EvidenceDocument]:
    """Return the Evidence Documents of `reading` that `context.results` asks for: SEGs, pictures, maps, at last one SR.

    `volumes` are what was read; `reading`'s label maps lie on their grids. There is no SEG of a segmentation in
    which nothing was found, and no saliency map of a finding that has none. The same arguments give the same bytes.
    Raises `Unsuitable` where the images do not say where a SEG would lie, `NonConformant` where an object cannot be
    built for another reason.
    """
    run = Run(reading, context, context.headers)
    try:
        return _documents(run, volumes)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # highdicom refuses what it cannot build
        named, why = reading.algorithm, str(error).rstrip(".")
        raise NonConformant(
            f"No results of {named.name} {named.version} could be made for series {run.series_instance_uid}: {why}. "
            "Nothing was filed. Either the headers of the images break the standard, or this is a fault of the node: "
            "report it with this line."
        ) from error


def _documents(run: Run, volumes: Sequence[Volume]) -> list[EvidenceDocument]:
    wanted, reading = run.context.results, run.reading
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values of foreign headers, judged by the gate and by validators
        segs = [
            seg.build(run, s, _volume_of(s, volumes), i) if "SEG" in wanted else None
            for i, s in enumerate(reading.segmentations)
        ]
        captures = [sc.build(run, volume, i) for i, volume in enumerate(volumes)] if "SC" in wanted else []
        maps = saliency.build(run, volumes) if "SALIENCY" in wanted else []
        volumes_mapped = pm.build(run, volumes) if "PM" in wanted else []
        documents = [EvidenceDocument("SEG", ds, _encoded(ds)) for ds in segs if ds is not None]
        documents += [EvidenceDocument("SC", ds) for ds in captures]
        documents += [EvidenceDocument("SALIENCY", ds) for ds in maps]
        documents += [EvidenceDocument("PM", ds) for ds in volumes_mapped]
        if "SR" in wanted:
            documents.append(EvidenceDocument("SR", sr.build(run, volumes, segs, [*captures, *maps, *volumes_mapped])))
    return documents


def to_bytes(document: EvidenceDocument) -> bytes:
    """Return the Part 10 file (PS3.10 §7.1), Explicit VR Little Endian."""
    return _encoded(document.dataset) if document.encoded is None else document.encoded


def _encoded(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _volume_of(segmentation: Segmentation, volumes: Sequence[Volume]) -> Volume:
    return next(volume for volume in volumes if segmentation.sources[0] in volume.sources)
