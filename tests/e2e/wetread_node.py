"""The product as its admin runs it: `wetread serve` and `wetread worker` as processes, on config files of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

from node import cli
from node.errors import WetreadError
from node.simulate import scanner
from node.store.db import Database, rows

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
    database: str
    """The SQLAlchemy URL of its database."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.folder / "wetread.toml"

    def wetread(self, *arguments: str) -> Any:
        """Run a `wetread … --json` listing in this process, which takes no second of a core; return what it prints."""
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            status = cli.run([*arguments, "--config", str(self.config), "--json"])
        assert (status, err.getvalue()) == (0, ""), err.getvalue()
        return json.loads(out.getvalue())

    def restart_worker(self, was: str, now: str) -> None:
        """Start the worker again, with `now` in its configuration where `was` was."""
        text = self.config.read_text()
        assert was in text
        self.config.write_text(text.replace(was, now))
        self.end("worker")
        self.processes["worker"] = _start(self, "worker")

    def end(self, *names: str) -> None:
        """End processes by SIGTERM, which each must heed."""
        for name in names:
            self.processes[name].send_signal(signal.SIGTERM)
        for name in names:
            assert self.processes[name].wait(timeout=60) in (0, -signal.SIGTERM)

    def wait_for_studies(self, wanted: set[str], states: set[str], timeout_s: float) -> dict[str, dict[str, Any]]:
        """Return the rows of the `wanted` studies once each is in one of `states`; fail after `timeout_s`."""
        question = "SELECT study_instance_uid, state, revision, reason FROM study WHERE study_instance_uid IN :wanted"
        found: dict[str, dict[str, Any]] = {}

        def there() -> bool:
            found.update({row["study_instance_uid"]: row for row in self.ask(question, wanted=list(wanted))})
            return wanted <= {uid for uid, row in found.items() if row["state"] in states}

        self.wait(there, timeout_s, lambda: f"studies in {states}: {found}")
        return found

    def wait(self, true: Callable[[], bool], timeout_s: float, what: Callable[[], str]) -> None:
        """Wait until `true()`; fail after `timeout_s`, saying `what()` was waited for."""
        deadline = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < deadline, f"not after {timeout_s} s: {what()}"
            time.sleep(0.25)

    def ask(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        """Ask the node's database: a `wetread` that is started for each look takes a second of a core."""
        with self._db.reader() as connection:
            return rows(connection, statement, **values)

    @cached_property
    def _db(self) -> Database:
        """Opened once: to open it applies the schema, and what waits asks four times a second."""
        return Database(self.database)

    def close(self) -> None:
        """Let go of the database."""
        self._db.close()


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
    node = WetreadNode(folder, port, database.replace("sqlite:///", f"sqlite:///{folder}/"))
    text = CONFIG.format(
        port=port, pacs_ae=pacs[0], pacs_port=pacs[1], web_port=web_port, broker=broker, database=database
    )
    node.config.write_text(text + more)
    (folder / "routes.toml").write_text(
        routes or (ROOT / "config" / "routes.toml").read_text().replace('"report"', '"never"')
    )
    for command in ("serve", "worker"):
        node.processes[command] = _start(node, command)
    try:
        _wait_for_echo(node)
        yield node
    finally:
        node.end("worker", "serve")
        node.close()


def _start(node: WetreadNode, command: str) -> subprocess.Popen[bytes]:
    with (node.folder / f"{command}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "node.cli", command, "--config", str(node.config)],
            cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip


def _wait_for_echo(node: WetreadNode) -> None:
    def answers() -> bool:
        try:
            return scanner.echo("127.0.0.1", node.port, ae="STORESCU") == 0
        except WetreadError:
            return False

    node.wait(answers, 60, lambda: (node.folder / "serve.log").read_text())
