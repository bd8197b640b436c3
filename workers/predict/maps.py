"""Maps of a volume for a person who asks why: where a classifier looked, or how strongly each segment was spoken for.

Made only when a route asks. What a segmentation's network said in the reading is kept for it, and its classes are
brought to the source grid as numbers, before any threshold, largest class or cleaning: the map may say more, or less,
than the outline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from node import codes
from node.bundles import Bundle
from node.dicomconfig import SegmentEntry
from node.errors import Permanent
from node.findings import ParametricMap, Reading, Volume
from workers.predict.network import Network
from workers.predict.reading import slices

SCORE = "score of the network, not calibrated"
_LOOKED_AT, _ENOUGH, _OWN = 50_000, 100, 0.5
"""Voxels of a segment that are looked at, at most and at least, and the part of them where its class must be the
strongest: cleaning, filling and resampling move a border, which is most of a segment only where it is tiny."""


def explain_volumes(network: Network, volumes: Sequence[Volume], bundle: Bundle, reading: Reading) -> Reading:
    """Return `reading` with a map for each finding that has a saliency map, and each segment that is there.

    `reading` is what `network` said about `volumes`. Films get none. Raises `Permanent` where a map cannot be made.
    """
    solid = [volume for volume in volumes if not volume.is_projection and len(volume.pixels) > 1]
    found = [*_of_findings(solid, reading)]
    for volume in solid if bundle.dicom.kind == "segmentation" else ():
        found += _of_segments(network, volume, bundle, reading)
    return replace(reading, maps=(*reading.maps, *found))


def _of_findings(volumes: Sequence[Volume], reading: Reading) -> Iterator[ParametricMap]:
    for finding in reading.findings:
        volume = next((volume for volume in volumes if finding.source in volume.sources), None)
        saliency = finding.saliency
        if volume is not None and saliency is not None and saliency.values.shape == volume.pixels.shape:
            quantity = codes.VISUAL_EXPLANATION
            yield ParametricMap(finding.label, saliency.values, volume.sources, quantity, saliency.method)


def _of_segments(network: Network, volume: Volume, bundle: Bundle, reading: Reading) -> Iterator[ParametricMap]:
    present = {
        segment.label: segmentation.mask(segment)
        for segmentation in reading.segmentations
        if segmentation.sources == volume.sources
        for segment in segmentation.segments
        if not segment.is_empty
    }
    entries = [entry for entry in bundle.dicom.segment if entry.label in present]
    if not entries:
        return
    scores = _scores(network, volume, bundle)
    for entry in entries:
        values = _channel(scores, entry, bundle)
        if entry.channel is None and len(scores) > 1:
            _require_own_class(scores, entry, present[entry.label], network, bundle)
        yield ParametricMap(entry.label, values, volume.sources, codes.VISUAL_EXPLANATION, SCORE)


def _scores(network: Network, volume: Volume, bundle: Bundle) -> NDArray[np.float32]:
    """Return (class, slice, row, column) in 0..1."""
    overlaps = bundle.dicom.overlaps
    if bundle.dicom.per_slice:
        found = np.stack([network.scores(image, overlaps=overlaps) for image in slices(volume)], axis=-1)
    else:
        found = network.scores(volume, overlaps=overlaps)
    count, rows, columns = len(volume.pixels), *volume.pixels.shape[1:]
    if found.shape[1:] != (columns, rows, count):
        raise Permanent(
            f"{bundle.title} has no map on the source grid {(columns, rows, count)}, but on {found.shape[1:]}. Nothing "
            "was reported. Its preprocessing cannot be inverted: remove PM from the route."
        )
    return np.clip(found.transpose(0, 3, 2, 1), 0, 1)


def _require_own_class(
    scores: NDArray[np.float32], entry: SegmentEntry, mask: NDArray[np.bool_], network: Network, bundle: Bundle
) -> None:
    """Raise `Permanent` where the label of a segment is not the number of the class that was strongest there."""
    z, y, x = np.nonzero(mask)
    few = slice(None, None, max(len(z) // _LOOKED_AT, 1))
    own = float((scores[:, z[few], y[few], x[few]].argmax(axis=0) == entry.number).mean())
    if not network.labels_classes or (own < _OWN and len(z) >= _ENOUGH):
        raise Permanent(
            f"{bundle.title} makes labels of its own: nobody knows which class of its network label {entry.number}, "
            f"{entry.label}, is. Nothing was reported. Remove PM from the route."
        )


def _channel(scores: NDArray[np.float32], entry: SegmentEntry, bundle: Bundle) -> NDArray[np.float32]:
    """Return (slice, row, column) of one segment: its channel, its class, or the one class that there is."""
    wanted = entry.channel if entry.channel is not None else 0 if len(scores) == 1 else entry.number
    if wanted >= len(scores):
        raise Permanent(
            f"{bundle.title} answers with {len(scores)} classes; {entry.label} would be class {wanted}. Nothing was "
            "reported. Remove PM from the route."
        )
    return np.ascontiguousarray(scores[wanted], np.float32)
