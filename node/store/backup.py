"""A copy of database and spool that can be started from, made while the node runs; and the way back.

The database is copied in one snapshot (`VACUUM INTO`), then the spool: every file that the snapshot names is there, and
what came later is registered at the first start, as after a crash. Files are never changed once they are written, so
that a second copy into the same folder takes only what is new.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from node.errors import Permanent
from node.store.db import BUSY_TIMEOUT_S, Database, rows
from node.store.spool import Spool
from node.store.syncing import Syncer, fsync_folder

DATABASE = "wetread.db"
SPOOL = "spool"
TRIES = 5
"""How often to begin again when retention deletes what a snapshot names while it is being copied."""
_PASSING = ("tmp", "removing")


def backup(db: Database, spool: Spool, folder: Path) -> int:
    """Copy database and spool into `folder`; return the number of files that were new there.

    Raises `Permanent` for a database that its own server must copy, and when files go faster than they are copied.
    """
    if db.dialect != "sqlite":
        raise Permanent("The database is PostgreSQL: copy it with pg_dump first, then the spool's folder.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    copied: list[str] = []
    for _ in range(TRIES):
        snapshot = folder / f"{DATABASE}.new"
        snapshot.unlink(missing_ok=True)
        with closing(sqlite3.connect(str(db.url.database), timeout=BUSY_TIMEOUT_S, isolation_level=None)) as source:
            source.execute(
                "VACUUM INTO ?", (str(snapshot),)
            )  # outside of any transaction, which a Database would begin
        snapshot.chmod(0o640)
        copied += _copy(spool.root, folder / SPOOL)
        if not _missing(snapshot, folder / SPOOL):
            _sync(folder, [snapshot.name, *(f"{SPOOL}/{name}" for name in copied)])
            snapshot.replace(folder / DATABASE)
            fsync_folder(folder)
            return len(copied)
    raise Permanent(f"Files of the spool went while they were copied, {TRIES} times; try again when less is deleted.")


def restore(folder: Path, database: Path, spool: Path) -> int:
    """Copy what `backup` has left in `folder` to where the node expects it; return the number of files copied.

    An old database is set aside beside itself as `….before-restore`. The caller holds the lock of the state folder.
    """
    if not (folder / DATABASE).is_file():
        raise Permanent(
            f"{folder} has no {DATABASE}: it is no copy made by `wetread spool backup`. Nothing was changed."
        )
    database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    copied = _copy(folder / SPOOL, spool)
    new = database.with_name(f"{database.name}.restored")
    shutil.copyfile(folder / DATABASE, new)
    new.chmod(0o640)
    _sync(database.parent, [new.name])
    if copied:
        _sync(spool, copied)
    for suffix in ("", "-wal", "-shm"):
        old = database.with_name(database.name + suffix)
        if old.exists():
            old.replace(database.with_name(f"{database.name}.before-restore{suffix}"))
    new.replace(database)
    fsync_folder(database.parent)
    return len(copied)


def _copy(source: Path, target: Path) -> list[str]:
    """Copy every file below `source` that `target` does not have in its size; what goes meanwhile is passed over.

    Returns the names of those that were copied, relative to `target`; none is synced yet.
    """
    copied: list[str] = []
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if name.parts[0] in _PASSING or path.is_symlink() or not path.is_file():
            continue
        try:
            is_new = _copy_one(path, target / name)
        except FileNotFoundError:
            continue
        copied += [name.as_posix()] * is_new
    return copied


def _sync(root: Path, names: Sequence[str]) -> None:
    """A copy that is said to be made survives a power cut."""
    with closing(Syncer(root)) as sync:
        sync(names)


def _copy_one(path: Path, target: Path) -> bool:
    status = path.stat()
    if target.exists() and (target.stat().st_size, target.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns):
        return False
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = target.with_name(f"{target.name}.new")
    shutil.copy2(path, new)
    new.replace(target)
    return True


def _missing(snapshot: Path, spool: Path) -> list[str]:
    """Return the files that the snapshot names and the copy of the spool does not have."""
    copy = Database(f"sqlite:///{snapshot}")
    try:
        with copy.reader() as connection:
            named = [row["path"] for table in ("instance", "evidence") for row in rows(connection, _NAMED[table])]
    finally:
        copy.close()
    return [name for name in named if not (spool / name).exists()]


_NAMED = {
    "instance": "SELECT path FROM instance WHERE removed_at IS NULL",
    "evidence": "SELECT path FROM evidence WHERE removed_at IS NULL",
}
