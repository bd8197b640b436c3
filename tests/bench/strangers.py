"""What strangers cost a known peer: `make bench-strangers`.

A real listener process; a known peer that associates and stores all the time; and, in every other phase, a process
that holds half-open connections and opens new ones each second. Printed is how many associations of the peer were
refused, and the 99th percentile of its C-STOREs with strangers over that without, paired in one run.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from node.settings import NodeSettings, Peer, Settings
from tests.protocol.listening import associate, associate_rq, listening, store
from tests.unit.encoded import CT, EXPLICIT, dataset, element

ROOT = Path(__file__).resolve().parents[2]
PEER = Peer(name="CT", ae_title="CT1", address="127.0.0.1")
_STORES = 10
"""Per association of the peer."""


@dataclass(frozen=True)
class Phase:
    """What the peer saw in one phase: associations asked for and refused, and its times in seconds."""

    with_strangers: bool
    associations: int
    refused: int
    store_s: tuple[float, ...]

    @property
    def p99_s(self) -> float:
        """The 99th percentile of the C-STOREs."""
        return sorted(self.store_s)[min(int(len(self.store_s) * 0.99), len(self.store_s) - 1)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns 1 when the peer was refused once."""
    parser = argparse.ArgumentParser(prog="strangers", description=__doc__)
    parser.add_argument("--half-open", type=int, default=500)
    parser.add_argument("--per-second", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kilobytes", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--strange", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        return _serve(options.serve)
    if options.strange:
        return _strange(options.strange, options.half_open, options.per_second)
    with tempfile.TemporaryDirectory(prefix="strangers") as folder, _process("--serve", folder) as node:
        phases = _measure(int(node.readline()), options)
    _report(phases, options)
    return int(any(phase.refused for phase in phases))


def _measure(port: int, options: argparse.Namespace) -> list[Phase]:
    _store_for(port, options.seconds / 4, options.kilobytes, with_strangers=False)  # to warm up
    phases = []
    for _ in range(options.rounds):
        phases.append(_store_for(port, options.seconds, options.kilobytes, with_strangers=False))
        asked = ("--half-open", options.half_open, "--per-second", options.per_second)
        with _process("--strange", port, *asked) as strangers:
            strangers.readline()
            phases.append(_store_for(port, options.seconds, options.kilobytes, with_strangers=True))
    return phases


def _store_for(port: int, seconds: float, kilobytes: int, *, with_strangers: bool) -> Phase:
    """Associate, store and release, again and again."""
    until, asked, refused, took = time.monotonic() + seconds, 0, 0, list[float]()
    pixels = element(0x7FE00010, "OW", bytes(kilobytes * 1024))
    while time.monotonic() < until or not took:
        asked += 1
        assoc = associate(port, [(CT, [EXPLICIT])], calling=PEER.ae_title)
        if not assoc.is_established:
            refused += 1
            continue
        for number in range(_STORES):
            uid = f"1.2.{time.time_ns()}.{number}"
            data = dataset(pixels, uids={0x00080018: uid})
            started = time.perf_counter()
            if store(assoc, data, sop_instance=uid) != 0x0000:
                refused += 1
            took.append(time.perf_counter() - started)
        assoc.release()
    return Phase(with_strangers, asked, refused, tuple(took))


def _report(phases: list[Phase], options: argparse.Namespace) -> None:
    pairs = list(zip(phases[::2], phases[1::2], strict=True))
    ratios = [crowded.p99_s / alone.p99_s for alone, crowded in pairs]
    if options.json:
        print(json.dumps({"phases": [asdict(phase) for phase in phases], "p99_ratios": ratios}))
        return
    print(f"{options.half_open} half-open connections, {options.per_second} new ones a second, {options.kilobytes} KiB")
    for alone, crowded in pairs:
        for phase in (alone, crowded):
            who = "with strangers" if phase.with_strangers else "alone"
            median = statistics.median(phase.store_s)
            print(
                f"  {who:15} {phase.associations:5} associations, {phase.refused} refused; {len(phase.store_s):6} "
                f"C-STOREs, median {median * 1000:6.1f} ms, p99 {phase.p99_s * 1000:6.1f} ms"
            )
    print(f"refused: {sum(phase.refused for phase in phases)}; p99 with strangers over p99 alone: ", end="")
    print(f"median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


@contextmanager
def _process(*arguments: object) -> Iterator[IO[str]]:
    """Run a part of this script until the block ends; yields what it prints."""
    command = [sys.executable, "-m", "tests.bench.strangers", *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield process.stdout
        finally:
            process.stdin.close()
            process.wait(30)


def _serve(folder: Path) -> int:
    settings = Settings(node=NodeSettings(port=0), peer=(PEER,))
    with listening(folder, settings=settings) as node:
        print(node.port, flush=True)
        sys.stdin.read()
    return 0


def _strange(port: int, half_open: int, per_second: int) -> int:
    """Hold `half_open` connections, open each one again that is closed, and come anew all the time."""
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        held = [_knock(port, number, selector) for number in range(half_open)]
        print(len(held), flush=True)
        number, due = half_open, time.monotonic()
        while True:
            for key, _ in selector.select(0.05):
                if key.fileobj is sys.stdin:
                    return 0
                assert isinstance(key.fileobj, socket.socket)
                with suppress(OSError):
                    if key.fileobj.recv(64):
                        continue
                selector.unregister(key.fileobj)
                key.fileobj.close()
            while due < time.monotonic():
                number, due = number + 1, due + 1 / per_second
                _knock(port, number, selector)


def _knock(port: int, number: int, selector: selectors.BaseSelector) -> socket.socket:
    """Connect from one of many addresses and say half of something, or ask for an association of an unknown AE."""
    connection = socket.create_connection(("127.0.0.1", port), 10, source_address=(f"127.0.0.{2 + number % 200}", 0))
    said = (b"", b"\x01\x00\x00", associate_rq()[:40], associate_rq().replace(b"CT1 ", b"XX1 "))
    connection.sendall(said[number % len(said)])
    connection.setblocking(False)
    selector.register(connection, selectors.EVENT_READ)
    return connection


if __name__ == "__main__":
    sys.exit(main())
