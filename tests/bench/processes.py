"""What a receiver costs: the CPU time of a process with everything that it forked."""

from __future__ import annotations

import os
from pathlib import Path

_PARENT, _FIRST_TIME = 1, 11
"""Fields of `/proc/PID/stat` after the name: ppid, and utime with stime, cutime and cstime behind it (proc(5))."""


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of process `pid`, of its descendants, and of those it has waited for."""
    fields = {int(path.name): _fields(path) for path in Path("/proc").iterdir() if path.name.isdecimal()}
    wanted, found = [pid], 0
    while wanted:
        parent = wanted.pop()
        found += sum(map(int, fields.get(parent, [])[_FIRST_TIME : _FIRST_TIME + 4]))
        wanted += [child for child, values in fields.items() if values and int(values[_PARENT]) == parent]
    return found / os.sysconf("SC_CLK_TCK")


def _fields(process: Path) -> list[str]:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return []
