"""How many seconds a series takes of many that are read one after another, by the product's own readers.

With two readers (`[worker] readers`) the next series is loaded, and the last one brought back and reported, while the
network of one computes. All of the pipeline is in it: supervisor, child, guard, report and gate.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from node.bundles import Bundle
from workers.pipeline import Request
from workers.reader import Readers

TIMEOUT_S = 3600.0


def seconds_each(
    bundle: Bundle, series: Path, scratch: Path, count: int, readers: int, runtime: Any = "torch", device: str = "cpu"
) -> float:
    """Return the seconds for each of `count` readings of `series`, after one in each reader that does not count."""
    pool = Readers(readers)
    files = tuple(str(path) for path in sorted(series.glob("*.dcm")))

    def read(number: int) -> None:
        out = scratch / f"reading-{number}"
        request = Request(
            job_id=f"job-{number}",
            study_instance_uid="2.25.1",
            series_instance_uid="2.25.2",
            revision=1,
            files=files,
            bundle=str(bundle.folder),
            digest=bundle.digest,
            results=("SEG",),
            out=str(out),
            device=device,
            key="0" * 64,
            runtime=runtime,
            decline="never",
        )
        outcome = pool.read(request, TIMEOUT_S)
        if outcome.kind != "reported":
            raise RuntimeError(outcome.reason)

    with ThreadPoolExecutor(readers) as threads:
        try:
            list(threads.map(read, range(readers)))
            began = time.perf_counter()
            list(threads.map(read, range(count)))
            return (time.perf_counter() - began) / count
        finally:
            pool.stop()
