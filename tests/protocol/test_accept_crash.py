"""What the acknowledgment promises: the listener is killed under load, and nothing it answered 0000H for is missing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from node.store import ingestlog
from node.store.spool import Spool
from tests.conftest import ROOT
from tests.protocol.listening import associate, listening, store
from tests.unit.encoded import CT, EXPLICIT, dataset, image

PIXELS = image(256, 256)[len(dataset()) :]


@contextmanager
def node_process(folder: Path) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "tests.protocol.node_process", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process
        finally:
            process.kill()


class Scanner(threading.Thread):
    """Sends one instance after the other until the node is gone; `ledger` has the digests of those acknowledged."""

    def __init__(self, port: int, name: str, ledger: list[str]) -> None:
        super().__init__(daemon=True)
        self.port, self.uid, self.ledger = port, name, ledger

    def run(self) -> None:
        assoc = associate(self.port, [(CT, [EXPLICIT])])
        for number in range(10_000):
            uid = f"{self.uid}.{number}"
            data = dataset(uids={0x00080018: uid}) + PIXELS
            if not assoc.is_established or store(assoc, data, sop_instance=uid) != 0x0000:
                break
            self.ledger.append(hashlib.sha256(data).hexdigest())
        assoc.abort()


def test_killed_under_load_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    ledger: list[str] = []
    for life in range(3):
        before = len(ledger)
        with node_process(tmp_path) as (port, process):
            scanners = [Scanner(port, f"1.2.{life}.{n}", ledger) for n in range(3)]
            for scanner in scanners:
                scanner.start()
            deadline = time.monotonic() + 20
            while len(ledger) < before + 25 and time.monotonic() < deadline:
                time.sleep(0.01)
            process.kill()
            for scanner in scanners:
                scanner.join(20)
        assert len(ledger) >= before + 25

    spool = Spool(tmp_path / "state" / "spool", 0)
    assert ingestlog.replay(spool) > 0
    kept = {path.stem for path in spool.instances()}
    assert set(ledger) <= kept
    assert len(kept) - len(set(ledger)) <= 3 * 3  # at most the one in hand per scanner and life
    for digest in kept:
        assert spool.verify(spool.instance_name(digest), digest)
    with listening(tmp_path) as node:
        assert node.echo() == 0x0000
