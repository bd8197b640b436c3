"""One listener process as the node sees it: how it is started, what is known of it, and when it is taken for stuck."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from node.accept.channel import Channel
from node.accept.serving import Charge

logger = logging.getLogger(__name__)

READY_S = 60.0
SILENT_S = 20
"""Looks, one a second, after which a process that says nothing any more is taken for stuck."""
ENDING_S = 60
"""The same for one that brings index and files up to date."""
FEW_S = 3
"""So silent a process gets connections only when no other takes them."""
_ROOT = Path(__file__).resolve().parents[2]


class Process:
    """One listener process as the node sees it."""

    def __init__(self, charge: Charge) -> None:
        self.channel, theirs = Channel.pair()
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "node.accept.serving", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the node, which then stops it
            )
        self.started = time.monotonic()
        self.ready, self.ending = threading.Event(), threading.Event()
        self.is_leaving = self.is_stuck = False
        self.silent = 0
        self.serving: set[int] = set()
        self.bringing: set[int] = set()
        self.waiting = 0
        self.counts: dict[tuple[str, tuple[str, ...]], float] = {}
        with suppress(OSError):  # it is gone already, and is replaced
            self.channel.send(asdict(charge))

    @property
    def takes(self) -> bool:
        """Whether connections may be handed over to it."""
        return self.ready.is_set() and not (self.is_leaving or self.is_stuck)

    @property
    def patience_s(self) -> int:
        """How long it may be silent."""
        return ENDING_S if self.ending.is_set() else SILENT_S if self.ready.is_set() else int(READY_S)

    def load(self) -> tuple[bool, int]:
        """Return what makes others come before it: silence first, then the associations that it has."""
        return self.silent > FEW_S, len(self.serving)

    def kill(self, why: str) -> None:
        """End a process that does not answer; its channel then closes, and it is cleared up behind as a dead one."""
        self.is_stuck = True
        extra = {"action": "listener_process_stuck", "worker": str(self.process.pid), "reason": why}
        logger.error("A listener process does not answer and is killed.", extra=extra)
        self.process.kill()
