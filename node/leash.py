"""A child process that cannot outlive its parent: the kernel signals it when the thread that started it ends."""

from __future__ import annotations

import os
import signal
import sys
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
