"""A running `wetread serve` reads its configuration again on SIGHUP: what takes effect, and what it says of others."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from node import embedded, reload
from node.errors import Permanent
from node.settings import Settings
from node.store.locks import alone
from tests.crash.hospital import children
from tests.e2e.orthanc import free_port
from tests.e2e.wetread_node import ROOT
from tests.protocol.listening import VERIFICATION, associate
from tests.unit.encoded import EXPLICIT

CONFIG = """
[node]
port = {port}
[web]
port = {web_port}
[spool]
refuse_below = "1 MB"
[destination.pacs]
host = "127.0.0.1"
port = 4242
ae_title = "PACS"
"""
PEER = '\n[[peer]]\nname = "{0}"\nae_title = "{0}"\naddress = "127.0.0.1"\n'


@dataclass
class Running:
    """The process, and the file that it is configured by."""

    process: subprocess.Popen[bytes]
    config: Path
    port: int
    text: str

    def reread(self, text: str) -> None:
        self.config.write_text(text)
        self.process.send_signal(signal.SIGHUP)

    def log(self) -> str:
        return (self.config.parent / "log").read_text()

    def lets_in(self, ae_title: str) -> bool:
        assoc = associate(self.port, [(VERIFICATION, [EXPLICIT])], calling=ae_title)
        is_in = bool(assoc.is_established)
        assoc.release() if is_in else assoc.abort()
        return is_in


@contextmanager
def serving(folder: Path, more: str) -> Iterator[Running]:
    config, port = folder / "wetread.toml", free_port()
    text = CONFIG.format(port=port, web_port=free_port())
    config.write_text(text + more)
    (folder / "routes.toml").write_text("")
    command = [sys.executable, "-m", "node.cli", "serve", "--role", "listener", "--config", str(config)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    running = Running(process, config, port, text)
    try:
        wait_for(lambda: "runs listener" in running.log())
        yield running
    finally:
        process.terminate()
        assert process.wait(60) == 0, running.log()


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_peers_come_and_go_by_sighup_and_no_association_notices(tmp_path: Path) -> None:
    with serving(tmp_path, PEER.format("ONE")) as node:
        standing = associate(node.port, [(VERIFICATION, [EXPLICIT])], calling="ONE")
        assert standing.is_established
        assert not node.lets_in("TWO")
        node.reread(node.text + PEER.format("ONE") + PEER.format("TWO"))
        wait_for(lambda: node.lets_in("TWO"))
        assert node.lets_in("ONE")
        node.reread(node.text + PEER.format("TWO"))
        wait_for(lambda: not node.lets_in("ONE"))
        assert standing.send_c_echo().Status == 0x0000, "who is in stays"
        node.reread(node.text + PEER.format("TWO") + "max_associations = 1\nreserved = 1\n")
        wait_for(lambda: node.log().count("was read again") == 3)
        held = associate(node.port, [(VERIFICATION, [EXPLICIT])], calling="TWO")
        assert held.is_established
        assert not node.lets_in("TWO"), "one at a time now"
        held.release()
        standing.release()


def test_what_needs_a_restart_is_named_and_changes_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, PEER.format("ONE")) as node:
        two = PEER.format("ONE") + PEER.format("TWO")
        node.reread(node.text.replace("[spool]", '[spool]\nurl = "other"') + two + '[tls]\nca = "x"\n')
        wait_for(lambda: "old configuration stays" in node.log())
        node.reread(node.text.replace('refuse_below = "1 MB"', 'refuse_below = "2 MB"').replace("4242", "4243") + two)
        wait_for(lambda: "spool.refuse_below changed, which needs a restart" in node.log())
        broken = two + 'user = "u"\npasscode_file = "gone"\n[tls]\n'
        node.reread(node.text + broken)
        wait_for(lambda: node.log().count("old configuration stays") == 3)
        assert not node.lets_in("TWO"), "all of it or nothing"
        node.reread(node.text.replace("4242", "4243") + two)
        wait_for(lambda: "Restart the workers: they read destination" in node.log())
        assert node.lets_in("TWO")


KEYS = [f"{section}.{key}" for section, field in Settings.model_fields.items()
        for key in getattr(field.annotation, "model_fields", ["*"])]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_the_documentation_says_of_every_key_whether_it_needs_a_restart(key: str) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    part = page[page.index("## While it runs") :]
    taken, _, restart = part.partition("needs a restart")
    section = key.partition(".")[0]
    said = taken if not reload.needs_restart([key.removesuffix(".*")]) else restart
    names = (f"`{key}`", f"`[{section}]`", f"`[[{section}]]`", f"`[{section}.NAME]`")
    assert any(name in said.partition("\n## ")[0] for name in names), key


def signals(pid: int, kind: str) -> set[int]:
    """Signals that a process catches (SigCgt) or ignores (SigIgn), proc(5); none of one that is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return set()
    (mask,) = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(kind)]
    return {number for number in range(1, 32) if mask >> (number - 1) & 1}


def at_work(parent: int) -> set[int]:
    """The processes of a worker's queues that have installed their signal handlers, which come after the imports."""
    pids = {pid for pid, line in children(parent) if " --queue " in line and " -c " not in line}
    return {pid for pid in pids if signal.SIGUSR1 in signals(pid, "SigCgt") and signal.SIGHUP in signals(pid, "SigIgn")}


@pytest.mark.skipif(embedded.find_binary() is None, reason="Redis is absent (no redis-server)")
def test_a_bare_worker_reads_its_configuration_again_and_never_dies_of_it(tmp_path: Path) -> None:
    config, text = tmp_path / "wetread.toml", CONFIG.format(port=free_port(), web_port=free_port())
    config.write_text(text)
    command = [sys.executable, "-m", "node.cli", "worker", "--config", str(config)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    worker = Running(process, config, 0, text)
    try:
        wait_for(lambda: len(at_work(process.pid)) == 2)
        first = at_work(process.pid)
        with pytest.raises(Permanent, match="A worker is running"), alone(tmp_path / "state"):
            pass
        worker.reread(text + "[worker]\nmax_attempts = 7\n")
        wait_for(lambda: len(at_work(process.pid) - first) == 2)
        assert "The configuration was read again." in worker.log()
        second = at_work(process.pid)
        assert not first & second
        worker.reread(text + "[worker]\nmax_attempts = 0\n")
        wait_for(lambda: "The old configuration stays." in worker.log())
        worker.reread(text + '[broker]\nurl = "redis://localhost:1/0"\n')
        wait_for(lambda: "needs a restart of the worker" in worker.log())
        assert at_work(process.pid) == second
        assert "it is started again" not in worker.log()
    finally:
        process.terminate()
        assert process.wait(60) == 0, worker.log()


HUNG_UP = """
import os, signal, sys
class HangUp:
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGHUP)
sys.meta_path.insert(0, HangUp())
from node import cli
cli.main(sys.argv[2:])
"""
"""The command line, told to read its configuration again at the moment when it imports a module."""


@pytest.mark.parametrize(
    ("command", "module", "up"),
    [("serve --role listener", "node.daemon", "The configuration was read again"), ("worker", "workers.app", "")],
)
def test_a_reload_at_the_start_ends_nothing(tmp_path: Path, command: str, module: str, up: str) -> None:
    """A service manager that starts and reloads at once killed the node, which was still importing."""
    config = tmp_path / "wetread.toml"
    config.write_text(
        CONFIG.format(port=free_port(), web_port=free_port()) + '[broker]\nurl = "redis://localhost:1/0"\n'
    )
    (tmp_path / "routes.toml").write_text("")
    words = [sys.executable, "-c", HUNG_UP, module, *command.split(), "--config", str(config)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log)
    try:
        wait_for(lambda: up in (tmp_path / "log").read_text() if up else len(at_work(process.pid)) == 2)
    finally:
        process.terminate()
        assert process.wait(60) == 0, (tmp_path / "log").read_text()
