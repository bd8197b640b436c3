"""Parametric Map IOD (PS3.3 §A.75): how a model rated each voxel of a volume, as 32-bit numbers on the source grid.

A map says what moved the model, or how strongly it spoke for a segment; it outlines nothing. Films have none: their
plane is only the pixel grid, and the saliency capture shows the same to a person.
"""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
import numpy as np
from highdicom.pm import ParametricMap as ParametricMapDocument
from highdicom.pm import RealWorldValueMapping
from pydicom import Dataset
from pydicom.sr.coding import Code as PydicomCode

from node import codes, uids
from node.findings import ParametricMap, Source, Volume
from workers.report import seg
from workers.report.run import Run, finish

NOTHING_BELOW = 0.01
"""Slices before the first and after the last that reach this are left out."""


def build(run: Run, volumes: Sequence[Volume]) -> list[Dataset]:
    """Return one Parametric Map for each map of the reading; raises `Unsuitable` where it would have no place."""
    found = []
    for ordinal, one in enumerate(run.reading.maps):
        volume = next(volume for volume in volumes if one.sources[0] in volume.sources)
        found.append(_document(run, one, volume, ordinal))
    return found


def written(one: ParametricMap) -> slice:
    """Return which slices of a map are written: from the first to the last that says anything, or the middle one."""
    speaks = np.flatnonzero(one.values.max(axis=(1, 2)) >= NOTHING_BELOW)
    middle = len(one.values) // 2
    return slice(int(speaks[0]), int(speaks[-1]) + 1) if len(speaks) else slice(middle, middle + 1)


def _document(run: Run, one: ParametricMap, volume: Volume, ordinal: int) -> Dataset:
    part = written(one)
    sources: tuple[Source, ...] = one.sources[part]
    seg.require_place({source.sop_instance_uid: run.header(source) for source in sources}.values(), volume)
    images, values = seg.on_frames(run, sources, one.values[part], volume)
    algorithm = run.reading.algorithm
    ds = ParametricMapDocument(
        source_images=images,
        pixel_array=np.ascontiguousarray(values, np.float32),
        series_instance_uid=run.uid("PM", ordinal, "series"),
        series_number=1,
        sop_instance_uid=run.uid("PM", ordinal, "instance"),
        instance_number=1,
        manufacturer=algorithm.manufacturer,
        manufacturer_model_name=algorithm.name,
        software_versions=algorithm.version,
        device_serial_number=run.context.node.serial_number,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_meaning(one)],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
        content_label=seg.content_label(algorithm),
        content_description=f"AI: {one.label[:40]}, {one.method}"[:64],
        content_qualification="RESEARCH",
        specific_character_set=run.inherited.get("SpecificCharacterSet"),
    )
    return _finished(ds, run, ordinal)


def _meaning(one: ParametricMap) -> RealWorldValueMapping:
    """Say that the stored numbers are what they are: without a unit, from 0 to 1 (PS3.3 §C.7.6.16.2.11)."""
    return RealWorldValueMapping(
        lut_label="AI",
        lut_explanation=f"{one.label[:40]}, {one.method}"[:64],
        unit=_code(codes.NO_UNITS),
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=_code(one.quantity),
    )


def _finished(ds: Dataset, run: Run, ordinal: int) -> Dataset:
    ds.pop("ContentCreatorName", None)  # type 3, and a person's name: nobody drew this
    ds.Laterality = run.first.get("Laterality")  # type 2C: empty where the images do not say
    ds.LossyImageCompression = "01" if run.is_lossy else "00"
    organization = uids.derive_uid("dimensions", ds.SOPInstanceUID)
    ds.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for index in ds.DimensionIndexSequence:
        index.DimensionOrganizationUID = organization
    return finish(ds, run, "PM", ordinal)


def _code(code: codes.Code) -> PydicomCode:
    return PydicomCode(code.value, code.scheme, code.meaning)
