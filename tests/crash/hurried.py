"""The node, its worker and its reader as processes in a hurry: `python -m tests.crash.hurried node|worker|reader …`.

All of it is the product's own code but for two things: loops, leases and rests take fractions of a second instead of
seconds or minutes, and in place of a network the reader has a canned probability (loading, reporting and the gate are
real). A reading then takes 20 ms instead of seconds, so that a run can afford hundreds of kills.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
import types
from datetime import datetime
from pathlib import Path
from typing import Any

LEASE_S = 1.0
REST_S = 0.5
REPORT_WITHIN_S = 4.0
PACE_S = 0.1
READER = (sys.executable, "-m", "tests.crash.hurried", "reader")


def node(config: str, *roles: str) -> None:
    """`wetread serve`, or those `roles` of it."""
    from node import daemon, log, loop
    from node.assemble import inquiry
    from node.cli_output import load_all
    from node.route import doorbell
    from node.store import jobs

    doorbell.AGAIN_AFTER_S = LEASE_S
    loop.MAX_PAUSE_S = 1.0
    inquiry.MARGIN_S, inquiry.BACK_OFF_S = LEASE_S, (REST_S,)
    jobs.BACK_OFF_S = (REST_S,)
    settings, routes = load_all(Path(config))
    log.configure(settings.log)
    stopping = _stopping()
    chosen = [role for role in daemon.Role if role in roles or not roles]
    with daemon.Node(settings, routes, daemon.Pace(PACE_S, PACE_S, PACE_S, PACE_S, 1.0), chosen):
        stopping.wait()


def worker(config: str, *queues: str) -> None:
    """`wetread worker`, its two queues in one process so that a kill takes both; or one of its processes."""
    from node import broker, log
    from node.settings import load_settings, state_folder
    from workers import app

    settings = load_settings(Path(config))
    log.configure(settings.log)
    _hurry_the_worker()
    with broker.resolve(settings, state_folder(settings)) as url:
        app.work(settings, url, queues or ("read", "send"))


def reader(answers: str) -> None:
    """The supervised child, with `_predict` for a network."""
    from workers import pipeline
    from workers import reader as child

    canned: Any = types.ModuleType("workers.predict.reading")
    canned.read, canned.algorithm = _predict, _algorithm
    sys.modules["workers.predict.reading"] = canned
    pipeline._warm = _warm  # type: ignore[assignment]
    child.serve(int(answers), pipeline.read)


def _hurry_the_worker() -> None:
    from node import loop
    from node.store import deliveries, jobs
    from workers import app
    from workers.reader import Readers
    from workers.send import commitment, outbox

    opened = app.open_desk

    def open_desk(settings: Any) -> Any:
        desk = opened(settings)
        desk.lease_s = desk.send_lease_s = LEASE_S
        desk.readers = Readers(settings.worker.readers, READER)
        return desk

    app.open_desk = open_desk
    app.COMMIT_EVERY_S = REST_S
    loop.MAX_PAUSE_S = 1.0
    jobs.BACK_OFF_S = (REST_S,)
    outbox.rest = commitment.rest = lambda attempts, key: REST_S
    commitment.UNREACHED_REST_S = REST_S
    commitment.tick = functools.partial(commitment.tick, report_within=REPORT_WITHIN_S)
    # A person would be asked after five requests; what is killed here is the node, not the archive's good will.
    deliveries.uncommitted = functools.partial(deliveries.uncommitted, max_attempts=10_000)


def _warm(folder: str, digest: str, device: str, runtime: str) -> Any:
    from node import bundles

    keeping = contextlib.nullcontext  # what a map would be made of
    network = types.SimpleNamespace(peak_device_mb=0, shapes=(), runtime=runtime, keeping=keeping)
    return bundles.load(Path(folder)), network


def _predict(network: Any, volumes: Any, bundle: Any, started: datetime) -> Any:
    from node.findings import Finding, Reading

    time.sleep(float(os.environ.get("WETREAD_CANNED_S", "0")))
    entry = bundle.dicom.finding[0]
    said = tuple(
        Finding(entry.label, entry.type.to_code(), None, 0.7, entry.threshold, entry.calibrated, volume.sources[0])
        for volume in volumes
    )
    return Reading(_algorithm(bundle), started, findings=said)


def _algorithm(bundle: Any) -> Any:
    from node.findings import Algorithm

    names = (bundle.name, bundle.version, bundle.dicom.label, bundle.dicom.manufacturer, bundle.device_uid)
    return Algorithm(*names, weights_sha256="0" * 64)


def _stopping() -> threading.Event:
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    return stopping


def main(program: str, *words: str) -> None:
    """Be one of the three."""
    {"node": node, "worker": worker, "reader": reader}[program](*words)


if __name__ == "__main__":
    main(*sys.argv[1:])
