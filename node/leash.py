"""A child process that cannot outlive its parent: the kernel signals it when the thread that started it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Sequence

_LAUNCHER = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(sys.argv[2]))
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execvp(sys.argv[3], sys.argv[3:])
"""
"""PR_SET_PDEATHSIG is 1 and survives execve. Unlike a `preexec_fn`, this is safe in a process with threads."""


def leashed(command: Sequence[str], death: signal.Signals = signal.SIGKILL) -> list[str]:
    """Return `command` wrapped so that it gets `death` when the thread that starts it ends (Linux; see prctl(2)).

    Start it from a thread that lives as long as the child shall.
    """
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(int(death)), *command]


def leash_this(death: signal.Signals = signal.SIGKILL) -> None:
    """Let this process get `death` when the thread that started it ends; end at once where it has already.

    For a process that a library starts, so that `leashed` cannot wrap its command (Linux; elsewhere nothing happens).
    """
    _leash(os.getppid(), death)


def leash_forks() -> None:
    """Let every process end with this one that its main thread forks, also when a library forks it (Linux).

    A fork does not inherit the leash of its parent (prctl(2)). Other threads may end before what they fork, so their
    forks are left alone; so are programs started by `subprocess`.
    """
    parent = 0

    def before() -> None:
        nonlocal parent
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0

    def after() -> None:
        if parent:
            _leash(parent, signal.SIGKILL)

    os.register_at_fork(before=before, after_in_child=after)


def _leash(parent: int, death: signal.Signals) -> None:
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(1, int(death))
    if parent == 1 or os.getppid() != parent:  # whose parent has gone is a child of 1
        os._exit(1)
