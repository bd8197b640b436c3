"""What the pages show, read from the database: studies with what was found, and counts for the metrics."""

from __future__ import annotations

from typing import Any

from node.store import studies
from node.store.db import Database, rows
from node.store.spool import Spool

_DELIVERIES = """
SELECT j.study_instance_uid, d.state, COUNT(*) AS many FROM delivery d
JOIN evidence e ON e.sop_instance_uid = d.sop_instance_uid JOIN job j ON j.id = e.job_id
WHERE j.study_instance_uid IN :studies GROUP BY j.study_instance_uid, d.state
"""
_KEY_IMAGE = """
SELECT e.path FROM evidence e JOIN job j ON j.id = e.job_id AND e.removed_at IS NULL
WHERE j.study_instance_uid = :study AND e.kind = 'SC' ORDER BY e.created_at DESC, e.sop_instance_uid
"""


def overview(db: Database, state: str, limit: int, offset: int) -> list[dict[str, Any]]:
    """Return studies, the latest first, with the `jobs` of their revision and their `deliveries` counted by state."""
    found = studies.listing(db, state=state or None, limit=limit, offset=offset)
    uids = [study["study_instance_uid"] for study in found]
    with db.reader() as connection:
        deliveries = rows(connection, _DELIVERIES, studies=uids)
    for study in found:
        uid = study["study_instance_uid"]
        study["deliveries"] = {d["state"]: d["many"] for d in deliveries if d["study_instance_uid"] == uid}
    return found


def counts(db: Database) -> dict[str, dict[str, int]]:
    """Return, for study, job and delivery, how many are in each state."""
    with db.reader() as connection:
        return {
            table: {
                row["state"]: row["many"]
                for row in rows(connection, f"SELECT state, COUNT(*) AS many FROM {table} GROUP BY state")  # noqa: S608 - our own names
            }
            for table in ("study", "job", "delivery")
        }


def instance_count(db: Database) -> int:
    """Return how many instances the node keeps."""
    with db.reader() as connection:
        return int(rows(connection, "SELECT COUNT(*) AS many FROM instance")[0]["many"])


def key_image(db: Database, spool: Spool, study_uid: str, number: int) -> bytes | None:
    """Return key image `number` (from 0) of a study as PNG, at most 1200 pixels wide or high, or None.

    Only our own Secondary Captures are decoded here: RGB, uncompressed, written by this node.
    """
    with db.reader() as connection:
        found = rows(connection, _KEY_IMAGE, study=study_uid)
    if number >= len(found):
        return None
    try:
        return to_png(spool.path(found[number]["path"]).read_bytes())
    except FileNotFoundError:  # removed since, or lost; `wetread spool verify` tells which
        return None


def key_image_count(db: Database, study_uid: str) -> int:
    """Return how many key images a study has."""
    with db.reader() as connection:
        return len(rows(connection, _KEY_IMAGE, study=study_uid))


def to_png(part10: bytes, largest: int = 1200) -> bytes:
    """Return one of our own Secondary Captures (8-bit RGB, one frame) as PNG."""
    from io import BytesIO

    import pydicom
    from PIL import Image

    ds = pydicom.dcmread(BytesIO(part10))
    image = Image.frombytes("RGB", (ds.Columns, ds.Rows), ds.PixelData)
    image.thumbnail((largest, largest))
    png = BytesIO()
    image.save(png, "PNG")
    return png.getvalue()
