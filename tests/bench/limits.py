"""What a listener and a large archive cost: `python -m tests.bench.limits`, or `make bench-limits`.

Memory of a listener that takes 8 associations, what a large instance adds, how long a study of 5,000 instances takes,
and how quickly a node starts and lists with 100,000 instances of 5,000 studies. All of it in processes of the product.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from node import clock
from node.simulate import scanner
from node.simulate.phantoms import volume
from node.store import registration
from node.store.db import Database
from node.store.spool import Spool
from tests.bench.processes import pss_mb
from tests.e2e.orthanc import free_port
from tests.e2e.wetread_node import CONFIG, ROOT

STUDY_OF, BATCH = 20, 500
COLUMNS = 32768
"""Of a large instance: Rows has 16 bits."""


class Node:
    """`wetread serve` in `folder`, without a worker."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.web_port = folder, free_port(), free_port()
        folder.mkdir(parents=True, exist_ok=True)
        values = {"port": self.port, "web_port": self.web_port, "pacs_port": free_port(), "pacs_ae": "PACS"}
        text = CONFIG.format(**values, database="sqlite:///state/wetread.db", broker="embedded")
        (folder / "wetread.toml").write_text(text)
        (folder / "routes.toml").write_text("")

    @contextmanager
    def running(self) -> Iterator[tuple[int, float]]:
        """Yield the process's id and the seconds from its start until both doors answer."""
        command = [sys.executable, "-m", "node.cli", "serve", "--config", str(self.folder / "wetread.toml")]
        with (self.folder / "node.log").open("ab") as log:
            started = time.perf_counter()
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            while not self._answers():
                if process.poll() is not None:
                    raise RuntimeError((self.folder / "node.log").read_text()[-2000:])
                time.sleep(0.02)
            yield process.pid, time.perf_counter() - started
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)

    def send(self, datasets: list[Dataset]) -> None:
        """Send on one association; raises RuntimeError when an instance was not acknowledged."""
        result = scanner.send(datasets, "127.0.0.1", self.port, ae="STORESCU", timeout=300.0)
        if not result.ok:
            log = (self.folder / "node.log").read_text()[-2000:]
            raise RuntimeError(
                f"{len(result.refused)} of {len(result.sent)} were not acknowledged: {result.refused[0]}\n{log}"
            )

    def _answers(self) -> bool:
        try:
            httpx.get(f"http://127.0.0.1:{self.web_port}/healthz").raise_for_status()
            return scanner.echo("127.0.0.1", self.port, ae="STORESCU", timeout=5.0) == 0
        except Exception:  # whatever a node that starts says
            return False


def slices(count: int, rows: int, columns: int, study: str = "") -> list[Dataset]:
    """Return `count` CT images of one series of noise."""
    whole = volume(shape=(1, rows, columns))[0][0]
    whole.StudyInstanceUID, whole.SeriesInstanceUID = study or generate_uid(), generate_uid()
    pixels = np.random.default_rng(0).integers(0, 4096, (rows, columns), np.uint16).tobytes()
    found = []
    for number in range(count):
        ds = Dataset(whole)
        ds.file_meta = Dataset(whole.file_meta)  # type: ignore[assignment]
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.InstanceNumber, ds.PixelData = number + 1, pixels
        found.append(ds)
    return found


def memory(folder: Path, instances: int, large_mb: int) -> dict[str, float]:
    """Return the listener's PSS in MB: at rest, during 8 associations twice over, and what one large instance adds."""
    node = Node(folder)
    with node.running() as (pid, _):
        rest = pss_mb(pid)
        first = _peak(pid, lambda: _eight(node, instances))
        second = _peak(pid, lambda: _eight(node, instances))
        before = pss_mb(pid)
        rows = large_mb * 2**20 // (2 * COLUMNS)
        large = _peak(pid, lambda: node.send(slices(1, rows, COLUMNS)))
    growth = (second - first) / (8 * instances) * 1024
    return {"rest": rest, "eight": second, "growth_kb_per_instance": growth, "large_adds": large - before}


def _eight(node: Node, instances: int) -> None:
    with ThreadPoolExecutor(8) as senders:
        list(senders.map(node.send, [slices(instances, 512, 512) for _ in range(8)]))


def _peak(pid: int, work: Callable[[], None]) -> float:
    """Return the highest PSS in MB seen while `work` runs."""
    with ThreadPoolExecutor(1) as worker:
        done, peak = worker.submit(work), 0.0
        while not done.done():
            peak = max(peak, pss_mb(pid))
            time.sleep(0.05)
        done.result()
    return peak


def large_study(folder: Path, count: int) -> dict[str, float]:
    """Return the seconds for receiving a study of `count` instances, and from the last one to COMPLETE."""
    node, study = Node(folder), str(generate_uid())
    with node.running():
        started = time.perf_counter()
        for _ in range(0, count, BATCH):
            node.send(slices(min(BATCH, count), 32, 32, study))
        received = time.perf_counter()
        db = Database(f"sqlite:///{folder}/state/wetread.db")
        while _state(db, study) == "RECEIVING":
            time.sleep(0.1)
        done = time.perf_counter()
        db.close()
    return {"received_s": received - started, "complete_s": done - received}


def _state(db: Database, study: str) -> str:
    with db.reader() as connection:
        found = connection.exec_driver_sql("SELECT state FROM study WHERE study_instance_uid = ?", (study,)).scalar()
    return str(found or "RECEIVING")


def archive(folder: Path, instances: int) -> dict[str, float]:
    """Return seconds: from start until both doors answer, and the lists (medians of 5), with so many instances."""
    node = Node(folder)
    fill(folder, instances)
    with node.running() as (_, start_s), httpx.Client(base_url=f"http://127.0.0.1:{node.web_port}") as client:
        pages = {"page_s": "/", "metrics_s": "/metrics"}
        return {"start_s": start_s} | {name: _median_s(lambda p=path: client.get(p)) for name, path in pages.items()}  # type: ignore[misc]


def _median_s(ask: Callable[[], httpx.Response]) -> float:
    found = []
    for _ in range(5):
        started = time.perf_counter()
        ask().raise_for_status()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def fill(folder: Path, instances: int) -> None:
    """Put so many small instances into the spool and into the index, 20 to a study."""
    spool = Spool(folder / "state" / "spool", 0)
    db = Database(f"sqlite:///{folder}/state/wetread.db")
    now = clock.now()
    for start in range(0, instances, BATCH):
        found = [_instance(spool, number, now) for number in range(start, min(start + BATCH, instances))]
        registration.register(db, found)
    db.close()


def _instance(spool: Spool, number: int, now: float) -> registration.Received:
    data = str(number).encode()
    sha256 = hashlib.sha256(data).hexdigest()
    path = spool.path(spool.instance_name(sha256))
    path.write_bytes(data)
    study = number // STUDY_OF
    return registration.Received(
        sop_instance_uid=f"1.2.3.{number}", sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1", study_instance_uid=f"1.2.4.{study}",
        series_instance_uid=f"1.2.5.{study}", sha256=sha256, path=spool.relative(path), size=len(data),
        calling_ae="CT", is_own_result=False, received_at=now,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.limits", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--instances", type=int, default=100_000, help="of the archive that a node starts with")
    parser.add_argument("--per-association", type=int, default=100, help="instances of 512 KiB, over 8 associations")
    parser.add_argument("--large-mb", type=int, default=1024, help="size of one large instance")
    parser.add_argument("--study", type=int, default=5000, help="instances of the large study")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="wetread-limits-") as folder:
        found = {
            "listener_mb": memory(Path(folder) / "memory", asked.per_association, asked.large_mb),
            "study_s": large_study(Path(folder) / "study", asked.study),
            "archive_s": archive(Path(folder) / "archive", asked.instances),
        }
    if asked.json:
        print(json.dumps(found, indent=1))
        return
    for what, values in found.items():
        print(what, ", ".join(f"{name} {value:.2f}" for name, value in values.items()))


if __name__ == "__main__":
    main()
