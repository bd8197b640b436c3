"""All volumes of a series, read by one network, become one Reading."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from node.bundles import Bundle
from node.findings import Algorithm, Reading, Volume
from workers.predict.classify import findings
from workers.predict.network import Network
from workers.predict.segment import segmentation


def read(network: Network, volumes: Sequence[Volume], bundle: Bundle, started: datetime) -> Reading:
    """Read each of `volumes` and return what the bundle says about all of them.

    Raises `Permanent` when the network or its transforms fail; an empty segment or an absent finding is an answer.
    """
    remarks = tuple(remark for volume in volumes for remark in volume.remarks)
    if bundle.dicom.kind == "classification":
        said = tuple(f for volume in volumes for f in findings(network.read(volume), volume, bundle))
        return Reading(algorithm(bundle), started, findings=said, remarks=remarks)
    maps = tuple(segmentation(network.read(volume), volume, bundle) for volume in volumes)
    return Reading(algorithm(bundle), started, segmentations=maps, remarks=remarks)


def algorithm(bundle: Bundle) -> Algorithm:
    """Return the bundle as TID 4019 names it; the operating thresholds are among its parameters."""
    digest = bundle.weights_sha256
    dicom = bundle.dicom
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
