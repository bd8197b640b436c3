"""All volumes of a series, read by one network, become one Reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np

from node.bundles import Bundle
from node.findings import Algorithm, Detection, Finding, Reading, Segmentation, Volume
from workers.predict import detect
from workers.predict.classify import findings
from workers.predict.network import Network
from workers.predict.segment import segmentation

DECIDED = "The model answers with yes or no: 100 % and 0 % are its decisions, not how sure it is."


def read(network: Network, volumes: Sequence[Volume], bundle: Bundle, started: datetime) -> Reading:
    """Read each of `volumes` and return what the bundle says about all of them.

    Raises `Permanent` when the network or its transforms fail; an empty segment, an absent finding and no box at all
    are answers.
    """
    remarks = tuple(dict.fromkeys(remark for volume in volumes for remark in volume.remarks))
    made = Reading(algorithm(bundle), started, remarks=remarks)
    if bundle.dicom.kind == "classification":
        told = tuple(f for volume in volumes for f in _findings(network, volume, bundle))
        if network.decides:
            made = replace(made, remarks=(*remarks, DECIDED))
            told = tuple(replace(finding, calibrated=False) for finding in told)
        return replace(made, findings=told)
    if bundle.dicom.kind == "segmentation":
        return replace(made, segmentations=tuple(_segmentation(network, volume, bundle) for volume in volumes))
    for volume in volumes:
        found, more = _detections(network, volume, bundle)
        made = replace(made, detections=(*made.detections, *found), remarks=(*made.remarks, *more))
    return made


def slices(volume: Volume) -> Iterator[Volume]:
    """Yield each slice of `volume` as an image by itself, as a 2D network reads it."""
    for k, source in enumerate(volume.sources):
        channels = tuple(pixels[k : k + 1] for pixels in volume.channels)
        yield replace(volume, pixels=volume.pixels[k : k + 1], channels=channels, sources=(source,), remarks=())


def _segmentation(network: Network, volume: Volume, bundle: Bundle) -> Segmentation:
    if not bundle.dicom.per_slice:
        return segmentation(network.read(volume), volume, bundle)
    answers = [network.read(image) for image in slices(volume)]
    return segmentation(np.stack(answers, axis=-1), volume, bundle)


def _findings(network: Network, volume: Volume, bundle: Bundle) -> tuple[Finding, ...]:
    """Of a series that is read slice by slice, each finding is told of the slice where it is most probable."""
    if not bundle.dicom.per_slice:
        return findings(network.read(volume), volume, bundle)
    each = [findings(network.read(image), image, bundle) for image in slices(volume)]
    return tuple(max(of_one, key=lambda finding: finding.probability) for of_one in zip(*each, strict=True))


def _detections(network: Network, volume: Volume, bundle: Bundle) -> tuple[tuple[Detection, ...], tuple[str, ...]]:
    how = bundle.dicom.boxes
    assert how is not None  # noqa: S101 - a detection has it
    if not bundle.dicom.per_slice:
        return detect.told(*detect.detections(network.detect(volume, how), volume, bundle), bundle)
    each = [detect.detections(network.detect(image, how), image, bundle) for image in slices(volume)]
    return detect.told(*detect.joined(each), bundle)


def algorithm(bundle: Bundle) -> Algorithm:
    """Return the bundle as TID 4019 names it; the operating thresholds are among its parameters."""
    digest, dicom = bundle.weights_sha256, bundle.dicom
    used: list[float | None] = [entry.threshold for entry in dicom.finding]
    used += [entry.threshold for entry in dicom.segment]
    used += [entry.threshold for entry in dicom.detection]
    thresholds = sorted({f"threshold={threshold:.4g}" for threshold in used if threshold is not None})
    return Algorithm(
        name=bundle.name,
        version=bundle.version,
        label=bundle.dicom.label,
        manufacturer=bundle.dicom.manufacturer,
        device_uid=bundle.device_uid,
        weights_sha256=digest,
        parameters=(*thresholds, f"weights_sha256={digest}"),
    )
