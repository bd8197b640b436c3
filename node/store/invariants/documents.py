"""I5: what each Evidence Document says of itself: unverified, and only about instances of its own study."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from node.store.db import Database, rows
from node.store.invariants.finding import Finding
from node.store.spool import Spool

_REMEDY = "Do not use this result: please report it with this line, and read the study again."


def check(db: Database, spool: Spool) -> Iterator[Finding]:
    """Yield documents that are not what their row says or name what the study does not have.

    A document that retention removes meanwhile is passed over, a file that does not parse is not: `files` has found
    its bytes to be those that were filed.
    """
    with db.reader() as connection:
        filed = rows(connection, _FILED)
        known: dict[str, set[str]] = {}
        for row in rows(connection, _KNOWN):
            known.setdefault(row["study_instance_uid"], set()).add(row["sop_instance_uid"])
    for row in filed:
        try:
            ds = pydicom.dcmread(spool.path(row["path"]), stop_before_pixels=True)
            faults = list(_faults(ds, row, known[row["study_instance_uid"]]))
        except FileNotFoundError:
            continue
        except Exception as error:  # pydicom raises many kinds on broken files
            faults = [f"it is not readable as DICOM ({type(error).__name__})"]
        for what in faults:
            yield Finding("I5", f"evidence {row['sop_instance_uid']}", what, _REMEDY)


_FILED = (
    "SELECT e.*, j.study_instance_uid FROM evidence e JOIN job j ON j.id = e.job_id "
    "WHERE e.removed_at IS NULL ORDER BY e.sop_instance_uid"
)
_KNOWN = (
    "SELECT study_instance_uid, sop_instance_uid FROM instance UNION "
    "SELECT j.study_instance_uid, e.sop_instance_uid FROM evidence e JOIN job j ON j.id = e.job_id"
)


def _faults(ds: Dataset, row: dict[str, Any], known: set[str]) -> Iterator[str]:
    names = {"SOPInstanceUID": "sop_instance_uid", "SOPClassUID": "sop_class_uid"}
    names |= {"SeriesInstanceUID": "series_instance_uid", "StudyInstanceUID": "study_instance_uid"}
    for keyword, column in names.items():
        if str(ds.get(keyword, "")) != row[column]:
            yield f"its {keyword} is not {row[column]}"
    if row["kind"] == "SR" and ds.get("VerificationFlag") != "UNVERIFIED":
        yield "it is an SR whose VerificationFlag is not UNVERIFIED (PS3.3 §C.17.2)"
    for uid in sorted(_referenced(ds) - known):
        yield f"it refers to {uid}, which is not in its study"


def _referenced(ds: Dataset) -> set[str]:
    """Return every Referenced SOP Instance UID (0008,1155) at any depth."""
    found: set[str] = set()
    ds.walk(lambda _, element: found.add(str(element.value)) if element.tag == 0x00081155 else None)
    return found
