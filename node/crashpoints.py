"""Crash points: the moments at which a killed process must lose nothing, by name, so that tests can kill there.

`WETREAD_FAULT=point:nth:action` makes a process misbehave the nth time that it comes by `point`; without it a point
costs one look into an empty dictionary. `tests/crash/test_crash_points.py` walks through `POINTS`: a point that is
added here is killed there. Each process counts for itself, and so does one that is started in place of a dead one.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.errors import ConfigError

ENVIRONMENT = "WETREAD_FAULT"
SLEEP_S = 10.0
EXIT_STATUS = 70

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """`who` comes by: node, worker, the worker's reader, a command of a person; `then`: what comes of a kill there."""

    who: tuple[str, ...]
    then: str


POINTS: Mapping[str, Point] = {
    "spool.before_write": Point(("worker",), "the job is read again"),
    "spool.before_fsync": Point(("worker",), "as before_write; the temporary file is swept later"),
    "spool.before_rename": Point(("worker",), "as before_write; the temporary file is swept later"),
    "spool.after_rename": Point(("worker",), "a result without a row; read again, the same bytes are one result"),
    "log.before_write": Point(("node",), "the sender sends again"),
    "log.before_sync": Point(("node",), "the sender sends again; a whole record is laid out, a torn one is not"),
    "ingest.before_rsp": Point(("node",), "durable, and nobody was told: laid out; the same bytes are one instance"),
    "log.before_layout": Point(("node",), "recovery lays out what was acknowledged and registers it"),
    "log.before_remove": Point(("node",), "recovery lays out what is there already and changes nothing"),
    "register.before": Point(("node",), "recovery registers what was acknowledged"),
    "register.before_commit": Point(("node",), "the transaction is undone; recovery registers it"),
    "fetch.before": Point(("node",), "the attempt counts and is given up after its timeout; the next one fetches"),
    "fetch.after": Point(("node",), "as fetch.before; what came is here, and the archive is asked what is left"),
    "hold.before_commit": Point(("node",), "the copies are compared and the study is held again"),
    "release.before_commit": Point(("command",), "neither copy was left out; the study is held until released again"),
    "assemble.before": Point(("node",), "the study is found due again"),
    "assemble.before_commit": Point(("node",), "the study is found due again; its revision counts once"),
    "route.before": Point(("node",), "the study still waits for the router"),
    "route.before_commit": Point(("node",), "neither jobs nor ROUTED; routed again"),
    "route.after": Point(("node",), "the jobs are rung for"),
    "ring.before": Point(("node",), "rung for again"),
    "ring.after": Point(("node",), "rung for twice; one claim"),
    "claim.before": Point(("worker",), "the message is lost; rung for again"),
    "claim.after": Point(("worker",), "the lease runs out and the job is read again"),
    "read.before_answer": Point(("reader",), "an attempt is counted; another reader reads it again"),
    "report.before": Point(("worker",), "results without a row; read again under the same UIDs"),
    "report.before_commit": Point(("worker",), "neither evidence nor REPORTED; read again under the same UIDs"),
    "report.after": Point(("worker",), "the deliveries are rung for"),
    "send.before": Point(("worker",), "the lease runs out and it is sent"),
    "send.after_rsp": Point(("worker",), "whether it arrived is unknown: the same bytes again, one object there"),
    "commit.before_ask": Point(("worker",), "no report comes; asked for again in another transaction"),
    "commit.after_ask": Point(("worker",), "the report comes to the node"),
    "commit.before_note": Point(("node",), "the report was not answered and comes again, or is asked for again"),
    "commit.after_note": Point(("node",), "the report comes again and changes nothing"),
    "settle.before": Point(("node",), "derived again"),
}


def _kill(point: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()  # the signal may take a moment; nothing after the point must happen


def _exit(point: str) -> None:
    os._exit(EXIT_STATUS)


def _sleep(point: str) -> None:
    time.sleep(SLEEP_S)


def _raise(point: str) -> None:
    raise RuntimeError(f"crash point {point}")


def _no_space(point: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _io_error(point: str) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


ACTIONS: Mapping[str, Callable[[str], None]] = {
    "kill": _kill,
    "exit": _exit,
    "sleep": _sleep,
    "raise": _raise,
    "enospc": _no_space,
    "eio": _io_error,
}


class _Armed:
    """One point that is waited for; acts the nth time and never again."""

    def __init__(self, point: str, nth: int, action: str) -> None:
        self._point, self._left, self._action = point, nth, action
        self._lock = threading.Lock()

    def reach(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left != 0:
                return
        log.error("Crash point %s: %s.", self._point, self._action, extra={"action": "crash_point"})
        ACTIONS[self._action](self._point)


_armed: dict[str, _Armed] = {}


def reach(point: str) -> None:
    """Come by `point`; does nothing unless it is armed."""
    if point in _armed:
        _armed[point].reach()


def arm(fault: str) -> None:
    """Arm what `fault` says, `point:nth:action`, in place of what was armed; "" disarms. Raises `ConfigError`."""
    _armed.clear()
    if not fault:
        return
    point, _, rest = fault.partition(":")
    nth, _, action = rest.partition(":")
    if point not in POINTS or action not in ACTIONS or not (nth.isascii() and nth.isdigit() and int(nth) > 0):
        what = f"expected point:nth:action with a point of node/crashpoints.py and one of {', '.join(ACTIONS)}"
        raise ConfigError(f"${ENVIRONMENT}", None, f'"{fault}" is no crash point; {what}')
    _armed[point] = _Armed(point, int(nth), action)


arm(os.environ.get(ENVIRONMENT, ""))
