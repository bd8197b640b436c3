"""At start: spool and database agree again, and what a killed process left behind goes.

An instance is acknowledged when it is durable in the ingest log, before its file is in the spool and before the
database knows it. So the log is laid out first, and what then is a file without a row is registered: its header has
all that a row needs. A file whose row says that it was removed came again: retention never leaves one in its place
(see `node/store/retention.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Protocol

from pydicom.filereader import read_file_meta_info

from node import clock
from node.errors import Permanent
from node.store import ingestlog, retention, studies
from node.store.db import Database, rows
from node.store.locks import housekeeping
from node.store.spool import FOLDER_MODE, Encoded, Spool, dataset_offset

log = logging.getLogger(__name__)

_BATCH = 500
_STRAY_AFTER_S = 3600.0
"""A temporary file this old has no writer: no instance takes an hour to write."""


class Identifiers(Protocol):
    """What names an instance, and whether we have made it ourselves."""

    @property
    def sop_class_uid(self) -> str:
        """SOP Class UID (0008,0016)."""

    @property
    def sop_instance_uid(self) -> str:
        """SOP Instance UID (0008,0018)."""

    @property
    def study_instance_uid(self) -> str:
        """Study Instance UID (0020,000D)."""

    @property
    def series_instance_uid(self) -> str:
        """Series Instance UID (0020,000E)."""

    @property
    def is_own_result(self) -> bool:
        """Whether Instance Creator UID (0008,0014) is ours."""


Identify = Callable[[Encoded, str], Identifiers]
"""Reads data set and Transfer Syntax UID as the door does, which takes what other readers stumble over; `Permanent`."""


@dataclass(frozen=True)
class RecoverReport:
    """What recovery did: files registered again, moved to quarantine (relative names), temporary files deleted.

    `missing` names files that the database knows and the spool no longer has. `unreported` counts results, now in
    quarantine too, that no job reported: their worker was killed before, and the job was read again.
    """

    registered: int
    quarantined: tuple[str, ...]
    missing: tuple[str, ...]
    swept: int
    unreported: int = 0


def recover(db: Database, spool: Spool, identify: Identify) -> RecoverReport:
    """Register what the spool has and the database does not know; raises `DatabaseUnavailable`, `NoRoom`."""
    with housekeeping(spool.root):
        return _recover(db, spool, identify)


def _recover(db: Database, spool: Spool, identify: Identify) -> RecoverReport:
    spool.flatten()
    ingestlog.replay(spool)
    retention.finish(db, spool)
    known = _known(db)
    quarantined: list[str] = []
    present: set[str] = set()
    registered = 0
    unknown = _unknown(spool, known, present, quarantined, identify)
    while batch := list(islice(unknown, _BATCH)):
        registered += studies.register(db, batch)
    missing = tuple(sorted(known - present))
    unreported = _set_unreported_aside(db, spool)
    report = RecoverReport(registered, tuple(quarantined), missing, spool.sweep_tmp(_STRAY_AFTER_S), unreported)
    _log(report)
    return report


def _known(db: Database) -> set[str]:
    with db.reader() as connection:
        return set(connection.exec_driver_sql("SELECT path FROM instance WHERE removed_at IS NULL").scalars())


def _set_unreported_aside(db: Database, spool: Spool) -> int:
    """Quarantine results that no evidence row names. A worker files a result within seconds; none waits for an hour.

    They are not deleted: where the database was restored from a copy, they may be what an archive already has.
    """
    old = [p for p in spool.results() if clock.now() - p.stat().st_mtime >= _STRAY_AFTER_S]
    with db.reader() as connection:
        known = {row["path"] for row in rows(connection, "SELECT path FROM evidence WHERE removed_at IS NULL")}
    unreported = [path for path in old if spool.relative(path) not in known]
    for path in unreported:
        _quarantine(spool, path)
    return len(unreported)


def _unknown(
    spool: Spool, known: set[str], present: set[str], quarantined: list[str], identify: Identify
) -> Iterator[studies.Received]:
    for relative in spool.instance_names():
        if relative in known:
            present.add(relative)
            continue
        path = spool.path(relative)
        received = _receive(spool, path, relative, identify)
        if received is None:
            _quarantine(spool, path)
            quarantined.append(relative)
        else:
            yield received


def _receive(spool: Spool, path: Path, relative: str, identify: Identify) -> studies.Received | None:
    """Return the row that belongs to a file, or None when its bytes are not those its name promises."""
    if not spool.verify(relative, path.stem):
        return None
    try:
        meta = read_file_meta_info(path)
        syntax = str(meta.get("TransferSyntaxUID", ""))
        with path.open("rb") as file:
            mapped = mmap(file.fileno(), 0, access=ACCESS_READ)
        found = identify(memoryview(mapped)[dataset_offset(mapped) :], syntax)
    except (Permanent, ValueError):
        return None
    status = path.stat()
    return studies.Received(
        sop_instance_uid=found.sop_instance_uid,
        sop_class_uid=found.sop_class_uid,
        transfer_syntax_uid=syntax,
        study_instance_uid=found.study_instance_uid,
        series_instance_uid=found.series_instance_uid,
        sha256=path.stem,
        path=relative,
        size=status.st_size,
        calling_ae=str(meta.get("SourceApplicationEntityTitle", "")),
        is_own_result=found.is_own_result,
        received_at=status.st_mtime,
    )


def _quarantine(spool: Spool, path: Path) -> None:
    folder = spool.root / "quarantine"
    folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
    path.rename(folder / path.name)


def _log(report: RecoverReport) -> None:
    extra = {"action": "recovered"}
    if report.registered or report.swept:
        log.info("%d instances were registered again from the spool.", report.registered, extra=extra)
    if report.unreported:
        log.warning("%d results that no job reported lie in quarantine now.", report.unreported, extra=extra)
    for name in report.quarantined:
        log.error("%s does not hold what it is named after; it lies in quarantine now.", name, extra=extra)
    for name in report.missing:
        log.error("%s is in the database but not in the spool; jobs that need it will say so.", name, extra=extra)
