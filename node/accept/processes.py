"""Listener processes: the node accepts and hands each connection over to the one with the least to do.

One that dies is replaced, and what it had acknowledged is recovered; the others go on. One that falls silent is killed,
and then is as any other that died. `roll` replaces each by a new one, which must be ready before the old one gets no
more; that one ends when its last association has. Nothing here waits for a process to read what it is told.
"""

from __future__ import annotations

import base64
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from node import clock
from node.accept.association import AssociationRequest, Identity
from node.accept.channel import in_memory
from node.accept.places import Places
from node.accept.process import READY_S, Process
from node.accept.registrar import Release
from node.accept.serving import Charge
from node.errors import WetreadError
from node.log import describe
from node.metrics import Registry

logger = logging.getLogger(__name__)

LONGEST_PAUSE_S = 30.0
"""Between two attempts to start a process that dies at once, or to recover what a dead one left."""
_SOUND_S = 10.0
"""A process that lived so long was sound."""


class Processes:
    """`count` listener processes, as long as the node wants them."""

    def __init__(
        self,
        count: int,
        charge: Charge,
        places: Places,
        metrics: Registry,
        ended: Callable[[Release], None],
        lost: Callable[[], object],
    ) -> None:
        self._charge, self._places, self._metrics, self._ended, self._lost = charge, places, metrics, ended, lost
        self._processes: list[Process] = []
        self._threads: list[threading.Thread] = []
        self._failures = 0
        self._lock, self._rolling = threading.RLock(), threading.Lock()
        self._stopping = threading.Event()
        for _ in range(count):
            self._start()
        threading.Thread(target=self._watch, name="listener-watch", daemon=True).start()

    def charge(self, charge: Charge) -> None:
        """Tell processes that start from now on something else."""
        self._charge = charge

    @property
    def waiting(self) -> int:
        """Instances that are acknowledged but not in the index yet."""
        with self._lock:
            return sum(process.waiting for process in self._processes)

    @property
    def pids(self) -> list[int]:
        """The processes that take connections, by their ids."""
        with self._lock:
            return [process.process.pid for process in self._processes if process.takes]

    def wait_until_ready(self, count: int, timeout_s: float = READY_S) -> bool:
        """Wait until `count` processes take connections; False when time ran out."""
        until = time.monotonic() + timeout_s
        while len(self.pids) < count and time.monotonic() < until and not self._stopping.is_set():
            time.sleep(0.02)
        return len(self.pids) >= count

    def hand_over(self, number: int, connection: socket.socket, address: str, first: bytes) -> bool:
        """Give an association away, whose request is `first`; False when no process takes it."""
        descriptor = in_memory(first)
        try:
            with self._lock:
                for process in sorted((p for p in self._processes if p.takes), key=Process.load):
                    said = {"serve": number, "address": address}
                    with suppress(OSError):  # it has just died, or is stuck
                        process.channel.send(said, [connection.fileno(), descriptor], wait=False)
                        process.serving.add(number)
                        connection.close()
                        return True
            return False
        finally:
            os.close(descriptor)

    def roll(self) -> None:
        """Replace every process by a new one; associations in hand go on in the old ones until they end."""
        with self._rolling:
            with self._lock:
                old = [process for process in self._processes if not process.is_leaving]
            for process in old:
                if not self._start().ready.wait(READY_S):
                    logger.error("No new listener process became ready.", extra={"action": "listener_not_rolled"})
                    return
                self._tell(process, {"leave": True})
            extra = {"action": "listener_rolled", "count": len(old)}
            logger.info("New listener processes take over; the old ones end with their associations.", extra=extra)

    def stop(self, timeout_s: float) -> None:
        """End all of them: what is being received is answered, the index brought up to date."""
        self._stopping.set()
        with self._lock:
            processes, threads = list(self._processes), list(self._threads)
        for process in processes:
            self._tell(process, {"stop": timeout_s})
        heard, until = time.monotonic() + timeout_s, time.monotonic() + 3 * timeout_s + 5
        for process in processes:
            try:
                if not process.ending.wait(max(heard - time.monotonic(), 0)):
                    process.kill("it does not hear that it shall end")
                process.process.wait(max(until - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.process.kill()
        for thread in threads:
            thread.join(timeout_s)

    def _tell(self, process: Process, said: dict[str, Any]) -> None:
        with self._lock, suppress(OSError):  # gone already
            process.is_leaving = True
            try:
                process.channel.send(said, wait=False)
            except BlockingIOError:
                process.kill("it reads nothing")

    def _watch(self) -> None:
        """Find what is stuck; looks are counted, not seconds, so that nobody dies of a pause of the whole host."""
        while not self._stopping.wait(1.0):
            with self._lock:
                processes = list(self._processes)
            for process in processes:
                process.silent += 1
                if process.silent > process.patience_s and not process.is_stuck:
                    process.kill(f"nothing was heard of it for {process.patience_s} s")

    def _start(self) -> Process:
        process = Process(self._charge)
        thread = threading.Thread(target=self._listen, args=(process,), name="listener-process", daemon=True)
        with self._lock:
            self._processes.append(process)
            self._threads = [t for t in self._threads if t.is_alive()] + [thread]
            thread.start()
        return process

    def _listen(self, process: Process) -> None:
        """Hear one process out, and clear up behind it."""
        while (message := process.channel.receive()) is not None:
            process.silent = 0
            try:
                self._hear(process, message.said)
            except Exception as error:  # a border: the other associations of this process must go on
                logger.error("A listener process was not understood.", extra=_failed(error))
        process.ending.set()
        status = process.process.wait()
        process.channel.close()
        with self._lock:
            self._processes.remove(process)
        for number in process.serving | process.bringing:
            self._places.leave(number)
            self._places.ended(number, is_released=False)
        recovering = threading.Thread(target=self._recover, name="listener-recovery", daemon=True)
        if status:
            recovering.start()  # by itself: neither waits for the other's pause
        if not process.is_leaving:
            self._replace(process, status)
        if status:
            recovering.join()

    def _hear(self, process: Process, said: Any) -> None:
        if "enter" in said:
            rejection = self._places.enter(said["enter"], _decoded(said["request"]))
            answer = {"entered": said["enter"], "rejection": asdict(rejection) if rejection else None}
            process.channel.send(answer)
        elif "left" in said:
            self._places.leave(said["left"])
            with self._lock:
                process.serving.discard(said["left"])
        elif "brings" in said:
            process.bringing.add(said["brings"])
            self._places.brings(said["brings"], said["study"])
        elif "ended" in said:
            process.bringing.discard(said["ended"])
            self._ended(Release(said["ended"], said["is_released"], said["at"]))
        elif "counts" in said:
            self._count(process, said)
        elif "ending" in said:
            process.ending.set()
        elif "ready" in said:
            process.ready.set()
            extra = {"action": "listener_process_ready", "worker": str(process.process.pid)}
            logger.info("A listener process is ready.", extra=extra)

    def _count(self, process: Process, said: Any) -> None:
        """Add what a process has counted since it said so last."""
        process.waiting = said["waiting"]
        metrics = self._metrics.counters()
        for name, counted in said["counts"].items():
            for labels, value in counted:
                key = (name, tuple(labels))
                metrics[name].grow(key[1], value - process.counts.get(key, 0.0))
                process.counts[key] = value

    def _replace(self, process: Process, status: int) -> None:
        why = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        extra = {"action": "listener_process_ended", "reason": why, "worker": str(process.process.pid)}
        extra |= {"count": str(len(process.serving))}
        logger.error("A listener process ended with its associations; another takes its place.", extra=extra)
        is_sound = process.ready.is_set() and time.monotonic() - process.started > _SOUND_S
        self._failures = 0 if is_sound else self._failures + 1
        while not self._stopping.wait(self._pause_s()):
            try:
                self._start()
                return
            except OSError as error:
                self._failures += 1
                logger.error("A listener process cannot be started; it is tried again.", extra=_failed(error))

    def _pause_s(self) -> float:
        """How long to wait before the next start: not at all after the first failure, then longer and longer."""
        return clock.pause(1.0, self._failures - 1, LONGEST_PAUSE_S) if self._failures > 1 else 0.0

    def _recover(self) -> None:
        """Lay out and register what a dead process had acknowledged; tried again until it works."""
        pause_s = 1.0
        while True:
            try:
                self._lost()
                return
            except (WetreadError, OSError) as error:
                logger.warning("What a listener process left is not recovered yet.", extra=_failed(error))
            if self._stopping.wait(pause_s):  # the next start recovers it
                return
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _failed(error: Exception) -> dict[str, object]:
    return {"action": "listener_process_failed", "error": describe(error)}


def _decoded(said: Any) -> AssociationRequest:
    identity = said.pop("identity")
    if identity is not None:
        passcode = identity["passcode"]
        identity = Identity(identity["user"], None if passcode is None else base64.b64decode(passcode))
    return AssociationRequest(**said, identity=identity)
