"""How soon a study with full evidence is queued: from its last C-STORE response to the job that others can see.

A real node with its listener, its database on disk and its loops at their usual pace, and a simulated PACS that has
each study already and is asked for its count. `make bench-completeness`; every study is new and is sent on an
association of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from node.daemon import Node
from node.settings import Route, Routes, Settings
from node.simulate import phantoms, scanner
from node.simulate.pacs import Pacs
from node.store.db import rows

GIVE_UP_S = 30.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--slices", type=int, default=24)
    parser.add_argument("--folder", type=Path, help="where the state lies while it is measured")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        took = sorted(measure(Path(folder), asked.studies, asked.slices))
    found = {
        "studies": asked.studies,
        "slices": asked.slices,
        "median_s": statistics.median(took),
        "worst_s": took[-1],
        "over_2_s": sum(one > 2 for one in took),
        "load": os.getloadavg()[0] / (os.cpu_count() or 1),
    }
    if asked.json:
        print(json.dumps(found))
        return
    print(f"{asked.studies} studies of {asked.slices} slices, from the last C-STORE response to the queued job:")
    print(f"median {found['median_s']:.2f} s, worst {found['worst_s']:.2f} s, {found['over_2_s']} over 2 s")
    print(f"(the machine had {found['load']:.1f} processes waiting for each of its {os.cpu_count()} cores)")


def measure(folder: Path, studies: int, slices: int) -> Iterator[float]:
    """Yield, for each study, the seconds from its last response to the first look that finds its job."""
    with running(folder) as (node, pacs):
        for study in made(studies, slices):
            assert scanner.send(study, "127.0.0.1", pacs.port, called=pacs.ae_title).ok
            yield _once(node, study)


def made(studies: int, slices: int) -> Iterator[list[Dataset]]:
    """Yield studies that differ in their UIDs."""
    images, _ = phantoms.volume(modality="MR", shape=(slices, 64, 48))
    for _ in range(studies):
        study = copy.deepcopy(images)
        study_uid, series_uid = generate_uid(), generate_uid()
        for ds in study:
            ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = study_uid, series_uid, generate_uid()
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        yield study


@contextmanager
def running(folder: Path) -> Iterator[tuple[Node, Pacs]]:
    """Yield a node without a worker, and the PACS that it asks."""
    with Pacs(folder / "pacs") as pacs:
        settings = Settings.model_validate(
            {
                "node": {"port": 0},
                "web": {"port": 0},
                "completeness": {"archive": "pacs"},
                "broker": {"url": "memory://"},
                "spool": {"url": folder / "state" / "spool", "refuse_below": "100 MB"},
                "database": {"url": f"sqlite:///{folder}/state/wetread.db"},
                "destination": {"pacs": {"host": "127.0.0.1", "port": pacs.port, "ae_title": pacs.ae_title}},
            }
        )
        route = Route(name="all", models=("hippocampus",), send_to=("pacs",))
        with Node(settings, Routes(route=(route,))) as node:
            yield node, pacs


def _once(node: Node, study: Sequence[Dataset]) -> float:
    last = 0.0

    def answered(sent: scanner.Sent) -> None:
        nonlocal last
        last = time.monotonic()

    assert scanner.send(study, "127.0.0.1", node.listener.port, on_sent=answered).ok
    uid = str(study[0].StudyInstanceUID)
    while time.monotonic() < last + GIVE_UP_S:
        with node.db.reader() as connection:
            if rows(connection, "SELECT 1 AS there FROM job WHERE study_instance_uid = :uid", uid=uid):
                return time.monotonic() - last
        time.sleep(0.01)
    raise RuntimeError(f"study {uid} was not queued within {GIVE_UP_S:.0f} s")


if __name__ == "__main__":
    main()
