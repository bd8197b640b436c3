"""The saliency map of a finding as a Secondary Capture: the film, in color where it moved the network, and the figure.

A map is relative to its own strongest place, so it says nothing about how sure the model is, and it outlines nothing;
both stand on the picture. It is a series of its own, that nobody takes for the images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydicom import Dataset

from node.findings import Finding, Saliency, Volume
from workers.report import picture, sc
from workers.report.run import Run, finish

_KEY = "What moved the model; no outline of disease"
_EMPTY = "The map is empty: no place stands out"


def build(run: Run, volumes: Sequence[Volume]) -> list[Dataset]:
    """Return one capture for each finding of the reading that has a map, in the order of the findings."""
    made: list[Dataset] = []
    for finding in run.reading.findings:
        if finding.saliency is not None:
            volume = next(volume for volume in volumes if finding.source in volume.sources)
            made.append(_capture(run, volume, finding, finding.saliency, len(made)))
    return made


def _capture(run: Run, volume: Volume, finding: Finding, saliency: Saliency, ordinal: int) -> Dataset:
    k = int(np.argmax(saliency.values.max(axis=(1, 2))))  # of a volume the slice with the strongest place
    values = saliency.values[k]
    rendered = picture.render(
        pixels=volume.pixels[k],
        pixel_aspect=sc.pixel_aspect(volume),
        window=picture.window(volume.pixels),
        masks=(),
        notice=sc.NOTICE,
        caption=f"{sc.caption(run, volume, k)}  ·  saliency map, {saliency.method}",
        lines=[sc.finding_line(finding)],
        heat_map=picture.Heat(values, _KEY if values.any() else _EMPTY),
    )
    told = f"Saliency map ({saliency.method}) of {finding.label}, over the image it was made of."
    return finish(sc.capture(run, volume.sources[k], rendered, told), run, "SALIENCY", ordinal)
