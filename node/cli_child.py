"""A child of the command line that says in JSON lines how far it is; whatever it does, one line is left to tell.

The child decodes images of strangers, so it may crash; it gets no terminal and ends with its parent.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from node.errors import ConfigError, Permanent, Unsuitable
from node.leash import leashed

_ROOT = Path(__file__).resolve().parent.parent
_ENDS = ("done", "usage", "unsuitable", "failed")


def follow(module: str, request: str, silence_s: float | None, tell: Callable[[dict[str, Any]], None]) -> None:
    """Run `python -m module`, give it `request` on standard input, and hand each of its messages to `tell`.

    Raises what the child's last message says: `ConfigError`, `Unsuitable` or `Permanent`. `Permanent` too when it
    crashes, or is silent for longer than `silence_s` (None is for ever); the message names what it was busy with.
    """
    busy: dict[str, str] = {}
    process = _start(module)
    try:
        assert process.stdin is not None  # noqa: S101 - asked for below
        with suppress(BrokenPipeError), process.stdin as requests:  # a child that fell over at once is told of below
            requests.write(request.encode() + b"\n")
        for message in _messages(process, silence_s, busy):
            if message.get("end") in _ENDS:
                _raise(message)
                return
            if "image" in message:
                busy["with"] = str(message["image"])
            tell(message)
        raise Permanent(_ended(process, busy.get("with", "")))
    finally:
        _end(process)


def _start(module: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        leashed([sys.executable, "-P", "-m", module]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # the whole group is ended at once, and Ctrl-C is for the parent
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))},
    )


def _messages(
    process: subprocess.Popen[bytes], silence_s: float | None, busy: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None  # noqa: S101 - asked for above
    descriptor, received = process.stdout.fileno(), b""
    while True:
        if not select.select([descriptor], [], [], silence_s)[0]:
            raise Permanent(
                f"{busy.get('with', 'The start')} took longer than worker.job_timeout ({silence_s or 0:g} s); ended."
            )
        chunk = os.read(descriptor, 1 << 16)
        if not chunk:
            return
        *lines, received = (received + chunk).split(b"\n")
        yield from (json.loads(line) for line in lines)


def _raise(message: dict[str, Any]) -> None:
    told = str(message.get("message", ""))
    if message["end"] == "usage":
        raise ConfigError(message["file"], message["line"], told)
    if message["end"] == "unsuitable":
        raise Unsuitable(told)
    if message["end"] == "failed":
        raise Permanent(told)


def _ended(process: subprocess.Popen[bytes], busy_with: str) -> str:
    status = process.wait()
    how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
    where = f" while reading {busy_with}" if busy_with else ""
    more = "; the machine may be out of memory" if status == -signal.SIGKILL else ""
    return f"The child process {how}{where}{more}. Nothing was written."


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the child with all that it started; a whole answer was given, or none is wanted."""
    with suppress(ProcessLookupError, PermissionError):  # gone already; macOS says the latter of a zombie
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()
