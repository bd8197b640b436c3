"""How fast instances come in: our durable listener beside DCMTK, Orthanc and pynetdicom, interleaved on one machine.

`python -m tests.bench.ingest [--rounds 5] [--json]`, or `make bench-ingest`. Senders are DCMTK's storescu without
Nagle's algorithm, one process per association. Machines are noisy: only ratios from one run mean something, so each
is taken within a round, and what is printed is the median with the range over the rounds. What a receiver wrote is
emptied after its turn and deleted at the very end: ext4 steps over each inode that was freed in the last minutes, and
the next receiver would pay for the files of the one before (up to half of its CPU time).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np

from node import uids
from node.simulate.phantoms import volume
from tests import dcmtk
from tests.bench.processes import cpu_s
from tests.bench.receivers import RECEIVERS, Receiver, wait_until_ready

SIZES_KIB = {512: (512, 512), 64: (256, 128)}
"""Rows and columns of 16 bits that make an instance of so many KiB."""
WARM_UP_KIB, WARM_UP_MB = 512, 210
"""What every receiver takes before a load: as much as fills our ingest log once, so that its files are used again."""
SEND_TIMEOUT_S = 300.0
SYNCS = 30
OURS = next(iter(RECEIVERS))


@dataclass(frozen=True)
class Case:
    """One load: instances of `size_kib` over so many associations at once."""

    size_kib: int
    associations: int


@dataclass(frozen=True)
class Run:
    """What one receiver did with one load in one round."""

    receiver: str
    case: Case
    round: int
    instances: int
    megabytes: float
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Megabytes (10⁶ bytes) a second."""
        return self.megabytes / self.seconds

    @property
    def cpu_per_gb(self) -> float:
        """CPU seconds of the receiver for 10⁹ bytes."""
        return self.cpu_s / self.megabytes * 1000


class Load:
    """The instances of one size on disk; made once, sent to every receiver."""

    def __init__(self, folder: Path, size_kib: int, megabytes: int) -> None:
        self.folder, self.size_kib = folder, size_kib
        self.count = max(megabytes * 1_000_000 // (size_kib * 1024), 8)
        self._make(folder / "all")

    def shares(self, associations: int) -> list[Path]:
        """Return a folder per association; together they hold every instance once."""
        shares = [self.folder / f"{associations}-{number}" for number in range(associations)]
        if not shares[0].exists():
            for share in shares:
                share.mkdir()
            for number, path in enumerate(sorted((self.folder / "all").iterdir())):
                os.link(path, shares[number % associations] / path.name)
        return shares

    @property
    def megabytes(self) -> float:
        """Size of all files, in 10⁶ bytes."""
        return sum(path.stat().st_size for path in (self.folder / "all").iterdir()) / 1e6

    def _make(self, folder: Path) -> None:
        """Write CT images of noise: no file system and no receiver can make them smaller, or has seen them before."""
        folder.mkdir(parents=True)
        rows, columns = SIZES_KIB[self.size_kib]
        ds = volume(shape=(1, rows, columns))[0][0]
        rng = np.random.default_rng()
        for number in range(self.count):
            uid = uids.derive_uid("bench", self.folder.name, str(number))
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid
            ds.InstanceNumber = number + 1
            ds.PixelData = rng.integers(0, 4096, (rows, columns), np.uint16).tobytes()
            ds.save_as(folder / f"{number:06}.dcm", enforce_file_format=True)


def send(receiver: Receiver, folders: Sequence[Path]) -> float:
    """Send each folder on an association of its own, all at once; return the seconds until the last has ended.

    Raises RuntimeError when a sender was told anything but success.
    """
    command = [dcmtk.program("storescu"), "-q", "-R", "-aec", receiver.ae_title, "+sd", "127.0.0.1", str(receiver.port)]
    environment = os.environ | {"TCP_NODELAY": "1"}
    started = time.perf_counter()
    senders = [subprocess.Popen([*command, str(folder)], env=environment) for folder in folders]
    codes = [sender.wait(timeout=SEND_TIMEOUT_S) for sender in senders]
    seconds = time.perf_counter() - started
    if any(codes):
        raise RuntimeError(f"storescu ended with {codes}")
    return seconds


def measure(name: str, load: Load, case: Case, number: int, warm_up: Load) -> Run:
    """Start receiver `name` in an empty folder, warm it up, and take the time of one load."""
    os.sync()  # what a receiver before this one left unwritten is not on this one's bill
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=load.folder.parent))
    try:
        with RECEIVERS[name](folder) as receiver:
            wait_until_ready(receiver)
            send(receiver, warm_up.shares(1))
            _all_stored(receiver, warm_up.count)
            os.sync()
            before, count = cpu_s(receiver.pid), warm_up.count + load.count
            seconds = send(receiver, load.shares(case.associations))
            stored = _all_stored(receiver, count)
            used = cpu_s(receiver.pid) - before
            if stored != count:
                raise RuntimeError(f"{name} has {stored} instances of {count}")
    finally:
        _empty(folder)
    return Run(name, case, number, load.count, load.megabytes, seconds, used)


def _empty(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)


def ceiling(size_kib: int, folder: Path) -> tuple[float, float]:
    """Return the ms that a sync of one instance takes in `folder`, and the MB/s that it leaves to one association.

    A sender waits for each answer, and an answer waits for a sync: no durable receiver passes this rate with one.
    """
    data, took = os.urandom(size_kib * 1024), []
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, SYNCS * len(data))
        os.fsync(file.fileno())
        for number in range(SYNCS):
            started = time.perf_counter()
            os.pwrite(file.fileno(), data, number * len(data))
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - started)
    sync_s = statistics.median(took)
    return sync_s * 1000, len(data) / 1e6 / sync_s


def _all_stored(receiver: Receiver, count: int) -> int:
    """Return how many files there are; ours come from its log after the answer, and their work is on its bill."""
    until = time.monotonic() + SEND_TIMEOUT_S
    while receiver.stored() < count and time.monotonic() < until:
        time.sleep(0.05)
    return receiver.stored()


def measured(asked: argparse.Namespace, cases: Sequence[Case], folder: Path) -> Iterator[Run]:
    """Yield run after run: every receiver in turn, beginning with another one in each round."""
    sizes = {case.size_kib for case in cases}
    loads = {size: Load(folder / f"{size}k", size, asked.megabytes) for size in sizes}
    warm = Load(folder / "warm", WARM_UP_KIB, asked.warm_up)
    for number, case in product(range(asked.rounds), cases):
        first = number % len(asked.receivers)
        for name in (*asked.receivers[first:], *asked.receivers[:first]):
            yield measure(name, loads[case.size_kib], case, number, warm)


@dataclass(frozen=True)
class Line:
    """One receiver with one load: medians with their ranges; `ratio` is our rate by this one's, round by round."""

    size_kib: int
    associations: int
    receiver: str
    megabytes_per_s: tuple[float, float, float]
    cpu_s_per_gb: tuple[float, float, float]
    ratio: tuple[float, float, float] | None


def summarize(runs: Sequence[Run]) -> list[Line]:
    """Return a line per load and receiver, in the order in which they were measured first."""
    ours = {(run.case, run.round): run.rate for run in runs if run.receiver == OURS}
    grouped: dict[tuple[Case, str], list[Run]] = {}
    for run in runs:
        grouped.setdefault((run.case, run.receiver), []).append(run)
    order = list(RECEIVERS)
    lines = []
    for (case, name), of in sorted(
        grouped.items(), key=lambda g: (-g[0][0].size_kib, g[0][0].associations, order.index(g[0][1]))
    ):
        ratios = [ours[case, run.round] / run.rate for run in of if (case, run.round) in ours]
        rate, cpu = _spread([run.rate for run in of]), _spread([run.cpu_per_gb for run in of])
        lines.append(Line(case.size_kib, case.associations, name, rate, cpu, _spread(ratios) if ratios else None))
    return lines


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def table(lines: Sequence[Line]) -> str:
    """Return the lines as a Markdown table; a ratio above 1 says that we are faster."""
    head = "| instance | associations | receiver | MB/s | wetread to it | CPU s/GB |\n|---|---|---|---|---|---|"
    return "\n".join([head, *map(_row, lines)])


def _row(line: Line) -> str:
    ratio = "–" if line.ratio is None or line.receiver == OURS else "{:.2f} ({:.2f}–{:.2f})".format(*line.ratio)
    rate, cpu = "{:.0f} ({:.0f}–{:.0f})".format(*line.megabytes_per_s), f"{line.cpu_s_per_gb[0]:.1f}"
    return f"| {line.size_kib} KiB | {line.associations} | {line.receiver} | {rate} | {ratio} | {cpu} |"


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ingest", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=120, help="of instances in one load")
    parser.add_argument("--warm-up", type=int, default=WARM_UP_MB, help="megabytes that come before each load")
    parser.add_argument(
        "--receivers",
        nargs="+",
        choices=RECEIVERS,
        default=[name for name in RECEIVERS if not name.startswith(f"{OURS}-")],
    )
    parser.add_argument("--sizes", nargs="+", type=int, choices=SIZES_KIB, default=list(SIZES_KIB), help="in KiB")
    parser.add_argument("--associations", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--folder", type=Path, help="where everything is written; its file system is what is measured")
    parser.add_argument("--json", action="store_true", help="every run and the summary, as JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    asked = _arguments(arguments)
    cases = [Case(size, associations) for size, associations in product(asked.sizes, asked.associations)]
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="wetread-bench-", dir=asked.folder) as folder:
        ceilings = {size: ceiling(size, Path(folder)) for size in asked.sizes}
        for run in measured(asked, cases, Path(folder)):
            runs.append(run)
            told = f"{run.case.size_kib} KiB × {run.case.associations}: {run.receiver} {run.rate:.0f} MB/s"
            print(f"round {run.round + 1}, {told}", file=sys.stderr)
    lines = summarize(runs)
    if asked.json:
        print(
            json.dumps(
                {
                    "runs": [asdict(run) for run in runs],
                    "summary": [asdict(line) for line in lines],
                    "ceiling": {size: {"sync_ms": sync, "mb_per_s": rate} for size, (sync, rate) in ceilings.items()},
                },
                indent=1,
            )
        )
    else:
        print(table(lines))
        for size, (sync, rate) in ceilings.items():
            print(f"A sync of {size} KiB takes {sync:.1f} ms here: one association cannot pass {rate:.0f} MB/s.")


if __name__ == "__main__":
    main()
