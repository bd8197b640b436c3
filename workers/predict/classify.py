"""Probabilities become Findings: one per output that the bundle's dicom.toml explains (TID 1501)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.bundles import Bundle
from node.errors import Permanent
from node.findings import Finding, Volume


def findings(pred: NDArray[Any], volume: Volume, bundle: Bundle) -> tuple[Finding, ...]:
    """Return a Finding for each `[[finding]]` of `bundle`, present or absent, on the middle image of `volume`.

    `pred`: (outputs,) probabilities. Raises `Permanent` where they are not, or an output is not there.
    """
    values = np.asarray(pred, dtype=np.float64).reshape(-1)
    if not np.isfinite(values).all() or values.min(initial=0.0) < 0 or values.max(initial=1.0) > 1:
        raise Permanent(f"{bundle.title} answered with values that are no probabilities; nothing was reported.")
    last = max((entry.output for entry in bundle.dicom.finding), default=-1)
    if np.asarray(pred).ndim != 1 or last >= len(values):
        told = "×".join(map(str, np.shape(pred)))
        raise Permanent(f"{bundle.title} answered in shape {told}; dicom.toml explains {last + 1} outputs.")
    source = volume.sources[len(volume.sources) // 2]
    return tuple(
        Finding(
            label=entry.label,
            type=entry.type.to_code(),
            site=entry.site.to_code() if entry.site else None,
            probability=float(values[entry.output]),
            threshold=entry.threshold,
            calibrated=entry.calibrated,
            source=source,
            sensitivity=entry.sensitivity,
        )
        for entry in bundle.dicom.finding
    )
