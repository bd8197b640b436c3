"""What a receiver costs: CPU time and memory of a process with everything that it forked."""

from __future__ import annotations

import os
from pathlib import Path

_PARENT, _FIRST_TIME = 1, 11
"""Fields of `/proc/PID/stat` after the name: ppid, and utime with stime, cutime and cstime behind it (proc(5))."""


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of process `pid`, of its descendants, and of those it has waited for."""
    times = (_fields(process)[_FIRST_TIME : _FIRST_TIME + 4] for process in _family(pid))
    return sum(sum(map(int, found)) for found in times) / os.sysconf("SC_CLK_TCK")


def pss_mb(pid: int) -> float:
    """Return the memory of process `pid` and of its descendants in MB; what they share counts once (PSS, proc(5))."""
    return sum(map(_pss_kb, _family(pid))) * 1024 / 1e6


def _family(pid: int) -> list[Path]:
    """Return the folders in `/proc` of a process and of all its descendants."""
    fields = {int(path.name): _fields(path) for path in Path("/proc").iterdir() if path.name.isdecimal()}
    wanted, found = [pid], []
    while wanted:
        parent = wanted.pop()
        found.append(Path("/proc") / str(parent))
        wanted += [child for child, values in fields.items() if values and int(values[_PARENT]) == parent]
    return found


def _pss_kb(process: Path) -> int:
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it has ended meanwhile
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _fields(process: Path) -> list[str]:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return []
