"""One node on hosts with a network between them, which is cut: a worker away from the database, and the listener.

Each host is a network namespace with its own legs; PostgreSQL and Redis, with passwords, are on one of them. A packet
that is lost tells nobody anything, which a killed process does.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from node.errors import DatabaseUnavailable
from node.store.db import Database
from tests.crash import network
from tests.crash.hospital import AE_TITLE, until
from tests.crash.network import Network
from tests.crash.test_hosts import PASSWORD, Site

HOSTS = {
    "outside": ("back", "clinic"), "data": ("back",), "front": ("back", "clinic"), "desk": ("back",),
    "one": ("back",), "two": ("back",),
}  # fmt: skip
READING_S = "2"
SERVER = {"tcp_user_timeout": "20000", "tcp_keepalives_idle": "10", "tcp_keepalives_count": "3"}
OUTRUN = ("was lost; its result is discarded", "was left to the next worker")
SILENT_MS = 4000
"""How long a database may be silent here; `node.store.db` has it longer."""


class Scattered(Site):
    """A node of which each host is in a namespace; sender, PACS and this test are `outside`."""

    def __init__(self, folder: Path, net: Network, database_url: str, broker_url: str) -> None:
        super().__init__(folder, database_url, broker_url)
        self.net = net
        self.pacs.host, self.sender.host = "0.0.0.0", net.address("front", "clinic")  # noqa: S104 - in a namespace

    def host(self, name: str) -> Path:
        """Configure a host; return its wetread.toml."""
        config = super().host(name)
        text = config.read_text().replace("[node]\n", '[node]\nbind = "0.0.0.0"\n', 1)
        outside = self.net.address("outside"), self.net.address("outside", "clinic")
        text = text.replace('host = "127.0.0.1"', f'host = "{outside[0]}"')
        config.write_text(text.replace('address = "127.0.0.1"', f'address = "{outside[1]}"'))
        return config

    def where(self, words: Sequence[str]) -> list[str]:
        """It runs on the host whose configuration it has."""
        return [*self.net.command(Path(words[1]).parent.name), "env", f"WETREAD_CANNED_S={READING_S}"]

    def running(self) -> str:
        """The job that is being read."""
        return "".join(row["id"] for row in self.rows("SELECT id FROM job WHERE state = 'RUNNING'"))

    def reading_host(self) -> str:
        """The host whose worker reads it; a lease names the worker's process."""
        (row,) = self.rows("SELECT leased_by FROM job WHERE state = 'RUNNING'")
        pid = int(row["leased_by"].split(":")[-2])
        (name,) = [name for name, process in self.processes.items() if process.pid == pid]
        return name.removeprefix("worker ")


@pytest.fixture(scope="module")
def scattered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scattered]:
    """A node with two workers, each part on a host of its own."""
    if why := network.forbidden():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("scattered") / "site"
    with ExitStack() as stack:
        net = stack.enter_context(Network(HOSTS))
        database = stack.enter_context(_postgres(net))
        broker = stack.enter_context(_redis(net, folder.parent))
        stack.enter_context(net.on("outside"))
        site = stack.enter_context(Scattered(folder, net, database, broker))
        front, desk = site.host("front"), site.host("desk")
        site.pacs.peers[AE_TITLE] = (site.sender.host, site.ports["front"])
        site.sender.port = site.ports["front"]
        site.run("listener", "node", front, "listener")
        site.run("desk", "node", desk, "stages", "doorbell", "web")
        for name in ("one", "two"):
            site.run(f"worker {name}", "worker", site.host(name))
        until(site.is_up, 60, "the listener answers", 0.1)
        yield site


@contextmanager
def _postgres(net: Network) -> Iterator[str]:
    """A PostgreSQL server on the host `data`, for those who know the password."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is absent (no initdb)")
    account = pwd.getpwnam("nobody")  # the server refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    os.chown(folder, account.pw_uid, account.pw_gid)
    (folder / "password").write_text(PASSWORD)
    os.chown(folder / "password", account.pw_uid, account.pw_gid)
    user: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [], "cwd": folder}
    init = [str(found[-1]), "-D", "cluster", "-U", "wetread", "-A", "scram-sha-256", "--pwfile=password", "--no-sync"]
    server: subprocess.Popen[bytes] | None = None
    try:
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL, **user)
        with (folder / "cluster" / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {network.NETS['back']}.0/24 scram-sha-256\n")
        options = [f"listen_addresses={net.address('data')}", "unix_socket_directories=", "fsync=off"]
        command = [*net.command("data"), "setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}"]
        command += ["--clear-groups", str(found[-1].parent / "postgres"), "-D", str(folder / "cluster")]
        command += [word for option in options for word in ("-c", option)]
        server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stem = f"postgresql+psycopg://wetread:{PASSWORD}@{net.address('data')}/postgres"
        with net.on("outside"):
            until(lambda: _serves(stem), 60, "PostgreSQL answers", 0.2)
        yield f"{stem}?tcp_user_timeout={SILENT_MS}&connect_timeout=2"
    finally:
        if server is not None:
            server.terminate()
            server.wait(30)
        shutil.rmtree(folder)


def _serves(url: str) -> bool:
    try:
        Database(url).close()
    except DatabaseUnavailable:
        return False
    return True


@contextmanager
def _redis(net: Network, folder: Path) -> Iterator[str]:
    """A Redis server on the host `data`, with AOF and a password."""
    if shutil.which("redis-server") is None:
        pytest.skip("Redis is absent (no redis-server)")
    command = [*net.command("data"), "redis-server", "--bind", net.address("data"), "--dir", str(folder)]
    command += ["--appendonly", "yes", "--requirepass", PASSWORD, "--save", ""]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield f"redis://:{PASSWORD}@{net.address('data')}:6379/0"
    finally:
        server.terminate()
        server.wait(30)


def _study(site: Scattered, name: str) -> dict[str, int]:
    folder = site.folder / "studies" / name
    wanted = {site.sender.make_study(folder, 2): 2}
    site.sender.push_until_acknowledged(folder, 60)
    return wanted


def test_neither_side_of_a_connection_to_the_database_waits_for_ever(scattered: Scattered) -> None:
    with scattered.db.reader() as connection:
        told = {name: connection.exec_driver_sql(f"SHOW {name}").scalar() for name in SERVER}
        ours = connection.connection.driver_connection.info.get_parameters()  # type: ignore[union-attr]
    assert told == SERVER, "the server lets go of what a lost host had locked"
    assert (ours["keepalives_idle"], ours["tcp_user_timeout"]) == ("10", str(SILENT_MS)), "what the URL says holds"


def test_a_worker_that_is_cut_off_loses_its_lease_and_delivers_nothing_twice(scattered: Scattered) -> None:
    site = scattered
    wanted = _study(site, "cut")
    until(site.running, 60, "one of them reads")
    cut = site.reading_host()
    job = site.running()
    site.net.cut(cut)
    site.wait_for_studies(wanted, 120)  # the lease ended, and the other took over
    site.net.heal(cut)
    log = site.folder / f"worker {cut}.log"
    until(lambda: any(words in log.read_text() for words in OUTRUN), 120, f"the worker on {cut} has noticed")
    (row,) = site.rows("SELECT fence FROM job WHERE id = :id", id=job)
    assert row["fence"] >= 2
    (other,) = {"one", "two"} - {cut}
    site.kill(f"worker {other}")
    wanted |= _study(site, "healed")
    site.wait_for_studies(wanted, 120)  # by the one that was away
    assert site.doubled() == []
    assert site.findings() == []


def test_a_listener_that_is_cut_off_from_the_database_loses_nothing(scattered: Scattered) -> None:
    site = scattered
    site.net.cut("front")
    wanted = _study(site, "partition")  # 0000H or A700H and again, and never a refusal for good
    assert site.sender.statuses() <= {0x0000, 0xA700}
    until(lambda: "did not answer" in (site.folder / "listener.log").read_text(), 60, "the listener notices")
    assert site.is_up()
    site.net.heal("front")
    site.wait_for_studies(wanted, 120)
    assert site.doubled() == []
    assert site.findings() == []
