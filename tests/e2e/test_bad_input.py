"""Everything odd is pushed at a running node in one go; then a good study is read as if nothing had happened."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from node import bundles, trust
from node.simulate import phantoms, scanner
from node.simulate.pacs import Pacs
from tests.e2e import wetread_node
from tests.e2e.orthanc import free_port
from tests.e2e.wetread_node import WetreadNode

ODD = ("nonimage_and_odd", "syntaxes", "enhanced", "charsets", "ct_head_ge_tilt28", "pet_qin_headneck")
SETTLED = {"DONE", "FAILED", "CONFLICT"}
"""Some real instances come in several compressions under one UID, which a person has to look at."""

ROUTES = """
[[route]]
name = "everything to every model"
models = ["lung_fields", "any_image", "any_volume"]
decline = "never"
send_to = ["pacs"]
"""
MORE = """
[worker]
models = "models"
job_timeout = "60 s"
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WetreadNode, Pacs]]:
    folder = tmp_path_factory.mktemp("node")
    reads_anything(folder / "models" / "any_image", "lung_fields", "NumberOfSeriesRelatedInstances = {max = 4}\n")
    reads_anything(folder / "models" / "any_volume", "hippocampus", "NumberOfSeriesRelatedInstances = {max = 60}\n")
    port = free_port()
    with (
        Pacs(folder / "pacs", ae_title="SIM_PACS", peers={"WETREAD": ("127.0.0.1", port)}) as pacs,
        wetread_node.running(folder, port, ("SIM_PACS", pacs.port), free_port(), routes=ROUTES, more=MORE) as running,
    ):
        yield running, pacs


def reads_anything(folder: Path, like: str, conditions: str = "") -> None:
    """A trusted bundle that asks for no modality, so that every odd series meets the loader and a network."""
    shutil.copytree(bundles.SHIPPED / like, folder)
    path = folder / "configs" / "dicom.toml"
    head, title, rest = path.read_text().partition("[series]\n")
    path.write_text(head + title + conditions + "\n" + rest.partition("\n\n")[2])
    trust.pin([bundles.load(folder)], folder.parent.parent / "trusted.toml")


@pytest.mark.timeout(600)
def test_everything_odd_then_a_good_study(node: tuple[WetreadNode, Pacs], shared_data: Path, tmp_path: Path) -> None:
    running, pacs = node
    acknowledged: dict[str, str] = {}
    for name in ODD:
        report = scanner.send(shared_data / "dicom" / name, "127.0.0.1", running.port, ae="STORESCU")
        acknowledged |= {dataset_sha256(one.path): one.path.name for one in report.sent if one.ok}
    assert len(acknowledged) > 350

    spooled = {p.stem: p for p in (running.folder / "state" / "spool" / "instances").rglob("*.dcm")}
    assert set(acknowledged) <= set(spooled), "an acknowledged instance is not in the spool"
    assert all(dataset_sha256(spooled[digest]) == digest for digest in acknowledged)

    chest, _ = phantoms.chest_film(seed=1, size=512)
    assert scanner.send([chest], "127.0.0.1", running.port, ae="STORESCU").ok
    running.wait_for_studies({chest.StudyInstanceUID}, {"DONE"}, timeout_s=400)
    studies = {row["study_instance_uid"] for row in running.wetread("studies", "list", "--limit", "1000")}
    running.wait_for_studies(studies, SETTLED, timeout_s=180)
    results = [ds for path in pacs.archive.folder.rglob("*.dcm") if (ds := pydicom.dcmread(path))]
    assert {"SR", "SEG"} <= {ds.Modality for ds in results if ds.StudyInstanceUID == chest.StudyInstanceUID}
    jobs = running.wetread("jobs", "list", "--limit", "1000")
    assert len(jobs) > 60
    for job in jobs:
        assert job["state"] in ("DONE", "UNSUITABLE"), job
        assert job["reason"], job


def dataset_sha256(path: Path) -> str:
    """Digest the data set of a Part 10 file: what follows the File Meta Information (PS3.10 §7.1)."""
    data = path.read_bytes()
    length = pydicom.filereader.read_file_meta_info(path).FileMetaInformationGroupLength
    return hashlib.sha256(data[144 + length :]).hexdigest()
