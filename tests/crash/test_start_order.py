"""After a power cut every host starts at its own pace: node and worker wait for a database that is not up yet.

PostgreSQL is a real server that is stopped and started. The doors are open meanwhile, and nothing that was acknowledged
is lost; what waiting cannot mend ends the start, however late it comes out.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from pydicom.data import get_testdata_file

from node.daemon import Node, Pace
from node.errors import DatabaseUnavailable, Permanent
from node.settings import load_routes, load_settings
from node.simulate import scanner
from node.store import studies
from node.store.db import Database
from tests.crash.forks import Forks
from tests.crash.hospital import ROOT, Hospital, until
from tests.postgres import Cluster

CONFIG = """
[node]
port = 0
{node}
[completeness]
quiet_period = "1 s"
[spool]
refuse_below = "1 MB"
[web]
port = 0
[database]
url = "{url}"
"""
IMAGE = Path(str(get_testdata_file("CT_small.dcm")))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL server that is away when a test begins."""
    with Cluster() as cluster:
        yield cluster


def url_of_one_that_is_away(cluster: Cluster) -> str:
    """Make an empty database and stop the server."""
    cluster.stop()
    cluster.start()
    url = cluster.make()
    cluster.stop()
    return url


def configured(folder: Path, url: str, node: str = "") -> Path:
    """Write wetread.toml and routes.toml."""
    config = folder / "wetread.toml"
    config.write_text(CONFIG.format(url=url, node=node))
    (folder / "routes.toml").write_text("")
    return config


@contextmanager
def started(command: Sequence[str], config: Path) -> Iterator[subprocess.Popen[str]]:
    """`wetread COMMAND`, killed at the end if it still runs."""
    words = [sys.executable, "-m", "node.cli", *command, "--config", str(config)]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def read_to(process: subprocess.Popen[str], words: str) -> str:
    """Read the log of a process up to the line with these words; return that line."""
    assert process.stderr is not None
    return next(line for line in process.stderr if words in line)


class Site(Hospital):
    """A hospital whose node has a PostgreSQL database."""

    def __init__(self, folder: Path, url: str, forks: Forks) -> None:
        super().__init__(folder, forks=forks)
        self._url = url

    def __enter__(self) -> Site:
        super().__enter__()
        config = self.folder / "wetread.toml"
        config.write_text(config.read_text().replace("sqlite:///state/wetread.db", self._url))
        self._db = Database(self._url, later=True)
        return self


def test_what_was_acknowledged_before_the_database_was_ever_there_is_read_and_delivered(
    tmp_path: Path, cluster: Cluster, forks: Forks
) -> None:
    with Site(tmp_path / "site", url_of_one_that_is_away(cluster), forks) as site:
        wanted = {}
        site.start("worker")
        for number in range(2):
            site.start("node")
            site.wait_until_up()
            folder = site.folder / "studies" / str(number)
            wanted[site.sender.make_study(folder, 2)] = 2
            site.sender.push_until_acknowledged(folder, 60)
            if number == 0:
                site.kill("node")
        cluster.start()
        site.wait_for_studies(wanted, 120)
        assert site.doubled() == []
        assert site.findings() == []
        revisions = site.rows("SELECT revision FROM study")
        assert [row["revision"] for row in revisions] == [1, 1], "nothing was read before all of it was recovered"


@pytest.mark.parametrize("processes", [0, 1])
def test_the_doors_are_open_while_the_database_is_away(
    tmp_path: Path, cluster: Cluster, processes: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = configured(tmp_path, url_of_one_that_is_away(cluster), f"listener_processes = {processes}")
    settings = load_settings(config)
    caplog.set_level(logging.INFO, "node")
    with Node(settings, load_routes(tmp_path / "routes.toml", settings), Pace(0.1, 0.1, 0.1, 0.1)) as node:
        assert scanner.send(IMAGE, "127.0.0.1", node.listener.port).ok
        answer = httpx.get(f"{node.web_address}readyz", timeout=30)
        assert answer.status_code == 503
        assert "did not answer" in answer.json()["checks"]["database"]
        until(lambda: "did not answer" in node.health.stages().get("start", ""), 30, "it says what it waits for")
        assert not node.has_begun.is_set()
        cluster.start()
        until(lambda: node.has_begun.is_set() and studies.listing(node.db, state="DONE"), 60, "the study is DONE")
        assert httpx.get(f"{node.web_address}readyz", timeout=30).status_code == 200
    waits = [record.message for record in caplog.records if "goes on by itself" in record.message]
    assert len(waits) == 1
    assert "did not answer" in waits[0]


def test_a_worker_waits_for_the_database_and_no_sighup_ends_it(tmp_path: Path, cluster: Cluster) -> None:
    config = configured(tmp_path, url_of_one_that_is_away(cluster))
    with started(["worker"], config) as worker:
        assert "did not answer" in read_to(worker, "goes on by itself")
        worker.send_signal(signal.SIGHUP)
        cluster.start()
        assert read_to(worker, "The database is there")
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=60)
        assert worker.returncode == 0


def crowd(url: str, others: ExitStack) -> None:
    """Have `others` hold every connection that the server has."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)

    def fill() -> None:
        while True:
            others.enter_context(engine.connect())

    with pytest.raises(sa.exc.OperationalError, match="too many clients"):
        fill()


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_server_without_a_free_connection_is_waited_for(tmp_path: Path, cluster: Cluster, command: str) -> None:
    cluster.stop()
    cluster.start()
    url = cluster.make()
    with ExitStack() as others:
        crowd(url, others)
        with started([command], configured(tmp_path, url)) as process:
            assert "too many clients" in read_to(process, "goes on by itself")
            others.close()
            assert read_to(process, "The database is there")
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
            assert process.returncode == 0


@contextmanager
def administered(url: str) -> Iterator[sa.Connection]:
    """Yield a connection on which each statement is a transaction of its own."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def test_a_limit_of_connections_for_our_user_is_waited_for(cluster: Cluster) -> None:
    cluster.stop()
    cluster.start()
    url = cluster.make()
    with administered(url) as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS narrow")
        connection.exec_driver_sql("CREATE ROLE narrow LOGIN CONNECTION LIMIT 0")
        connection.exec_driver_sql("GRANT CREATE ON SCHEMA public TO narrow")
        db = Database(url.replace("wetread@", "narrow@"), later=True)
        with pytest.raises(DatabaseUnavailable, match="too many connections for role"):
            db.open()
        connection.exec_driver_sql("ALTER ROLE narrow CONNECTION LIMIT -1")
        db.open()
        db.close()


def test_a_signal_ends_a_node_that_waits_for_the_database(tmp_path: Path, cluster: Cluster) -> None:
    with started(["serve"], configured(tmp_path, url_of_one_that_is_away(cluster))) as process:
        read_to(process, "status pages at")
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
        assert (process.returncode, "Traceback" in rest) == (0, False)


def test_a_database_that_is_not_there_ends_the_start_of_a_worker(tmp_path: Path, cluster: Cluster) -> None:
    cluster.stop()
    cluster.start()
    with started(["worker"], configured(tmp_path, cluster.url("nowhere"))) as process:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "database.url: the server is there and does not take us" in said
        assert "does not exist" in said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("stranger", "the server is there and does not take us"),
        ("secret:wrong", "the server is there and does not take us"),
        ("secret", "the server is there and does not take us"),
        ("secret:right", "its user may not do this: permission denied"),
    ],
)
def test_a_server_that_does_not_take_us_is_not_waited_for(cluster: Cluster, user: str, words: str) -> None:
    cluster.stop()
    hba = cluster.folder / "cluster" / "pg_hba.conf"
    hba.write_text("local all secret scram-sha-256\nlocal all all trust\n")
    cluster.start()
    url = cluster.make()
    with administered(url) as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS secret")
        connection.exec_driver_sql("CREATE ROLE secret LOGIN PASSWORD 'right'")
    with pytest.raises(Permanent, match=words) as error:
        Database(url.replace("wetread@", f"{user}@"))
    assert "wrong" not in str(error.value)


def test_a_schema_of_a_later_version_ends_the_start_however_late_it_comes_out(tmp_path: Path, cluster: Cluster) -> None:
    cluster.stop()
    cluster.start()
    url = cluster.make()
    db = Database(url)
    with db.transaction() as connection:
        connection.exec_driver_sql("UPDATE schema_version SET version = 99")
    db.close()
    cluster.stop()
    with started(["serve"], configured(tmp_path, url)) as process:
        read_to(process, "status pages at")
        cluster.start()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "The database has schema 99" in said
        assert "Traceback" not in said
