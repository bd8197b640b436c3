"""A routed study with its job, a bundle folder and a desk: what a worker finds, without any network in it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from node import bundles, trust
from node.bundles import Bundle
from node.settings import Settings
from node.store import studies
from node.store.db import Database
from node.store.jobs import NewJob
from node.store.spool import Spool
from tests.unit.headers import header, received
from workers.reader import Readers
from workers.tasks import Desk

DICOM_TOML = """
label = "Fake"
kind = "segmentation"
dimensions = 3
manufacturer = "wetread"
[series]
Modality = "MR"
"""
CHILD = (sys.executable, "-m", "tests.unit.child_pipelines")


def settings_in(folder: Path, **worker: Any) -> Settings:
    """Settings with all state and the bundles below `folder`."""
    return Settings.model_validate(
        {
            "spool": {"url": folder / "spool", "refuse_below": "1 B"},
            "database": {"url": f"sqlite:///{folder}/wetread.db"},
            "worker": {
                "models": folder / "models",
                "trusted": folder / "trusted.toml",
                "job_timeout": "30 s",
                **worker,
            },
            "destination": {"pacs": {"host": "127.0.0.1", "port": 104, "ae_title": "PACS"}},
        }
    )


def make_bundle(folder: Path) -> Bundle:
    """Write the bundle `fake` below `folder/models` and trust it; it has no network."""
    configs = folder / "models" / "fake" / "configs"
    configs.mkdir(parents=True)
    (configs / "metadata.json").write_text(json.dumps({"version": "1.0.0"}))
    (configs / "inference.json").write_text("{}")
    (configs / "dicom.toml").write_text(DICOM_TOML)
    bundle = bundles.load(configs.parent)
    trust.pin([bundle], folder / "trusted.toml")
    return bundle


def queue_job(db: Database, spool: Spool, bundle: Bundle, count: int = 3, wanted: int = 0) -> str:
    """Queue a job on a new series of `count` instances, of which the first `wanted` are to be read; return its id."""
    study_uid, series_uid = str(header().StudyInstanceUID), str(header().SeriesInstanceUID)
    headers = [header(StudyInstanceUID=study_uid, SeriesInstanceUID=series_uid, SeriesNumber=7) for _ in range(count)]
    other = header(StudyInstanceUID=study_uid, SeriesNumber=12)
    studies.register(db, [received(spool, ds) for ds in (*headers, other)])
    studies.complete(db, study_uid, 1000.0, "quiet")
    instances = tuple(ds.SOPInstanceUID for ds in headers[:wanted])
    key = (study_uid, 1, series_uid, bundle.name, bundle.version, bundle.digest)
    job = NewJob(*key, "r", ("SR",), ("pacs",), instances=instances)
    studies.routed(db, study_uid, 1, [job], "", 1000.0)
    return job.job_id


def open_desk(settings: Settings, mode: str = "good", worker: str = "w", **options: Any) -> Desk:
    """A desk whose readers run the fake pipeline `mode`."""
    spool = Spool(settings.spool.url, settings.spool.refuse_below)
    readers = Readers(settings.worker.readers, (*CHILD, mode))
    return Desk(settings, Database(settings.database.url), spool, readers, worker, **options)
