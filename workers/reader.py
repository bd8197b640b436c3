"""The supervised child that runs the pipeline: one reading at a time, killed at its deadline, replaced when it dies.

Pixels of strangers are decoded and networks run in the child only. The two talk in JSON lines over pipes of their
own (`workers/conversation.py`); the child's standard output and error lead nowhere, because a decoder may print what
it reads. Warnings of our own code come back with the answer, and are logged here.
Run as `python -m workers.reader ANSWERS`, ANSWERS being the descriptor it writes to.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import LifoQueue

from node.crashpoints import reach
from node.leash import leashed
from node.log import OUR_PACKAGES, safe
from workers.conversation import Child, Conversation, Died, Overdue, Stopped, turns, write_all
from workers.pipeline import Outcome, Request, Turn

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "workers.reader")
RECYCLE_AFTER = 500
"""Readings after which a child is replaced, so that what leaks in a library stays bounded."""

_ROOT = Path(__file__).resolve().parent.parent
_MAX_TRACE = 4096
_MAX_WARNINGS, _MAX_WARNING = 20, 500
_OOM_SCORE = "800"
"""The kernel takes the child and not the supervisor when memory runs out (proc(5), oom_score_adj)."""


class Reader:
    """Runs the pipeline in a child; the child and its warm networks live on from reading to reading.

    In `scratch` is made what the child has for temporary files, gone with it: a service may have no other folder that
    it may write to, and what a killed child leaves there is found. None: those of this process.
    """

    def __init__(
        self,
        command: Sequence[str] = COMMAND,
        recycle_after: int = RECYCLE_AFTER,
        scratch: Path | None = None,
        turn: threading.Lock | None = None,
    ) -> None:
        """`turn` is held while the child's network computes; readers that share one compute one after another."""
        self._command, self._recycle_after = tuple(command), recycle_after
        self._temporary = scratch / f"reader-{os.getpid()}-{uuid.uuid4().hex[:8]}" if scratch else None
        self._turn = turn or threading.Lock()
        self._child: Child | None = None
        self._lock = threading.Lock()
        # The leash follows the thread that starts the child; this one lives as long as the Reader.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="reader-starter")

    @property
    def pid(self) -> int | None:
        """The child's process id, or None before the first reading and after a death."""
        return self._child.process.pid if self._child else None

    def read(self, request: Request, timeout: float, should_stop: Callable[[], bool] = lambda: False) -> Outcome:
        """Return what the pipeline made of `request`; never raises for anything that the child does.

        The child is killed `timeout` seconds from now, its start included and the wait for its turn not, or soon after
        `should_stop` says so.
        """
        with self._lock:
            deadline = time.monotonic() + timeout
            child = self._ready()
            try:
                conversation = Conversation(child, self._turn, deadline, should_stop)
                outcome = _parse(conversation.about(request.to_json().encode() + b"\n"))
            except Overdue:
                self._discard()
                return _failed(f"The reading took longer than worker.job_timeout ({timeout:g} s) and was ended.")
            except Stopped:
                self._discard()
                return _failed("The reading was ended because the worker stops or has lost the job.")
            except (Died, OSError):
                return self._died(child)
            except (ValueError, TypeError, KeyError):
                self._discard()
                return _failed("The reader answered with something that is no outcome.", transient=False)
            self._count(child)
            for text in outcome.warnings[:_MAX_WARNINGS]:
                where = {"action": "reader_warning", "job_id": request.job_id, "bundle": Path(request.bundle).name}
                log.warning("While a series was read: %s", safe(text, _MAX_WARNING), extra=where)
            return outcome

    def stop(self) -> None:
        """End the child; the next reading would start another."""
        with self._lock:
            self._discard()

    def _ready(self) -> Child:
        if self._child and self._child.process.poll() is not None:
            self._discard()
        self._make_temporary()
        if self._child is None:
            self._child = self._starter.submit(_start, self._command, self._temporary).result()
        return self._child

    def _make_temporary(self) -> None:
        """Have the folder, with a new time: what is old there is taken for a dead worker's."""
        if self._temporary is not None:
            self._temporary.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.utime(self._temporary)

    def _count(self, child: Child) -> None:
        child.readings += 1
        if child.readings >= self._recycle_after:
            self._discard()

    def _discard(self) -> bytes:
        child, self._child = self._child, None
        said = _kill(child) if child else b""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        return said

    def _died(self, child: Child) -> Outcome:
        """Say how the child ended: by a signal, as a crashing decoder does, or by itself."""
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(1.0)  # it closed its pipe and is about to end
        status = child.process.poll()
        trace = self._discard()
        where = trace.decode(errors="replace").strip().replace("\n", " | ")
        log.error("The reader ended with status %s: %s", status, where, extra={"action": "reader_died"})
        if status is None:
            return _failed("The reader closed its pipe and was ended.")
        if status >= 0:
            return _failed(f"The reader ended by itself with exit status {status}.")
        if -status in (signal.SIGKILL, signal.SIGTERM):
            return _failed(f"The reader was killed, signal {-status}; the machine may be out of memory.")
        # The same bytes would crash it again: a person looks before it is tried once more.
        return _failed(f"decoder or network crashed, signal {-status}", transient=False)


class Readers:
    """Several readers of one device: while the network of one computes, the others load, prepare, bring back, report.

    Each has a child of its own, so that what ends one reading ends no other; the memory is that of as many children.
    """

    def __init__(self, count: int, command: Sequence[str] = COMMAND, scratch: Path | None = None) -> None:
        turn = threading.Lock()
        self._all = tuple(Reader(command, scratch=scratch, turn=turn) for _ in range(count))
        self._idle: LifoQueue[Reader] = LifoQueue()  # the last one that read has its networks warm
        for reader in self._all:
            self._idle.put(reader)

    def read(self, request: Request, timeout: float, should_stop: Callable[[], bool] = lambda: False) -> Outcome:
        """As `Reader.read`, by one that is idle; where none is, the next that is."""
        reader = self._idle.get()
        try:
            return reader.read(request, timeout, should_stop)
        finally:
            self._idle.put(reader)

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the children that are there."""
        return tuple(reader.pid for reader in self._all if reader.pid is not None)

    def stop(self) -> None:
        """End all children; the next reading would start another."""
        for reader in self._all:
            reader.stop()


def serve(answers: int, read: Callable[[Request, Turn], Outcome]) -> None:
    """Be the child: answer each request line on standard input with one outcome line on `answers`, until the end.

    `read` gets what to enter while its network computes, besides the request.
    """
    requests, heard = _go_quiet(), _Heard()
    with os.fdopen(requests, "rb") as lines:
        turn = turns(lines, answers)
        for line in lines:
            outcome = replace(_guarded(read, line, turn), warnings=heard.taken())
            reach("read.before_answer")
            write_all(answers, outcome.to_json().encode() + b"\n")


class _Heard(logging.Handler):
    """Keeps what our own code warns of; what other packages say may quote what they read, and is not listened to."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: list[str] = []
        for package in OUR_PACKAGES:
            logging.getLogger(package).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message; never what was raised with it."""
        if len(self._texts) < _MAX_WARNINGS:
            self._texts.append(safe(record.getMessage(), _MAX_WARNING))

    def taken(self) -> tuple[str, ...]:
        """Return what was heard since the last time."""
        heard, self._texts = tuple(self._texts), []
        return heard


def _guarded(read: Callable[[Request, Turn], Outcome], line: bytes, turn: Turn) -> Outcome:
    """Run one reading; nothing that it raises ends the child (decoders raise BaseException, models call exit)."""
    try:
        return read(Request.from_json(line.decode()), turn)
    except MemoryError:
        return _failed("The reading needs more memory than there is.")
    except BaseException as error:  # the border between the pipeline and its supervisor
        # Type and place only: a message may quote what the file holds.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        return _failed(f"The reading failed: {type(error).__name__} at {place}.", transient=False)


def _start(command: Sequence[str], temporary: Path | None) -> Child:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))}
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            leashed([*command, str(write_end)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(write_end,),
            start_new_session=True,  # the whole group is killed at once, and Ctrl-C is not for the child
            env=env | ({"TMPDIR": str(temporary)} if temporary else {}),
        )
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    assert process.stdin is not None  # noqa: S101 - asked for above
    os.set_blocking(process.stdin.fileno(), False)
    return Child(process, process.stdin.fileno(), read_end)


def _parse(answer: bytes) -> Outcome:
    outcome = Outcome.from_json(answer.decode())
    if outcome.kind not in ("reported", "unsuitable", "failed"):
        raise ValueError(outcome.kind)
    return outcome


def _kill(child: Child) -> bytes:
    """End the child with all that it started; return what it said about its crash."""
    with suppress(ProcessLookupError, PermissionError):  # gone already; macOS says the latter of a zombie
        os.killpg(child.process.pid, signal.SIGKILL)
    child.process.wait()
    os.close(child.answers)
    with child.process.stdin, child.process.stderr as crash:  # type: ignore[union-attr]
        os.set_blocking(crash.fileno(), False)
        return crash.read(_MAX_TRACE) or b""


def _go_quiet() -> int:
    """Point descriptors 0 to 2 at nothing, but keep requests and the crash report; return where requests come from."""
    with suppress(OSError):  # no such file on macOS
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    requests, crash = os.dup(0), os.dup(2)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    faulthandler.enable(file=crash, all_threads=False)
    return requests


def _failed(reason: str, transient: bool = True) -> Outcome:
    return Outcome(kind="failed", reason=reason, transient=transient, summary="", documents=())


def _main() -> None:
    from workers import pipeline  # torch comes with the first reading, in the child only

    serve(int(sys.argv[1]), pipeline.read)


if __name__ == "__main__":
    _main()
