"""I7: a node that runs on this machine leaves no dead children, no deleted files open, and room for descriptors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from node.store.invariants.finding import Finding
from node.store.spool import Spool

NEARLY_ALL = 0.8
"""The part of its descriptors that a process may have open."""
_REMEDY = "Start the node again, and please report this line."


def check(state: Path, spool: Spool) -> Iterator[Finding]:
    """Yield what the processes that hold the locks of `state` have leaked; Linux alone can tell (proc(5))."""
    for lock in sorted(state.glob("lock*")):
        text = lock.read_text().strip()
        process = Path("/proc") / text
        if text.isdecimal() and _is_python(process):
            name = f"process {text} ({lock.name})"
            for what in (*_descriptors(process, spool), *_zombies(int(text))):
                yield Finding("I7", name, what, _REMEDY)


def _is_python(process: Path) -> bool:
    """Whether the number in the lock still is a process that could be ours."""
    try:
        return b"python" in (process / "cmdline").read_bytes() or b"wetread" in (process / "cmdline").read_bytes()
    except OSError:
        return False


def _descriptors(process: Path, spool: Spool) -> Iterator[str]:
    try:
        names = [str(link.readlink()) for link in (process / "fd").iterdir()]
        limits = (process / "limits").read_text().splitlines()
        limit = next(line for line in limits if line.startswith("Max open files"))
    except (OSError, StopIteration):  # of another user, or gone
        return
    deleted = [name for name in names if name.startswith(f"{spool.root.resolve()}/instances") and "(deleted)" in name]
    if deleted:
        yield f"it holds {len(deleted)} files open that were deleted"
    most = limit.split()[3]
    if most.isdecimal() and len(names) > NEARLY_ALL * int(most):
        yield f"it has {len(names)} of {most} descriptors open"


def _zombies(pid: int) -> Iterator[str]:
    dead = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        dead += fields[0] == "Z" and int(fields[1]) == pid
    if dead > 1:  # one may have died this moment
        yield f"{dead} of its children have died and were not waited for"
