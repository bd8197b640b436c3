"""No word of a patient reaches the log, the metrics, the audit trail or standard error, whatever goes wrong."""

from __future__ import annotations

import io
import logging
import random
import string
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pynetdicom import build_role

from node import log
from node.accept import contexts
from node.settings import LogSettings
from node.store.ingestlog import IngestLog
from tests.protocol.listening import associated, listening, store
from tests.protocol.stowing import FORM, part10, serving
from tests.unit.encoded import CT, EXPLICIT, dataset, element, image, nested, text, us

NOISE = random.Random()  # noqa: S311 - a canary need not be secret, only its own
CANARIES = ["".join(NOISE.choices(string.ascii_uppercase, k=16)) for _ in range(6)]
NAME, ID, BIRTH_DATE, ACCESSION, DESCRIPTION, INSTITUTION = CANARIES
PATIENT = b"".join(
    (
        text(0x00080050, "SH", ACCESSION),
        text(0x00080080, "LO", INSTITUTION),
        text(0x00081030, "LO", DESCRIPTION),
        text(0x00100010, "PN", f"{NAME}^{NAME}"),
        text(0x00100020, "LO", ID),
        text(0x00100030, "DA", BIRTH_DATE),
    )
)


@pytest.fixture(params=["text", "json"])
def written(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    hooks = sys.excepthook, threading.excepthook, logging.raiseExceptions
    stream = io.StringIO()
    handler = log.configure(LogSettings(level="debug", format=request.param), stream)
    yield stream
    logging.getLogger().removeHandler(handler)
    logging.captureWarnings(False)
    sys.excepthook, threading.excepthook, logging.raiseExceptions = hooks


def test_no_canary_is_found(
    tmp_path: Path, written: io.StringIO, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = [
        dataset(PATIENT),
        dataset(PATIENT)[:-5],
        dataset(PATIENT + nested(40)),
        dataset(PATIENT + PATIENT + b"rest"),
        dataset(PATIENT, uids={0x00080018: NAME}),
        dataset(PATIENT, uids={0x0020000D: f"1.2.{ID}"}),
        dataset(PATIENT + element(0x00100010, NAME[:2], b"x" * 9, 7)),
        dataset(PATIENT + us(0x00280010, 0)),
        PATIENT,
        image(pixels=2) + PATIENT,
    ]
    with listening(tmp_path) as node:
        with associated(node.port, [(CT, [EXPLICIT])]) as assoc:
            statuses = [store(assoc, data) for data in faulty]
            statuses.append(store(assoc, dataset(PATIENT), sop_instance=NAME))
            monkeypatch.setattr(IngestLog, "append", _fail_with_the_data)
            statuses.append(store(assoc, dataset(PATIENT)))
        _report_with_canaries(node.port)
        metrics = node.metrics.render()
        node.listener.stop(5)
        audit = node.audit.read_text()
    assert statuses.count(0x0000) == 2
    assert None not in statuses
    everything = written.getvalue() + metrics + audit + "".join(capfd.readouterr())
    assert "instance_refused" in everything
    assert "instance_failed" in everything
    assert "Traceback" not in everything
    assert [canary for canary in CANARIES if canary in everything] == []


def test_no_canary_is_found_behind_the_second_door(
    tmp_path: Path, written: io.StringIO, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [
        part10(dataset(PATIENT)),
        part10(dataset(PATIENT)[:-5]),
        part10(dataset(PATIENT), sop_instance=NAME),
        part10(dataset(PATIENT), syntax=ID),
        part10(dataset(PATIENT), more=text(0x00020016, "LO", NAME) * 2),
        PATIENT,
    ]
    with serving(tmp_path) as node:
        statuses = [node.store(file)[0] for file in files]
        statuses.append(node.store(*files, path=f"/studies/{NAME}")[0])
        statuses.append(node.post(PATIENT, Content_Type=f"{FORM}; x={NAME}").status_code)
        monkeypatch.setattr(IngestLog, "append", _fail_with_the_data)
        statuses.append(node.store(files[0])[0])
        metrics, audit = node.node.metrics.render(), node.node.audit.read_text()
    assert statuses == [200, 409, 409, 409, 409, 409, 400, 400, 409]
    everything = written.getvalue() + metrics + audit + "".join(capfd.readouterr())
    assert "instance_refused" in everything
    assert "instance_failed" in everything
    assert "Traceback" not in everything
    assert [canary for canary in CANARIES if canary in everything] == []


def _fail_with_the_data(self: IngestLog, header: bytes, data: bytes) -> None:
    raise ValueError(data.decode("latin-1"))


def _report_with_canaries(port: int) -> None:
    role = build_role(contexts.STORAGE_COMMITMENT, scu_role=False, scp_role=True)
    with associated(port, [(contexts.STORAGE_COMMITMENT, [EXPLICIT])], ext_neg=[role]) as assoc:
        ds = Dataset()
        ds.PatientName, ds.PatientID = NAME, ID
        assoc.send_n_event_report(ds, 1, contexts.STORAGE_COMMITMENT, "1.2.840.10008.1.20.1.1")
