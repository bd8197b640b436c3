"""Which file system a path lies on, as the kernel tells it; SQLite is refused on one that other machines share."""

from __future__ import annotations

from pathlib import Path

from node.errors import Permanent

MOUNTS = Path("/proc/self/mounts")

NETWORK = frozenset(
    {
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "davfs",
        "fuse.ceph",
        "fuse.davfs",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "smb3",
        "smbfs",
    }
)


def file_system(path: Path, mounts: Path = MOUNTS) -> tuple[str, str]:
    """Return (mount point, type) of the file system that holds `path`; ("", "") where the kernel does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # no Linux, or no /proc
        return "", ""
    place, best = path.resolve(), ("", "")
    for line in lines:
        _, point, kind, *_ = (*line.split(" "), "", "", "")
        point = point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        # Of two mounts on one point the later one covers the earlier.
        if place.is_relative_to(point or "?") and len(point) >= len(best[0]):
            best = point, kind
    return best


def refuse_network(path: Path, mounts: Path = MOUNTS) -> None:
    """Raise `Permanent` when `path`, an SQLite database, lies on a network file system.

    There the locks are advisory at best and WAL's shared memory is not shared (sqlite.org/wal.html): two processes
    would both believe that they hold the write lock, and the queue of record would be damaged.
    """
    point, kind = file_system(path, mounts)
    if kind in NETWORK:
        raise Permanent(
            f"The database {path} lies on {point}, a network file system ({kind}), where SQLite cannot lock; it was "
            "not opened. Put it on a local disk ([database] url), or use PostgreSQL."
        )
