"""A worker beside the node, on the same machine: `serve --with-worker` and the demo start one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

from node.leash import leashed

_ROOT = Path(__file__).resolve().parent.parent


class Worker:
    """`wetread worker` as a child of this process; it ends when this process ends, however that happens."""

    def __init__(self, config: Path, output: IO[bytes] | None = None) -> None:
        command = [sys.executable, "-P", "-m", "node.cli", "worker", "--config", str(config)]
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            leashed(command, signal.SIGTERM),
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the node, which then stops the worker
        )

    def is_running(self) -> bool:
        """Say whether the worker still runs."""
        return self._process.poll() is None

    def stop(self, within_s: float = 25.0) -> None:
        """Let it end what it has in hand, then kill it."""
        self._process.terminate()
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
