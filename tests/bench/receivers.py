"""Storage SCPs to compare, each on a free port of loopback and in an empty folder of its own.

Each is tuned as well as its options allow: without Nagle's algorithm, which would stall every store by 45 ms.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from tests import dcmtk
from tests.e2e import orthanc

ROOT = Path(__file__).resolve().parents[2]
START_S = 30.0


@dataclass(frozen=True)
class Receiver:
    """A running Storage SCP; `stored` counts the instances that it has kept."""

    ae_title: str
    port: int
    pid: int
    stored: Callable[[], int]


Start = Callable[[Path], AbstractContextManager[Receiver]]


@contextmanager
def _wetread(folder: Path, processes: int = 0) -> Iterator[Receiver]:
    """The node's listener with its index: every instance is on disk before it is acknowledged."""
    command = [sys.executable, "-m", "tests.protocol.node_process", str(folder), str(processes)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        yield Receiver("WETREAD", port, process.pid, partial(_count, folder / "state" / "spool" / "instances"))
    finally:
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()


@contextmanager
def _program(folder: Path, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Receiver]:
    """A `storescp` that is told its port as the last argument and writes to `folder`/received."""
    port, received = orthanc.free_port(), folder / "received"
    received.mkdir()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, str(port)], stdout=log, stderr=log, cwd=folder, env=dict(environment))
    try:
        yield Receiver("STORESCP", port, process.pid, partial(_count, received))
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextmanager
def _dcmtk(folder: Path, *options: str) -> Iterator[Receiver]:
    """DCMTK's storescp, a process per association; writes what it received and syncs nothing."""
    program = dcmtk.program("storescp")
    command = [program, "-q", "--fork", "+B", *options, "-od", str(folder / "received")]
    with _program(folder, command, orthanc.loopback_only(folder) | {"TCP_NODELAY": "1"}) as receiver:
        yield receiver


@contextmanager
def _pynetdicom(folder: Path) -> Iterator[Receiver]:
    """The storescp that pynetdicom ships; syncs nothing."""
    command = [
        sys.executable,
        "-m",
        "pynetdicom",
        "storescp",
        "-q",
        "-ba",
        "127.0.0.1",
        "-od",
        str(folder / "received"),
    ]
    with _program(folder, command, os.environ) as receiver:
        yield receiver


@contextmanager
def _orthanc(folder: Path, *, sync: bool) -> Iterator[Receiver]:
    """Orthanc with its SQLite index, with or without a sync of what it stores; a thread for every association."""
    with orthanc.running(folder, orthanc.free_port(), {"SyncStorageArea": sync, "DicomThreadsCount": 16}) as pacs:

        def stored() -> int:
            return int(httpx.get(f"{pacs.url}/statistics").json()["CountInstances"])

        yield Receiver(pacs.ae_title, pacs.dicom_port, pacs.pid, stored)


RECEIVERS: dict[str, Start] = {
    "wetread": _wetread,
    "wetread-1": lambda folder: _wetread(folder, 1),
    "wetread-2": lambda folder: _wetread(folder, 2),
    "wetread-4": lambda folder: _wetread(folder, 4),
    "dcmtk": _dcmtk,
    "dcmtk-pdu128k": lambda folder: _dcmtk(folder, "--max-pdu", "131072"),
    "orthanc-sync": lambda folder: _orthanc(folder, sync=True),
    "orthanc-nosync": lambda folder: _orthanc(folder, sync=False),
    "pynetdicom": _pynetdicom,
}
"""By the name under which results are listed; the first one is ours, those behind it with listener processes."""


def wait_until_ready(receiver: Receiver) -> None:
    """Wait for the answer to a C-ECHO; raises RuntimeError when there is none in time."""
    command = [dcmtk.program("echoscu"), "-q", "-aec", receiver.ae_title, "127.0.0.1", str(receiver.port)]
    deadline = time.monotonic() + START_S
    while subprocess.run(command, capture_output=True, env=os.environ | {"TCP_NODELAY": "1"}).returncode != 0:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{receiver.ae_title} does not answer on port {receiver.port}")
        time.sleep(0.1)


def _count(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))
