"""The product as its admin runs it: `wetread serve` and `wetread worker` as processes, on config files of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
[node]
ae_title = "WETREAD"
bind = "127.0.0.1"
port = {port}

[[peer]]
name = "modality"
ae_title = "STORESCU"
address = "127.0.0.1"

[[peer]]
name = "pacs"
ae_title = "{pacs_ae}"
address = "127.0.0.1"

[completeness]
quiet_period = "3 s"
max_wait = "5 min"

[spool]
url = "state/spool"
refuse_below = "100 MB"

[database]
url = "{database}"

[broker]
url = "{broker}"

[web]
port = {web_port}

[destination.pacs]
kind = "dimse"
host = "127.0.0.1"
port = {pacs_port}
ae_title = "{pacs_ae}"
commitment = true
"""


@dataclass(frozen=True)
class WetreadNode:
    """A running node: its folder, its port, and its command line."""

    folder: Path
    port: int

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.folder / "wetread.toml"

    def wetread(self, *arguments: str) -> Any:
        """Run a `wetread … --json` listing and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "node.cli", *arguments, "--config", str(self.config), "--json"],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def wait_for_studies(self, wanted: set[str], states: set[str], timeout_s: float) -> dict[str, dict[str, Any]]:
        """Return the rows of the `wanted` studies once each is in one of `states`; fail after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            rows = {row["study_instance_uid"]: row for row in self.wetread("studies", "list")}
            if wanted <= {uid for uid, row in rows.items() if row["state"] in states}:
                return {uid: rows[uid] for uid in wanted}
            assert time.monotonic() < deadline, f"not {states} after {timeout_s} s: {rows}"
            time.sleep(1)


@contextmanager
def running(
    folder: Path,
    port: int,
    pacs: tuple[str, int],
    web_port: int,
    broker: str = "embedded",
    database: str = "sqlite:///state/wetread.db",
    routes: str = "",
    more: str = "",
) -> Iterator[WetreadNode]:
    """Run a node and one worker in `folder` until the block ends; both must end by themselves on SIGTERM.

    `routes` takes the place of the shipped routes; `more` is appended to the configuration, whose last table is that
    of the destination.
    """
    node = WetreadNode(folder, port)
    text = CONFIG.format(
        port=port, pacs_ae=pacs[0], pacs_port=pacs[1], web_port=web_port, broker=broker, database=database
    )
    node.config.write_text(text + more)
    (folder / "routes.toml").write_text(
        routes or (ROOT / "config" / "routes.toml").read_text().replace('"report"', '"never"')
    )
    processes = [_start(node, "serve"), _start(node, "worker")]
    try:
        _wait_for_echo(node)
        yield node
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in processes:
            assert process.wait(timeout=60) in (0, -signal.SIGTERM)


def _start(node: WetreadNode, command: str) -> subprocess.Popen[bytes]:
    with (node.folder / f"{command}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "node.cli", command, "--config", str(node.config)],
            cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip


def _wait_for_echo(node: WetreadNode) -> None:
    deadline = time.monotonic() + 60
    command = [sys.executable, "-m", "node.cli", "echo", f"127.0.0.1:{node.port}", "--calling", "STORESCU"]
    while subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60).returncode != 0:
        assert time.monotonic() < deadline, (node.folder / "serve.log").read_text()
        time.sleep(0.5)
