from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.data import get_testdata_file

from node import bundles, trust
from node import loop as loop_module
from node.accept.processes import LONGEST_PAUSE_S, Processes
from node.check import check_all
from node.cli_output import load_all
from node.daemon import Node, Pace
from node.errors import ConfigError, DatabaseUnavailable, Permanent
from node.loop import Loop
from node.settings import load_routes, load_settings
from node.simulate import scanner
from node.store import studies
from node.web.health import Health
from tests.crash.hospital import DICOM_TOML
from workers import app
from workers.app import open_desk
from workers.send import commitment

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
[node]
port = 0
[completeness]
quiet_period = "1 s"
[spool]
refuse_below = "1 MB"
[web]
port = 0
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "wetread.toml"
    path.write_text(CONFIG)
    (tmp_path / "routes.toml").write_text("")
    return path


@pytest.fixture
def node(config: Path) -> Iterator[Node]:
    settings = load_settings(config)
    with Node(settings, load_routes(config.parent / "routes.toml", settings), Pace(0.1, 0.1, 0.1, 0.1)) as running:
        yield running


def wait_for(condition: object, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def test_a_study_goes_from_the_wire_to_done(node: Node) -> None:
    image = Path(str(get_testdata_file("CT_small.dcm")))
    assert scanner.send(image, "127.0.0.1", node.listener.port).ok
    wait_for(lambda: studies.listing(node.db, state="DONE"))
    (study,) = studies.listing(node.db)
    assert (study["revision"], study["instances"]) == (1, 1)
    assert study["reason"]
    page = httpx.get(node.web_address, timeout=10).text
    assert study["study_instance_uid"] in page
    assert httpx.get(f"{node.web_address}readyz", timeout=10).status_code == 200
    assert 'wetread_studies{state="DONE"} 1' in httpx.get(f"{node.web_address}metrics", timeout=10).text


def test_a_node_on_postgresql_goes_by_the_clock_of_its_database(
    config: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)  # as on a host without NTP
    config.write_text(f'{CONFIG}\n[database]\nurl = "{postgres_url}"\n')
    settings, image = load_settings(config), Path(str(get_testdata_file("CT_small.dcm")))
    with Node(settings, load_routes(config.parent / "routes.toml", settings), Pace(0.1, 0.1, 0.1, 0.1)) as node:
        assert scanner.send(image, "127.0.0.1", node.listener.port).ok
        wait_for(lambda: studies.listing(node.db, state="DONE"))
        (study,) = studies.listing(node.db)
        (_, routed, *_) = [event["at"] for event in studies.show(node.db, study["study_instance_uid"])["history"]]
        assert all(abs(real() - at) < 600 for at in (study["last_received_at"], study["completed_at"], routed))
    desk = open_desk(settings)
    with desk.db.reader():
        assert abs(real() - desk.now()) < 600
    desk.readers.stop()
    desk.db.close()


def with_routes(config: Path) -> Path:
    """Two bundles that are trusted, and a route for each: `gone` for CT, `there` for MR; return their folder."""
    models, routes = config.parent / "models", ""
    for modality, name in (("CT", "gone"), ("MR", "there")):
        configs = models / name / "configs"
        configs.mkdir(parents=True)
        (configs / "metadata.json").write_text('{"version": "1.0.0"}')
        (configs / "inference.json").write_text("{}")
        (configs / "dicom.toml").write_text(DICOM_TOML.replace('["CR", "DX"]', f'"{modality}"'))
        routes += f'[[route]]\nname = "{modality}"\nwhen = {{Modality = "{modality}"}}\nmodels = ["{name}"]\n'
        routes += 'results = ["SR"]\nsend_to = []\n'
    trust.pin(bundles.available(models), config.parent / "trusted.toml")
    (config.parent / "routes.toml").write_text(routes)
    config.write_text(f'{CONFIG}\n[worker]\nmodels = "models"\n')
    return models


def gone_waits_and_the_other_is_read(node: Node) -> None:
    assert scanner.send(Path(str(get_testdata_file("CT_small.dcm"))), "127.0.0.1", node.listener.port).ok
    wait_for(lambda: "studies wait" in (node.health.stages().get("bundles") or ""), 60)
    assert scanner.send(Path(str(get_testdata_file("MR_small.dcm"))), "127.0.0.1", node.listener.port).ok
    wait_for(lambda: studies.listing(node.db, state="ROUTED"), 60)
    (waiting,) = studies.listing(node.db, state="COMPLETE")
    assert "waits for Model Bundle gone" in waiting["reason"]
    ready = httpx.get(f"{node.web_address}readyz", timeout=30)
    assert (ready.status_code, ready.json()["checks"]["route"]) == (503, "ok")
    assert ready.json()["checks"]["bundles"] == "1 studies wait for Model Bundle gone; put it back"


def test_a_bundle_that_vanishes_keeps_only_its_own_route_waiting(config: Path) -> None:
    models = with_routes(config)
    with Node(*load_all(config), Pace(0.1, 0.1, 0.1, 0.1)) as node:
        assert node.health.stages()["bundles"] == ""
        (models / "gone").rename(config.parent / "elsewhere")
        gone_waits_and_the_other_is_read(node)
        (config.parent / "elsewhere").rename(models / "gone")
        wait_for(lambda: len(studies.listing(node.db, state="ROUTED")) == 2, 60)
        wait_for(lambda: node.health.stages()["bundles"] == "")


def lose(bundle: Path) -> None:
    bundle.rename(bundle.parent.parent / "elsewhere")


def break_(bundle: Path) -> None:
    (bundle / "configs" / "dicom.toml").write_text("kind = 1\n")


def link(bundle: Path) -> None:
    (bundle / "scripts").symlink_to(bundle / "configs")


@pytest.mark.parametrize("deed", [lose, break_, link])
def test_a_bundle_that_is_gone_or_broken_at_the_start_keeps_only_its_own_route_waiting(
    config: Path, deed: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    deed(with_routes(config) / "gone")
    with Node(*load_all(config), Pace(0.1, 0.1, 0.1, 0.1)) as node:
        ready = httpx.get(f"{node.web_address}readyz", timeout=30)
        assert ready.status_code == 503
        assert "Model Bundle gone is not there or does not load" in ready.json()["checks"]["bundles"]
        gone_waits_and_the_other_is_read(node)
    assert [r.message for r in caplog.records if getattr(r, "action", "") == "bundle_not_usable"]
    checked = {result.what: result for result in check_all(config, echo=False)}
    assert not checked["model gone"].ok


def test_a_route_may_name_what_was_here_once_and_no_bundle_that_never_was(config: Path) -> None:
    lose(with_routes(config) / "gone")
    routes = config.parent / "routes.toml"
    assert load_all(config)[1].route[0].models == ("gone",)
    routes.write_text(routes.read_text().replace('"there"', '"their"'))
    with pytest.raises(ConfigError, match=r'routes.toml:10: .*there is no Model Bundle "their"; there is .*gone'):
        load_all(config)


def test_a_study_may_come_by_stow(node: Node) -> None:
    ds = pydicom.dcmread(str(get_testdata_file("MR_small.dcm")))
    answer = DICOMwebClient(f"{node.web_address}dicom-web").store_instances([ds])
    assert len(answer.ReferencedSOPSequence) == 1
    wait_for(lambda: studies.listing(node.db, state="DONE"))
    (study,) = studies.listing(node.db)
    assert study["study_instance_uid"] == ds.StudyInstanceUID


def test_a_second_node_on_the_same_folder_does_not_start(node: Node) -> None:
    with pytest.raises(Permanent, match="Another node"), Node(node.settings, node.routes):
        pass
    assert scanner.echo("127.0.0.1", node.listener.port) == 0


def test_a_taken_port_is_one_sentence_and_leaves_nothing_behind(node: Node, tmp_path: Path) -> None:
    taken = node.settings.node.model_copy(update={"port": node.listener.port})
    elsewhere = node.settings.spool.model_copy(update={"url": tmp_path / "other" / "spool"})
    database = node.settings.database.model_copy(update={"url": f"sqlite:///{tmp_path}/other/w.db"})
    other = node.settings.model_copy(update={"node": taken, "spool": elsewhere, "database": database})
    with pytest.raises(Permanent, match=r"cannot listen .*Change \[node\] port"), Node(other, node.routes):
        pass
    free = other.model_copy(update={"node": node.settings.node})
    with Node(free, node.routes) as again:
        assert scanner.echo("127.0.0.1", again.listener.port) == 0


def test_what_was_acknowledged_before_a_crash_is_registered_again(config: Path) -> None:
    settings = load_settings(config)
    routes = load_routes(config.parent / "routes.toml", settings)
    with Node(settings, routes) as first:
        assert scanner.send(Path(str(get_testdata_file("CT_small.dcm"))), "127.0.0.1", first.listener.port).ok
    for name in config.parent.glob("state/wetread.db*"):
        name.unlink()
    with Node(settings, routes) as second:
        assert [study["instances"] for study in studies.listing(second.db)] == [1]


def test_a_failing_stage_is_shown_and_comes_back() -> None:
    health, fails = Health(), threading.Event()
    fails.set()

    def tick() -> None:
        if fails.is_set():
            raise DatabaseUnavailable("locked")

    loop = Loop("route", 0.05, tick, health)
    try:
        wait_for(lambda: health.stages().get("route") == "locked")
        fails.clear()
        wait_for(lambda: health.stages()["route"] == "")
    finally:
        loop.stop()


def test_a_stage_says_once_that_it_fails_and_once_that_it_works_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "node.loop")
    health, calls = Health(), []

    def tick() -> None:
        calls.append(1)
        if len(calls) in (2, 3, 6):
            raise DatabaseUnavailable(f"away {len(calls)}")
        if len(calls) in (4, 5):
            raise ZeroDivisionError

    loop = Loop("route", 0.01, tick, health)
    try:
        wait_for(lambda: len(calls) > 8, 60)
    finally:
        loop.stop()
    assert [record.message for record in caplog.records] == [
        "Stage route: away 2",
        "Stage route failed; it goes on.",
        "Stage route works again.",
    ]


def test_storage_commitment_says_once_that_the_database_is_away(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config.write_text(f'{CONFIG}\n[database]\nurl = "postgresql+psycopg://wetread@/none?host={tmp_path}"\n')
    monkeypatch.setattr(app, "COMMIT_EVERY_S", 0.01)
    calls, real = [], commitment.tick

    def tick(*arguments: Any) -> int:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(commitment, "tick", tick)
    desk = open_desk(load_settings(config))
    loop = app.commit(desk)
    try:
        wait_for(lambda: len(calls) > 4, 60)
    finally:
        loop.stop()
        desk.readers.stop()
        desk.db.close()
    (record,) = caplog.records
    assert record.message.startswith("Stage commitment: The database did not answer")


def test_an_unexpected_error_in_a_stage_does_not_end_its_loop() -> None:
    health, calls = Health(), []

    def tick() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError("PATIENT^NAME")

    loop = Loop("settle", 0.05, tick, health)
    try:
        wait_for(lambda: len(calls) > 1)
        wait_for(lambda: health.stages()["settle"] == "")
    finally:
        loop.stop()


def test_a_stage_outlives_a_night_of_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 30 s one: after nine hours their number is more than a float can be doubled."""
    monkeypatch.setattr(loop_module, "MAX_PAUSE_S", 0.0001)
    health, calls = Health(), []

    def tick() -> None:
        calls.append(1)
        if len(calls) < 1200:
            raise DatabaseUnavailable("away")

    loop = Loop("assemble", 0.2, tick, health)
    try:
        wait_for(lambda: health.stages().get("assemble") == "", timeout=60.0)
    finally:
        loop.stop()


@pytest.mark.parametrize("failures", [1100, 10**6])
def test_a_listener_process_is_started_again_however_often_it_died(failures: int) -> None:
    processes = Processes.__new__(Processes)
    processes._failures = failures
    assert processes._pause_s() == LONGEST_PAUSE_S


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_quietly_on_a_signal(config: Path, number: int) -> None:
    command = [sys.executable, "-m", "node.cli", "serve", "--config", str(config)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "status pages at" in line:
                break
        os.kill(process.pid, number)
        _, rest = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "Traceback" not in rest
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
