"""What one instance costs the receiver, stage by stage, in microseconds of CPU: `python -m tests.bench.stages`.

One thread, no network, a fresh spool and index; a stage is run for all instances before the next one begins. What is
left of a receiver's CPU time is the wire, and threads that wait for each other.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from node.accept.filemeta import part10_header
from node.accept.part10 import read_meta
from node.accept.precheck import Header, inspect
from node.accept.receive import Arrival
from node.store import studies
from node.store.db import Database
from node.store.ingestlog import IngestLog
from node.store.spool import Spool, digest
from node.store.studies import Received
from tests.bench.ingest import SIZES_KIB, Load

BATCHES = (200, 20)
T = TypeVar("T")


class Meter:
    """Adds up the CPU time of each stage, over `count` instances."""

    def __init__(self, count: int) -> None:
        self.count, self.microseconds = count, dict[str, float]()

    def __call__(self, name: str, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Make all calls of a stage and return what they returned."""
        started = time.process_time()
        results = [call() for call in calls]
        self.microseconds[name] = (time.process_time() - started) / self.count * 1e6
        return results


def stages(size_kib: int, megabytes: int, folder: Path) -> dict[str, float]:
    """Return the microseconds of CPU that each stage takes for one instance."""
    files = [p.read_bytes() for p in sorted((Load(folder / "load", size_kib, megabytes).folder / "all").iterdir())]
    metas = [read_meta(file[:4096]) for file in files]
    datasets = [memoryview(file)[meta.end :] for file, meta in zip(files, metas, strict=True)]
    arrivals = [Arrival(m.sop_class_uid, m.sop_instance_uid, m.transfer_syntax_uid, "BENCH") for m in metas]
    spool, db = Spool(folder / "state" / "spool", 0), Database(f"sqlite:///{folder}/state/wetread.db")
    log, meter = IngestLog(spool), Meter(len(files))
    headers = meter("check of the data set", [partial(_check, *pair) for pair in zip(datasets, arrivals, strict=True)])
    heads = meter(
        "File Meta Information", [partial(part10_header, *pair) for pair in zip(headers, arrivals, strict=True)]
    )
    digests = meter("SHA-256", [partial(digest, dataset) for dataset in datasets])
    entries = meter(
        "append to the log and sync",
        [partial(log.append, *of) for of in zip(heads, datasets, digests, strict=True)],
    )
    meter("laying out", [entry.lay_out for entry in entries])
    received = [
        replace(_RECEIVED, sop_instance_uid=a.sop_instance_uid, sha256=e.stored.sha256, path=e.stored.path)
        for a, e in zip(arrivals, entries, strict=True)
    ]
    for size in BATCHES:
        study = f"1.2.{size}"
        batches = [
            [replace(one, study_instance_uid=study, sop_instance_uid=f"{one.sop_instance_uid}.{size}") for one in some]
            for some in (received[start : start + size] for start in range(0, len(received), size))
        ]
        meter(f"index, in batches of {size}", [partial(studies.register, db, batch) for batch in batches])
    log.close()
    db.close()
    return meter.microseconds


_RECEIVED = Received(
    "", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1", "", "1.2.1", "", "", 1, "BENCH", False, 1.0
)


def _check(dataset: memoryview, arrival: Arrival) -> Header:
    return inspect(dataset, arrival.transfer_syntax_uid, arrival.sop_class_uid, arrival.sop_instance_uid)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.stages", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", nargs="+", type=int, choices=SIZES_KIB, default=list(SIZES_KIB), help="in KiB")
    parser.add_argument("--megabytes", type=int, default=20)
    asked = parser.parse_args(arguments)
    print(f"microseconds of CPU for one instance; load {os.getloadavg()[0]:.1f}")
    for size in asked.sizes:
        with tempfile.TemporaryDirectory(prefix="wetread-stages-") as folder:
            for name, taken in stages(size, asked.megabytes, Path(folder)).items():
                print(f"{size} KiB: {name} {taken:.0f}")


if __name__ == "__main__":
    main()
