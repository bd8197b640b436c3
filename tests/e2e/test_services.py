"""The same node on a real Redis server and a real PostgreSQL server instead of the embedded defaults."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from node.simulate import phantoms, scanner
from node.simulate.pacs import Pacs
from tests.e2e import wetread_node
from tests.e2e.orthanc import free_port


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A private Redis server on loopback, with AOF and a password."""
    if shutil.which("redis-server") is None:
        pytest.skip("Redis is absent (no redis-server)")
    port = free_port()
    (tmp_path / "redis").mkdir()
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(tmp_path / "redis")]
    command += ["--appendonly", "yes", "--requirepass", "wet", "--save", ""]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port, password="wet")  # noqa: S106 - a server that lives for this test
    try:
        _wait_for(client)
        yield f"redis://:wet@127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_for(client: redis.Redis) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            client.ping()
        except redis.ConnectionError:
            assert time.monotonic() < deadline, "redis-server did not answer"
            time.sleep(0.05)
        else:
            return


def test_a_film_is_read_over_redis_and_postgresql(redis_url: str, postgres_url: str, tmp_path: Path) -> None:
    port = free_port()
    film, _ = phantoms.chest_film(seed=2, size=512)
    with (
        Pacs(tmp_path / "pacs", peers={"WETREAD": ("127.0.0.1", port)}) as pacs,
        wetread_node.running(
            tmp_path, port, ("SIM_PACS", pacs.port), free_port(), broker=redis_url, database=postgres_url
        ) as node,
    ):
        assert scanner.send([film], "127.0.0.1", port, ae="STORESCU").ok
        node.wait_for_studies({film.StudyInstanceUID}, {"DONE"}, timeout_s=120)
        assert {d["state"] for d in node.wetread("deliveries", "list")} == {"COMMITTED"}
        assert not (tmp_path / "state" / "wetread.db").exists()
