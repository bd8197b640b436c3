"""A study whose job is reported: Evidence Documents in the spool, deliveries waiting. By the store's own functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from node.settings import Destination, NodeSettings, Settings
from node.store import deliveries, jobs, studies
from node.store.db import Database
from node.store.jobs import Document, NewJob
from node.store.spool import Spool
from node.uids import derive_uid

SR = "1.2.840.10008.5.1.4.1.1.88.34"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
NOW = 1_700_000_000.0


@dataclass
class Node:
    """The parts of a node that sending needs, with a clock that tests turn."""

    db: Database
    spool: Spool
    settings: Settings
    at: float = NOW

    def now(self) -> float:
        return self.at

    def states(self) -> dict[str, str]:
        """SOP Instance UID → state of its delivery."""
        return {row["sop_instance_uid"]: row["state"] for row in deliveries.listing(self.db)}

    def row(self, sop_instance_uid: str) -> dict[str, object]:
        return next(r for r in deliveries.listing(self.db) if r["sop_instance_uid"] == sop_instance_uid)


def make_node(folder: Path, port: int, commitment: bool = False, retry: float = 72 * 3600.0) -> Node:
    destination = Destination.model_construct(
        kind="dimse", host="127.0.0.1", port=port, ae_title="SIM_PACS", commitment=commitment, retry=retry
    )
    settings = Settings.model_construct(node=NodeSettings(port=0), destination={"pacs": destination})
    return Node(Database(f"sqlite:///{folder / 'wetread.db'}"), Spool(folder / "spool", refuse_below=0), settings)


def evidence(study: str, kind: str, number: int = 1) -> Dataset:
    """A small data set with the identifiers of an Evidence Document; its content is of no concern here."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = SR if kind == "SR" else SEG
    ds.SOPInstanceUID = derive_uid("test", study, kind, str(number))
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, derive_uid("test", study, kind)
    ds.Modality = kind
    ds.SeriesDescription = "AI result"
    return ds


def file_study(node: Node, study: str, kinds: Sequence[str] = ("SR", "SEG")) -> list[str]:
    """Bring a study to REPORTED; return the ids of its deliveries in the order of `kinds`."""
    series = derive_uid("test", study, "source")
    received = studies.Received(
        derive_uid("test", study, "image"), SR, ExplicitVRLittleEndian, study, series, "0" * 64, "instances/x", 1,
        "SCANNER", False, node.at,
    )  # fmt: skip
    studies.register(node.db, [received])
    revision = studies.complete(node.db, study, node.at, "test")
    assert revision == 1
    job = NewJob(study, 1, series, "bundle", "1.0.0", "0" * 64, "test", ("SR", "SEG"), tuple(node.settings.destination))
    assert studies.routed(node.db, study, 1, [job], "test", node.at)
    claimed = jobs.claim(node.db, job.job_id, "reader", node.at)
    assert claimed is not None
    documents = [_file(node, evidence(study, kind, number), kind) for number, kind in enumerate(kinds)]
    assert jobs.reported(node.db, claimed, "reader", documents, "found nothing", node.at)
    ids = {row["sop_instance_uid"]: row["id"] for row in deliveries.listing(node.db)}
    return [ids[document.sop_instance_uid] for document in documents]


def _file(node: Node, ds: Dataset, kind: str) -> Document:
    out = BytesIO()
    ds.save_as(out, enforce_file_format=True)
    stored = node.spool.store_result(out.getvalue())
    uids = (str(ds.SOPClassUID), str(ds.SOPInstanceUID), str(ds.SeriesInstanceUID))
    return Document(kind, *uids, stored.path, stored.sha256, stored.size)
