"""Stages 4 to 6 as one readable function: a series is loaded, predicted, reported, checked, and written.

Runs in the supervised child (`workers/reader.py`) and offline. Request and Outcome travel as JSON. The supervisor
imports this file for those two alone, so the stages are imported where they are used: torch stays in the child.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from node import clock
from node.bundles import Bundle
from node.bundles import load as load_bundle
from node.errors import Permanent, Transient, Unsuitable
from node.findings import Detection, Finding, Reading, Segment, Volume
from workers.imports import uncollected
from workers.room import is_full

if TYPE_CHECKING:
    from workers.predict.network import Network
    from workers.report.context import EvidenceDocument

Runtime = Literal["auto", "torch", "openvino"]
Turn = Callable[[], AbstractContextManager[None]]
"""What is entered while a network computes, so that of several readers on a device one does."""
WARM_NETWORKS = 4
"""Networks that stay in memory."""
UNITS = {"ml": "mL", "cm2": "cm²", "{pixels}": "pixels"}
"""How people write the UCUM units of a summary."""
_MAX_SUMMARY = 500


@dataclass(frozen=True)
class Request:
    """One bundle, one series, one study revision.

    `files`: Part 10 files of the series. `bundle`: its folder; `digest`: what it must be. `out`: folder for results.
    `key`: digest of the input manifest. `predecessors`: SR files of the revision before. `started`: seconds since
    the epoch; None is now. `decline`: what becomes of images that the bundle's guard declines (`workers/restraint.py`).
    The same request with the same `started` gives the same bytes.
    """

    job_id: str
    study_instance_uid: str
    series_instance_uid: str
    revision: int
    files: tuple[str, ...]
    bundle: str
    digest: str
    results: tuple[Literal["SR", "SEG", "SC", "SALIENCY", "PM"], ...]
    out: str
    device: str
    key: str
    predecessors: tuple[str, ...] = ()
    ae_title: str = "WETREAD"
    highest_series_number: int | None = None
    started: float | None = None
    runtime: Runtime = "torch"
    decline: Literal["silent", "report", "never"] = "silent"

    def to_json(self) -> str:
        """Return the request as one line of JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(line: str) -> Request:
        """Return the request in `line`; raises ValueError, TypeError or KeyError where it is none."""
        fields: dict[str, Any] = json.loads(line)
        for key in ("files", "results", "predecessors"):
            fields[key] = tuple(fields[key])
        return Request(**fields)


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    `reason` is for people, empty when reported. `transient`: trying again may help. `documents`: per file its kind,
    sop_class_uid, sop_instance_uid, series_instance_uid and file (path). `figures`: what a reported reading took, in
    seconds and megabytes, and the shapes that went through the network. `warnings`: what the node logged meanwhile.
    `is_full`: it failed because a disk is full.
    """

    kind: Literal["reported", "unsuitable", "failed"]
    reason: str
    transient: bool
    summary: str
    documents: tuple[dict[str, str], ...]
    figures: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    is_full: bool = False

    def to_json(self) -> str:
        """Return the outcome as one line of JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(line: str) -> Outcome:
        """Return the outcome in `line`; raises ValueError, TypeError or KeyError where it is none."""
        fields = json.loads(line)
        return Outcome(**{**fields, **{key: tuple(fields[key]) for key in ("documents", "warnings")}})


def read(request: Request, turn: Turn = nullcontext) -> Outcome:
    """Read one series and write its Evidence Documents to `request.out`; nothing is written unless all pass the gate.

    The network computes within `turn`; all else, loading and reporting above all, may go on beside another reading.
    Unsuitable input, permanent and transient failures are outcomes. What else is raised is a fault of the node and
    is left to the caller, who knows whether it may be told.
    """
    laps = _Laps()
    try:
        bundle, network = _warm(request.bundle, request.digest, request.device, request.runtime)
        network.turn = turn
        laps.end("ready_s")
        reading, documents = _stages(request, bundle, network, laps)
        written = _write(documents, bundle, Path(request.out))
        if reading.is_declined:
            from workers.restraint import told

            return Outcome("unsuitable", _not_read(request, bundle, told(reading.declined)), False, "", written)
        return Outcome("reported", "", False, summary(reading), written, laps.took | _needed(network))
    except Unsuitable as error:
        return Outcome("unsuitable", _not_read(request, bundle, str(error)), False, "", ())
    except Permanent as error:
        return Outcome("failed", str(error), False, "", ())
    except Transient as error:
        return Outcome("failed", str(error), True, "", ())
    except OSError as error:
        return Outcome("failed", f"A file could not be read or written: {error}", True, "", (), is_full=is_full(error))


def _not_read(request: Request, bundle: Bundle, why: str) -> str:
    return f"Series {request.series_instance_uid} was not read by {bundle.title}: {why}."


class _Laps:
    """Seconds per stage, in order: `took["load_s"]`."""

    def __init__(self) -> None:
        self.took: dict[str, Any] = {}
        self._last = time.perf_counter()

    def end(self, name: str) -> None:
        now = time.perf_counter()
        self.took[name], self._last = round(now - self._last, 3), now


def _needed(network: Network) -> dict[str, Any]:
    """Peak memory of this process since its start, of the device since the network's, and the last shapes."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): kilobytes on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "peak_memory_mb": round(peak / 1e6),
        "peak_device_mb": network.peak_device_mb,
        "shapes": network.shapes,
        "runtime": network.runtime,
    }


def _stages(
    request: Request, bundle: Bundle, network: Network, laps: _Laps
) -> tuple[Reading, Sequence[EvidenceDocument]]:
    from workers import restraint
    from workers.load.inputs import load_for
    from workers.predict.reading import algorithm
    from workers.predict.reading import read as predict
    from workers.report import evidence, gate
    from workers.report.context import Context, NodeIdentity

    started = clock.to_datetime(clock.now() if request.started is None else request.started)
    files = tuple(Path(file) for file in request.files)
    context = Context(
        sources=files,
        key=request.key,
        node=NodeIdentity(ae_title=request.ae_title),
        predecessors=tuple(Path(file) for file in request.predecessors),
        results=request.results,
        highest_series_number=request.highest_series_number,
    )
    volumes = load_for(files, bundle.dicom)
    laps.end("load_s")
    verdict = restraint.judge(files, volumes, bundle, request.decline)
    volumes = list(verdict.read)
    laps.end("guard_s")
    context = context if volumes else replace(context, results=("SR",))
    with network.keeping("PM" in request.results and bundle.dicom.kind == "segmentation"):
        reading = predict(network, volumes, bundle, started) if volumes else Reading(algorithm(bundle), started)
        reading = replace(reading, remarks=(*reading.remarks, *verdict.remarks), declined=verdict.declined)
        laps.end("predict_s")
        if volumes:
            reading = _explained(reading, request, bundle, network, volumes, laps)
    documents = evidence.build(reading, volumes, context)
    gate.check(documents, reading, volumes, context)
    laps.end("report_s")
    return reading, documents


def _explained(
    reading: Reading,
    request: Request,
    bundle: Bundle,
    network: Network,
    volumes: Sequence[Volume],
    laps: _Laps,
) -> Reading:
    """Return `reading` with the maps that the route asks for."""
    if {"SALIENCY", "PM"} & set(request.results) and bundle.dicom.explain is not None:
        from workers.predict.explain import explain

        reading = explain(network, volumes, bundle, reading)
        laps.end("explain_s")
    if "PM" in request.results:
        from workers.predict.maps import explain_volumes

        reading = explain_volumes(network, volumes, bundle, reading)
        laps.end("map_s")
    return reading


@lru_cache(maxsize=WARM_NETWORKS)
def _warm(folder: str, digest: str, device: str, runtime: Runtime) -> tuple[Bundle, Network]:
    """The bundle and its network, kept for the next series; another digest is another entry."""
    with uncollected():
        from workers.predict.network import Network

    bundle = load_bundle(Path(folder))
    return bundle, Network(bundle, device, digest, runtime)


def _write(documents: Sequence[EvidenceDocument], bundle: Bundle, out: Path) -> tuple[dict[str, str], ...]:
    """Write each document to `out` and say what it is; the caller files them durably."""
    from workers.report import evidence

    out.mkdir(parents=True, exist_ok=True)
    written = []
    for number, document in enumerate(documents, 1):
        path = out / f"{bundle.name}-{number}-{document.kind}.dcm"
        path.write_bytes(evidence.to_bytes(document))
        written.append(
            {
                "kind": document.kind,
                "sop_class_uid": document.sop_class_uid,
                "sop_instance_uid": document.sop_instance_uid,
                "series_instance_uid": document.series_instance_uid,
                "file": str(path),
            }
        )
    return tuple(written)


def summary(reading: Reading) -> str:
    """Return what was found in one line for listings: findings with their probability, segments with their size."""
    told = [_finding(finding) for finding in reading.findings]
    told += [_detection(detection) for detection in reading.detections]
    told += [_segment(segment) for found in reading.segmentations for segment in found.segments]
    line = "; ".join(told)
    return line if len(line) <= _MAX_SUMMARY else f"{line[: _MAX_SUMMARY - 1]}…"


def _finding(finding: Finding) -> str:
    presence = "present" if finding.present else "absent"
    value = f"{finding.probability:.1%}" if finding.calibrated else f"score {finding.probability:.2f}"
    return f"{finding.label}: {presence} ({value})"


def _detection(detection: Detection) -> str:
    if not detection.boxes:
        return f"{detection.label}: none"
    noun = "probability" if detection.calibrated else "score"
    return f"{detection.label}: {len(detection.boxes)} (best {noun} {detection.boxes[0].score:.2f})"


def _segment(segment: Segment) -> str:
    if segment.is_empty:
        return f"{segment.label}: absent"
    measured = ", ".join(f"{_short(m.value)} {UNITS.get(m.unit.value, m.unit.value)}" for m in segment.measurements)
    return f"{segment.label}: {measured or 'found'}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
