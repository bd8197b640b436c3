"""Locks that the kernel lets go when their holder dies: one process per role and state folder, one keeper per spool.

They keep two processes from the same work; that nothing is lost or doubled does not rest on them but on the database.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from node.errors import Permanent

ROLES = ("listener", "stages", "doorbell", "web")
"""What of a node can be a process of its own, each with a lock."""


@contextmanager
def lock_state(folder: Path, role: str = "") -> Iterator[None]:
    """Hold the state folder, or one `role` of its node, for this process; a second one there gets `Permanent`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(folder / (f"lock.{role}" if role else "lock"), wait=False) as descriptor:
        if descriptor is None:
            raise Permanent(
                f"Another node is running {f'as {role} ' if role else ''}on the state folder {folder}; this one did "
                "not start. Stop the other one, or give this one a folder of its own."
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield


def is_held(folder: Path, role: str) -> bool:
    """Say whether a process is at this `role` of the node on the state folder; one that starts just now is refused."""
    if not (path := folder / f"lock.{role}").exists():
        return False
    with _locked(path, wait=False) as descriptor:
        return descriptor is None


@contextmanager
def work_on(folder: Path) -> Iterator[None]:
    """Be one of any number of workers on the state folder; raises `Permanent` while a copy is put in place there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(folder / "lock.worker", wait=False, kind=fcntl.LOCK_SH) as descriptor:
        if descriptor is None:
            raise Permanent(f"A copy is being restored in the state folder {folder}; this worker did not start.")
        yield


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep every role of a node and every worker off the state folder; raises `Permanent` when one is there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        for role in (*ROLES, "worker"):
            if stack.enter_context(_locked(folder / f"lock.{role}", wait=False)) is None:
                what = "A worker" if role == "worker" else f"Another node ({role})"
                raise Permanent(f"{what} is running on the state folder {folder}; stop it first. Nothing was changed.")
        yield


@contextmanager
def housekeeping(spool: Path, wait: bool = True) -> Iterator[bool]:
    """Keep house in the spool at this path alone, among all hosts that share it; no host is special.

    Yields False when another process is at it, and not `wait`.
    """
    with _locked(spool / "lock", wait) as descriptor:
        yield descriptor is not None


@contextmanager
def _locked(path: Path, wait: bool, kind: int = fcntl.LOCK_EX) -> Iterator[int | None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.flock(descriptor, kind | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        yield descriptor
    finally:
        os.close(descriptor)
