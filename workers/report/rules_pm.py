"""Rules for the Parametric Map: each frame lies on its source and holds exactly our numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from node.findings import Source
from workers.report import pm
from workers.report.case import Case, Rule

PARAMETRIC_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.30"


def _number(case: Case) -> Iterator[str]:
    wanted = len(case.reading.maps) if "PM" in case.context.results else 0
    made = case.of_kind("PM")
    if len(made) != wanted:
        yield f"there are {len(made)} Parametric Maps of {wanted}"
    for ds in made:
        if ds.SOPClassUID != PARAMETRIC_MAP_STORAGE or "FloatPixelData" not in ds:
            yield f"a map in {ds.SOPClassUID} is no Parametric Map of 32-bit numbers"


def _values_and_places(case: Case) -> Iterator[str]:
    for ds, one in zip(case.of_kind("PM"), case.reading.maps, strict=False):
        if not np.isfinite(one.values).all() or one.values.min() < 0 or one.values.max() > 1:
            yield f"the map of {one.label} is not in 0..1"
        if "FloatPixelData" not in ds:
            continue
        where = {source: k for k, source in enumerate(one.sources)}
        stored = np.frombuffer(ds.FloatPixelData, np.float32).reshape(int(ds.NumberOfFrames), ds.Rows, ds.Columns)
        seen = set()
        for frame, groups in zip(stored, ds.PerFrameFunctionalGroupsSequence, strict=True):
            image = groups.DerivationImageSequence[0].SourceImageSequence[0]
            source = Source(str(image.ReferencedSOPInstanceUID), image.get("ReferencedFrameNumber"))
            k = where.get(source)
            if (k is None and frame.any()) or (k is not None and not np.array_equal(frame, one.values[k])):
                yield f"a frame on {source.sop_instance_uid} does not hold the map of {one.label}"
            seen.add(k)
        if not seen >= set(range(len(one.sources))[pm.written(one)]):
            yield f"slices of the map of {one.label} are in no frame"


RULES = (
    Rule("PM", "each map that was asked for is there, as 32-bit numbers", _number),
    Rule("PM-values", "each frame of a map holds its numbers on its source", _values_and_places),
)
