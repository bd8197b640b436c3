"""A copy of database and spool that can be started from, made while the node runs; and the way back.

The database is copied in one snapshot (`VACUUM INTO`), then the spool: every file that the snapshot names is there, and
what came later is registered at the first start, as after a crash. The ingest log goes before the instances, so that
what is laid out meanwhile is in one of them. Instances and results are never changed once they are written, so that a
second copy into the same folder takes only what is new; what retention has removed since leaves the copy, too. Put
back, it would be an instance that came again, and be read again.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Collection, Sequence
from contextlib import closing, suppress
from pathlib import Path

from node.errors import Permanent
from node.store.db import BUSY_TIMEOUT_S, Database, rows
from node.store.engine import sqlite_url
from node.store.schema import VERSION
from node.store.spool import Spool
from node.store.syncing import Syncer, fsync_folder

DATABASE = "wetread.db"
SPOOL = "spool"
TRIES = 5
"""How often to begin again when retention deletes what a snapshot names while it is being copied."""
_PASSING = ("tmp", "removing")
_LOG = "log"


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
            _let_go(folder, spool)
            return len(copied)
    raise Permanent(f"Files of the spool went while they were copied, {TRIES} times; try again when less is deleted.")


def restore(folder: Path, database: Path, spool: Path) -> int:
    """Copy what `backup` has left in `folder` to where the node expects it; return the number of files copied.

    An old database is set aside beside itself as `….before-restore`. A file of the ingest log that is there stays: it
    has what the copy of it has, and what was acknowledged afterwards. The caller holds the locks of the state folder.
    Raises `Permanent`, and nothing has changed, where `folder` has no database that this version can start from.
    """
    removed = _removed(folder)
    there = {f"{_LOG}/{path.name}" for path in (spool / _LOG).glob("*")}
    database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    copied = _copy(folder / SPOOL, spool, removed | there)
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


def _copy(source: Path, target: Path, but: Collection[str] = ()) -> list[str]:
    """Copy every file below `source` that `target` does not have in its size; what goes meanwhile is passed over.

    Returns the names of those that were copied, relative to `target`; none is synced yet. Those in `but` are not.
    """
    copied: list[str] = []
    for path in sorted(source.rglob("*"), key=lambda path: (path.parent.name != _LOG, path)):
        name = path.relative_to(source)
        if name.parts[0] in _PASSING or name.as_posix() in but or path.is_symlink() or not path.is_file():
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


def _let_go(folder: Path, spool: Spool) -> None:
    """Delete from the copy what retention has removed, and logs whose instances have all been laid out since."""
    copy = folder / SPOOL
    logs = [f"{_LOG}/{path.name}" for path in (copy / _LOG).glob("*")]
    for name in _removed(folder) | {name for name in logs if not (spool.root / name).exists()}:
        (copy / name).unlink(missing_ok=True)


def _removed(folder: Path) -> set[str]:
    """Return the files of a copy that its database says were removed; not one that came again after that.

    Raises `Permanent` as `restore` does.
    """
    found: set[str] = set()
    for name, removed_at in _removals(folder / DATABASE):
        with suppress(FileNotFoundError):
            if (folder / SPOOL / name).stat().st_mtime <= removed_at:
                found.add(name)
    return found


def _removals(database: Path) -> list[tuple[str, float]]:
    """Return path and time of all that retention removed, as the database of a copy says; it is not written to."""
    if not database.is_file():
        raise Permanent(
            f"{database.parent} has no {DATABASE}: it is no copy made by `wetread spool backup`. Nothing was changed."
        )
    try:  # as it is, also on a medium that cannot be written
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as copy:
            (sound,) = copy.execute("PRAGMA quick_check(1)").fetchone()
            (version,) = copy.execute("SELECT MAX(version) FROM schema_version").fetchone()
            if sound != "ok" or version is None or version > VERSION:
                raise Permanent(
                    f"{database} is damaged, or of a later version of wetread; nothing was changed. Take another copy, "
                    "or the version that made it."
                )
            return copy.execute(_REMOVALS).fetchall() if version > 1 else []
    except sqlite3.Error as error:
        raise Permanent(f"{database} cannot be read ({error}); nothing was changed. Take another copy.") from None


def _missing(snapshot: Path, spool: Path) -> list[str]:
    """Return the files that the snapshot names and the copy of the spool does not have."""
    copy = Database(sqlite_url(snapshot))
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
_REMOVALS = (
    "SELECT path, removed_at FROM instance WHERE removed_at IS NOT NULL "
    "UNION ALL SELECT path, removed_at FROM evidence WHERE removed_at IS NOT NULL"
)
