"""The pages while the database or the spool is away, or does not answer: none waits for it, and none is a fault."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from node.metrics import Registry
from node.settings import Settings
from node.store.db import Database
from node.web.app import make_app
from node.web.health import Health
from node.web.server import Server, serve


def settings_of(folder: Path, url: str) -> Settings:
    spool = {"url": folder / "spool", "refuse_below": "1 B"}
    return Settings.model_validate({"spool": spool, "database": {"url": url}, "web": {"port": 0}})


def samples(client: TestClient | httpx.Client) -> dict[str, str]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Another client holds the table that every page asks for."""
    engine = sa.create_engine(url)
    with engine.connect() as connection, connection.begin():
        connection.exec_driver_sql("LOCK TABLE study IN ACCESS EXCLUSIVE MODE")
        yield
    engine.dispose()


@contextmanager
def served(folder: Path, url: str) -> Iterator[Server]:
    settings = settings_of(folder, url)
    db = Database(url)
    server = serve(db, settings, Health())
    try:
        yield server
    finally:
        server.stop()
        db.close()


def test_a_database_that_is_away_is_told_and_what_the_process_knows_is_still_there(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://wetread@/none?host={tmp_path}"
    registry, health = Registry(), Health()
    registry.counter("wetread_ours_total", "What this process counts.").add(3)
    health.bad("route", "x")
    app = make_app(Database(url, later=True), settings_of(tmp_path, url), health, registry)
    client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    found = samples(client)
    assert (found["wetread_database_up"], found["wetread_ours_total"]) == ("0", "3")
    assert found['wetread_stage_up{stage="route"}'] == "0"
    assert int(found["wetread_spool_free_bytes"]) > 0
    assert not [name for name in found if name.startswith(("wetread_studies", "wetread_jobs", "wetread_instances"))]
    for path in ("/", "/studies/1.2.3", "/studies/1.2.3/key-image-0.png"):
        page = client.get(path)
        assert (page.status_code, page.headers["retry-after"]) == (503, "10"), path
        assert "The database did not answer" in page.text
        assert page.headers["cache-control"] == "no-store"
    assert client.get("/healthz").status_code == 200
    assert "did not answer" in client.get("/readyz").json()["checks"]["database"]


def test_figures_of_before_are_not_shown_while_the_database_hangs(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path, postgres_url) as server, httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        client.timeout = httpx.Timeout(60)
        before = samples(client)
        assert (before["wetread_database_up"], before["wetread_instances"]) == ("1", "0")
        monkeypatch.setattr("node.web.asking.WITHIN_S", 0.3)
        with locked(postgres_url):
            found = samples(client)
            assert found["wetread_database_up"] == "0"
            assert not found.keys() & {"wetread_instances", 'wetread_studies{state="DONE"}'}
            ready = client.get("/readyz")
            assert ready.status_code == 503
            assert "did not answer within" in ready.json()["checks"]["database"]
            assert client.get("/").status_code == 503
        monkeypatch.setattr("node.web.asking.WITHIN_S", 30.0)
        assert samples(client)["wetread_database_up"] == "1"
        assert client.get("/").status_code == 200


def test_the_process_is_alive_while_every_page_waits_for_the_database(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.web.asking.WITHIN_S", 120.0)
    with served(tmp_path, postgres_url) as server, ThreadPoolExecutor(45) as threads:
        address = f"http://127.0.0.1:{server.port}/"
        with httpx.Client(timeout=150) as client:
            with locked(postgres_url):
                waiting = [threads.submit(client.get, address) for _ in range(45)]
                assert httpx.get(f"{address}healthz", timeout=60).json() == {"status": "ok"}
                assert not [one for one in waiting if one.done()]
            assert {one.result().status_code for one in waiting} == {200}


def test_a_spool_that_is_gone_is_told(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, f"sqlite:///{tmp_path}/w.db")
    client = TestClient(make_app(Database(settings.database.url), settings, Health()), base_url="http://127.0.0.1")
    shutil.rmtree(settings.spool.url)
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert "No such file or directory" in ready.json()["checks"]["spool"]
    found = samples(client)
    assert found["wetread_database_up"] == "1"
    assert "wetread_spool_free_bytes" not in found
