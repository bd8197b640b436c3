"""A study full of marked strings goes through a whole node at log level debug; nothing of them is told to anybody."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator

import httpx
import pytest
from pydicom.dataset import Dataset

from node.simulate import phantoms, scanner
from node.simulate.pacs import Pacs
from tests.e2e import wetread_node
from tests.e2e.orthanc import free_port
from tests.e2e.wetread_node import WetreadNode

NOISE = random.Random()  # noqa: S311 - a canary need not be secret, only its own
KEYWORDS = (
    "PatientName",
    "PatientID",
    "AccessionNumber",
    "StudyID",
    "OtherPatientIDs",
    "PatientComments",
    "ReferringPhysicianName",
    "OperatorsName",
    "InstitutionName",
    "RequestedProcedureDescription",
)
CANARIES = {keyword: "".join(NOISE.choices(string.ascii_uppercase, k=14)) for keyword in KEYWORDS}
BIRTH_DATE = "19031224"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WetreadNode, Pacs, str]]:
    folder = tmp_path_factory.mktemp("node")
    port, web = free_port(), free_port()
    with (
        Pacs(folder / "pacs", ae_title="SIM_PACS", peers={"WETREAD": ("127.0.0.1", port)}) as pacs,
        wetread_node.running(
            folder, port, ("SIM_PACS", pacs.port), web, more='\n[log]\nlevel = "debug"\nformat = "json"\n'
        ) as running,
    ):
        yield running, pacs, f"http://127.0.0.1:{web}"


def marked(ds: Dataset) -> Dataset:
    """The data set with a canary in every attribute that says who the patient is."""
    for keyword, canary in CANARIES.items():
        setattr(ds, keyword, canary)
    ds.PatientBirthDate = BIRTH_DATE
    return ds


def test_no_log_page_listing_or_metric_names_the_patient(node: tuple[WetreadNode, Pacs, str]) -> None:
    running, pacs, web = node
    film = marked(phantoms.chest_film(seed=1, size=512)[0])
    slices = [marked(ds) for ds in phantoms.volume(modality="MR")[0]]
    del slices[10]  # a missing slice: the reason that is written must not say whose
    for study in ([film], slices):
        assert scanner.send(study, "127.0.0.1", running.port, ae="STORESCU").ok
    contradicting = marked(phantoms.chest_film(seed=2, size=512)[0])
    contradicting.Rows = 7
    assert not scanner.send([contradicting], "127.0.0.1", running.port, ae="STORESCU").ok
    uids = {str(ds.StudyInstanceUID) for ds in (film, slices[0])}
    running.wait_for_studies(uids, {"DONE", "FAILED"}, timeout_s=240)
    assert pacs.held, "nothing was reported, so nothing was looked at"
    assert {job["state"] for job in running.wetread("jobs", "list")} >= {"DONE", "UNSUITABLE"}

    told = {path.name: path.read_bytes() for path in running.folder.glob("*.log")}
    told |= {str(p): p.read_bytes() for p in (running.folder / "state").glob("*") if p.is_file()}
    pages = ["/", "/models", "/metrics", "/readyz", "/healthz", *(f"/studies/{uid}" for uid in uids)]
    for page in pages:
        answer = httpx.get(web + page)
        assert answer.status_code == 200, page
        told[page] = answer.content
    for noun in ("studies", "jobs", "deliveries", "dead"):
        rows = running.wetread(noun, "list")
        told[noun] = repr([rows, *(running.wetread(noun, "show", name_of(row)) for row in rows)]).encode()
    for log, action in (
        ("serve.log", b"instance_refused"),
        ("serve.log", b"study_complete"),
        ("worker.log", b"delivery"),
    ):
        assert action in told[log]
    leaks = {(k, where) for where, text in told.items() for k, canary in secrets() if canary.encode() in text}
    assert leaks == set()


def secrets() -> list[tuple[str, str]]:
    return [*CANARIES.items(), ("PatientBirthDate", BIRTH_DATE)]


def name_of(row: dict[str, str]) -> str:
    return row.get("id") or row["study_instance_uid"]
