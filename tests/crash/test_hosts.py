"""One node on many hosts: each role a process with a state folder of its own, over PostgreSQL, Redis and one spool.

Redis is a real server with AOF, a password and TLS; PostgreSQL is a real server. No host is special: whichever is
killed, the others go on, and every study that was acknowledged is delivered once.
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from node import clock
from node.errors import WetreadError
from node.simulate import scanner
from node.store import invariants
from node.store.db import Database
from node.store.spool import Spool
from tests.crash.forks import Forks
from tests.crash.hospital import AE_TITLE, CONFIG, ROUTES, Hospital, until
from tests.e2e.orthanc import free_port

PASSWORD = "wet"  # noqa: S105 - of a server that lives for this test


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A private Redis server on loopback with AOF, a password and TLS alone."""
    if shutil.which("redis-server") is None or shutil.which("openssl") is None:
        pytest.skip("Redis is absent (no redis-server or no openssl)")
    folder, port = tmp_path_factory.mktemp("redis"), free_port()
    certificate, key = folder / "server.pem", folder / "server.key"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    request += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(request, check=True, capture_output=True)
    command = ["redis-server", "--bind", "127.0.0.1", "--port", "0", "--tls-port", str(port), "--dir", str(folder)]
    command += ["--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-auth-clients", "no"]
    command += ["--appendonly", "yes", "--requirepass", PASSWORD, "--save", ""]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port, password=PASSWORD, ssl=True, ssl_ca_certs=str(certificate))
    try:
        until(lambda: _answers(client), 20, "redis-server answers")
        yield f"rediss://:{PASSWORD}@127.0.0.1:{port}/0?ssl_cert_reqs=required&ssl_ca_certs={certificate}"
    finally:
        server.terminate()
        server.wait(timeout=30)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except (redis.ConnectionError, ssl.SSLError):
        return False


class Site(Hospital):
    """Hosts of one node: each has a configuration and a state folder of its own, and all share the spool."""

    def __init__(self, folder: Path, database_url: str, broker_url: str, forks: Forks | None = None) -> None:
        super().__init__(folder, forks=forks)
        self._database_url, self._broker_url = database_url, broker_url
        self.ports: dict[str, int] = {}

    def __enter__(self) -> Site:
        super().__enter__()
        self._db = Database(self._database_url)
        return self

    def host(self, name: str) -> Path:
        """Configure a host; return its wetread.toml."""
        folder, self.ports[name] = self.folder / name, free_port()
        folder.mkdir()
        ports = {"port": self.ports[name], "pacs_port": self.pacs.port, "web_port": free_port()}
        text = CONFIG.format(**ports, completeness=self.completeness)
        text = text.replace(f'ae_title = "{AE_TITLE}"\n', f'ae_title = "{AE_TITLE}"\nstate = "state"\n', 1)
        text = text.replace('url = "state/spool"', f'url = "{self.folder}/spool"')
        text = text.replace('url = "sqlite:///state/wetread.db"', f'url = "{self._database_url}"')
        text = text.replace('models = "models"', f'models = "{self.folder}/models"')
        text = text.replace('trusted = "trusted.toml"', f'trusted = "{self.folder}/trusted.toml"')
        config = folder / "wetread.toml"
        config.write_text(text + f'[broker]\nurl = "{self._broker_url}"\n')
        (folder / "routes.toml").write_text(ROUTES)
        return config

    def wait_for_listener(self, host: str) -> None:
        """Wait until the listener of `host` answers a C-ECHO."""
        until(lambda: self._echoes(host), 60, f"the listener of {host} answers", 0.1)

    def _echoes(self, host: str) -> bool:
        try:
            return scanner.echo("127.0.0.1", self.ports[host], timeout=5.0) == 0
        except WetreadError:
            return False

    def findings(self, hours_later: float = 0.0) -> list[invariants.Finding]:
        """What the checker says with both ledgers."""
        spool, archive = Spool(self.folder / "spool", 0), self.pacs.archive.folder / "ledger.jsonl"
        return invariants.check(
            self.db,
            spool,
            clock.now() + hours_later * 3600,
            sent=self.sender.ledger,
            archive=archive,
            ae_title=AE_TITLE,
        )


def test_hosts_that_share_database_broker_and_spool_are_one_node(
    tmp_path: Path, postgres_url: str, redis_url: str, forks: Forks
) -> None:
    with Site(tmp_path / "site", postgres_url, redis_url, forks) as site:
        one, two = site.host("one"), site.host("two")
        site.pacs.peers[AE_TITLE] = ("127.0.0.1", site.ports["two"])  # where it reports Storage Commitment to
        site.run("listener one", "node", one, "listener")
        site.run("listener two", "node", two, "listener")
        site.run("stages one", "node", one, "stages", "doorbell")
        site.run("stages two", "node", two, "stages", "doorbell")
        site.run("web", "node", two, "web")
        site.run("worker one", "worker", one)
        site.run("worker two", "worker", two)
        wanted: dict[str, int] = {}
        for host in ("one", "two"):
            site.wait_for_listener(host)
        for number in range(4):  # each study comes over both hosts, an instance here and an instance there
            folder = site.folder / "studies" / str(number)
            wanted[site.sender.make_study(folder, 2)] = 2
            for host, path in zip(("one", "two"), sorted(folder.iterdir()), strict=True):
                site.sender.port = site.ports[host]
                site.sender.push_one(path)
        for name in ("listener one", "stages one", "worker one"):
            site.kill(name)
        site.sender.port = site.ports["two"]
        for number in range(4, 8):
            folder = site.folder / "studies" / str(number)
            wanted[site.sender.make_study(folder, 2)] = 2
            site.sender.push_until_acknowledged(folder, 60)
        site.run("listener one", "node", one, "listener")  # what it acknowledged before it died is found in the spool
        site.wait_for_listener("one")
        site.wait_for_studies(wanted, 120)
        assert site.doubled() == []
        assert site.findings() == []
        assert {path.name for path in (site.folder / "two" / "state").iterdir()} >= {"audit.log", "lock.web"}


def test_a_role_runs_once_on_a_state_folder(tmp_path: Path, postgres_url: str, redis_url: str, forks: Forks) -> None:
    with Site(tmp_path / "site", postgres_url, redis_url, forks) as site:
        config = site.host("one")
        site.run("web", "node", config, "web")
        until(lambda: (site.folder / "one" / "state" / "lock.web").exists(), 60, "the web face runs")
        site.run("web again", "node", config, "web")
        assert site.wait_for_death("web again", 60) != 0
        assert "running as web" in (site.folder / "web again.log").read_text()
