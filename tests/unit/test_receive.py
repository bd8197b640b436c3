"""The door and the registrar behind it."""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pydicom
import pytest

from node import uids
from node.accept import receive
from node.accept.filemeta import part10_header
from node.accept.precheck import StoreStatus
from node.accept.receive import Arrival, Door
from node.accept.registrar import Registrar
from node.errors import DatabaseUnavailable
from node.log import LINES, Sparing
from node.store.spool import Spool
from node.store.studies import Received
from tests.unit.encoded import CT, EXPLICIT, dataset

ARRIVAL = Arrival(CT, "1.2.3.4", EXPLICIT, "CT1 ")


class Index:
    """Stands for the database: fails as told, and remembers what it was given."""

    def __init__(self, *failures: Exception, poison: str = "") -> None:
        self.failures, self.poison = list(failures), poison
        self.known: list[str] = []
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def register(self, received: Sequence[Received]) -> int:
        self.gate.wait(10)
        self.batches.append(len(received))
        if self.failures:
            raise self.failures.pop(0)
        if any(r.sop_instance_uid == self.poison for r in received):
            raise ValueError("constraint")
        self.known += [r.sop_instance_uid for r in received]
        return len(received)


def received(uid: str) -> Received:
    return Received(uid, CT, EXPLICIT, "1.2.3", "1.2.3.1", "0" * 64, "x", 1, "CT1", False, 1.0)


def test_success_means_the_file_is_there(tmp_path: Path) -> None:
    index, spool = Index(), Spool(tmp_path / "spool", 0)
    registrar = Registrar(index.register)
    answer = Door(spool, registrar, now=lambda: 17.0).receive(dataset(), ARRIVAL)
    assert answer.status == 0
    (path,) = spool.instances()
    ds = pydicom.dcmread(path)
    assert (ds.StudyInstanceUID, ds.file_meta.TransferSyntaxUID) == ("1.2.3", EXPLICIT)
    assert path.read_bytes().endswith(dataset())
    assert registrar.close(5)
    assert index.known == ["1.2.3.4"]


def test_the_file_meta_information_is_ours_and_always_the_same(tmp_path: Path) -> None:
    header = receive.inspect(dataset(), EXPLICIT, CT, "1.2.3.4")
    written = part10_header(header, ARRIVAL)
    assert written == part10_header(header, ARRIVAL)
    meta = pydicom.dcmread(BytesIO(written + dataset())).file_meta
    assert written[:132] == bytes(128) + b"DICM"
    assert meta.FileMetaInformationGroupLength == len(written) - 144
    assert meta.FileMetaInformationVersion == b"\x00\x01"
    assert meta.MediaStorageSOPClassUID == CT
    assert meta.MediaStorageSOPInstanceUID == "1.2.3.4"
    assert meta.ImplementationClassUID == uids.IMPLEMENTATION_CLASS_UID
    assert meta.ImplementationVersionName == uids.IMPLEMENTATION_VERSION_NAME
    assert meta.SourceApplicationEntityTitle == "CT1"


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken")])
def test_a_disk_or_memory_that_fails_is_a700(tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: bytes) -> None:
        raise error

    spool = Spool(tmp_path / "spool", 0)
    monkeypatch.setattr(spool, "store_instance", fail)
    registrar = Registrar(Index().register)
    assert Door(spool, registrar).receive(dataset(), ARRIVAL).status == StoreStatus.OUT_OF_RESOURCES
    registrar.close(5)


def test_a_spool_below_its_watermark_is_a700_and_keeps_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 2**62)
    index = Index()
    registrar = Registrar(index.register)
    assert Door(spool, registrar).receive(dataset(), ARRIVAL).status == StoreStatus.OUT_OF_RESOURCES
    assert not list(spool.instances())
    registrar.close(5)
    assert not index.known


def test_a_full_disk_fills_no_log_and_what_is_wrong_with_an_instance_is_told_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(receive.logger, "filters", [Sparing(receive.SPARING._applies)])
    monkeypatch.setattr("node.log.LINES_WITHIN_S", 1e9)
    registrar = Registrar(Index().register)
    full, wide = Door(Spool(tmp_path / "full", 2**62), registrar), Door(Spool(tmp_path / "wide", 0), registrar)
    with caplog.at_level("WARNING", logger=receive.logger.name):
        for _ in range(LINES + 7):
            full.receive(dataset(), ARRIVAL)
            wide.receive(dataset(uids={0x0020000D: "none"}), ARRIVAL)
        assert Counter(record.__dict__["status"] for record in caplog.records) == {"A700": LINES, "C000": LINES + 7}
        monkeypatch.setattr("node.log.LINES_WITHIN_S", 0.0)
        full.receive(dataset(), ARRIVAL)
    assert caplog.records[-1].getMessage().endswith("not kept. (7 such lines before it were left out)")
    registrar.close(5)


def test_a_closed_door_lets_nobody_in_and_waits_for_who_is_inside(tmp_path: Path) -> None:
    registrar = Registrar(Index().register)
    door = Door(Spool(tmp_path / "spool", 0), registrar)
    assert door.close(1)
    assert door.receive(dataset(), ARRIVAL).status == StoreStatus.OUT_OF_RESOURCES
    registrar.close(5)


def test_too_many_unregistered_instances_push_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "MAX_WAITING", 2)
    index, spool = Index(), Spool(tmp_path / "spool", 0)
    index.gate.clear()
    registrar = Registrar(index.register)
    door = Door(spool, registrar)
    statuses = [door.receive(dataset(uids={0x0020000D: f"1.2.{n}"}), ARRIVAL).status for n in range(1, 6)]
    assert statuses[0] == 0
    assert statuses[-1] == StoreStatus.OUT_OF_RESOURCES
    index.gate.set()
    assert registrar.close(5)
    assert len(index.known) == statuses.count(0)


def test_registration_is_retried_until_the_database_answers() -> None:
    index = Index(DatabaseUnavailable(), DatabaseUnavailable())
    registrar = Registrar(index.register, longest_pause_s=0.01)
    registrar.put(received("1.2.3.4"))
    deadline = time.monotonic() + 5
    while not index.known and time.monotonic() < deadline:
        time.sleep(0.005)
    assert index.known == ["1.2.3.4"]
    assert registrar.close(5)
    assert registrar.waiting == 0


def test_what_waits_is_registered_in_one_transaction() -> None:
    index = Index()
    index.gate.clear()
    registrar = Registrar(index.register)
    for n in range(150):
        registrar.put(received(f"1.2.{n}"))
    index.gate.set()
    assert registrar.close(5)
    assert len(index.known) == 150
    assert len(index.batches) <= 3


def test_what_comes_one_by_one_is_registered_together() -> None:
    index = Index()
    registrar = Registrar(index.register)
    for n in range(10):
        registrar.put(received(f"1.2.{n}"))
        time.sleep(0.001)
    assert registrar.waiting == 10 - len(index.known), "what is being gathered waits as well"
    assert registrar.close(5)
    assert len(index.known) == 10
    assert len(index.batches) <= 2


def test_an_instance_that_comes_alone_is_registered_soon() -> None:
    index = Index()
    registrar = Registrar(index.register)
    started = time.monotonic()
    registrar.put(received("1.2.3.4"))
    while not index.known and time.monotonic() < started + 5:
        time.sleep(0.005)
    assert time.monotonic() - started < 1
    assert registrar.close(5)


def test_one_poisonous_instance_does_not_hold_back_the_others() -> None:
    index = Index(poison="1.2.5")
    index.gate.clear()
    registrar = Registrar(index.register)
    for n in range(10):
        registrar.put(received(f"1.2.{n}"))
    index.gate.set()
    assert registrar.close(5)
    assert sorted(index.known) == sorted(f"1.2.{n}" for n in range(10) if n != 5)


def test_closing_does_not_wait_for_a_database_that_is_gone() -> None:
    index = Index(*[DatabaseUnavailable()] * 1000)
    registrar = Registrar(index.register, longest_pause_s=0.01)
    registrar.put(received("1.2.3.4"))
    started = time.monotonic()
    assert not registrar.close(0.2)
    assert time.monotonic() - started < 2
