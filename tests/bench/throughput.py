"""How many studies a minute 1, 2 and 4 workers read: `python -m tests.bench.throughput`.

All of it is the product but the network: a reading is a canned answer after `--reading` seconds, so that the figure is
what queue, leases, loading, reporting and delivery allow, and says how it grows with workers.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from tests.crash.hospital import Hospital


def measure(workers: int, studies: int, reading_s: float) -> float:
    """Return the studies per minute that `workers` read and deliver, from the first start to the last commitment."""
    with tempfile.TemporaryDirectory() as folder, Hospital(Path(folder) / "hospital") as hospital:
        hospital.start("node")
        hospital.wait_until_up()
        wanted = {}
        for number in range(studies):
            path = hospital.folder / "studies" / str(number)
            wanted[hospital.sender.make_study(path)] = 1
            hospital.sender.push_until_acknowledged(path, 60)
        for number in range(workers):
            hospital.run(f"worker {number}", "worker", hospital.folder / "wetread.toml")
        _wait_for_first(hospital)
        started, before = time.monotonic(), len(hospital.unfinished(wanted))
        hospital.wait_for_studies(wanted, 60 + 4 * studies * (reading_s + 1))
        return 60 * before / (time.monotonic() - started)


def _wait_for_first(hospital: Hospital) -> None:
    """Wait until a study is done: workers need seconds to start, which says nothing of their rate."""
    while not hospital.rows("SELECT 1 FROM study WHERE state = 'DONE' LIMIT 1"):
        time.sleep(0.05)


def main() -> None:
    """Print one line for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", type=int, default=60)
    parser.add_argument("--reading", type=float, default=0.5, help="seconds that a reading takes")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    os.environ["WETREAD_CANNED_S"] = str(chosen.reading)
    found = {count: measure(count, chosen.studies, chosen.reading) for count in chosen.workers}
    if chosen.json:
        print(json.dumps({"reading_s": chosen.reading, "studies": chosen.studies, "studies_per_minute": found}))
        return
    first = found[chosen.workers[0]]
    for count, rate in found.items():
        print(f"{count} workers: {rate:6.1f} studies per minute, {rate / first:.2f} times the first line")


if __name__ == "__main__":
    main()
