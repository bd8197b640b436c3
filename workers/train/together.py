"""Several processes that train one network together, one on each GPU: torchrun on this machine.

Each process is `python -m workers.train.together REQUEST`; the first of them says how far all are. torchrun gives each
a session of its own, so that ending ours would leave them: each ends with torchrun, and torchrun with this process.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from node import bundles
from node.errors import Permanent, WetreadError, first_cause
from node.leash import leash_forks, leash_this, leashed
from workers.imports import uncollected
from workers.train.request import Request

Tell = Callable[[dict[str, Any]], None]
LOG = "training.log"


def launch(request: Request, tell: Tell) -> None:
    """Run `request.processes` processes until all have ended; raises `Permanent` with what the first to fail said.

    What they print on standard error, such as a traceback, is added to the log of the training.
    """
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += [str(request.processes), "-m", "workers.train.together", request.to_json()]
    path = Path(request.out) / LOG
    path.touch()
    before = path.stat().st_size
    with (
        path.open("ab") as log,
        subprocess.Popen(
            leashed(command), stdout=subprocess.PIPE, stderr=log, env=_environment(request.processes)
        ) as process,
    ):
        assert process.stdout is not None  # noqa: S101 - asked for above
        failed = _listen(process.stdout, tell)
    if failed or process.returncode:
        killed = _killed(path.read_bytes()[before:].decode(errors="replace"))  # the others told of a lost connection
        told = killed or failed or f"The training failed: torchrun ended with exit status {process.returncode}."
        raise Permanent(told if str(path) in told else f"{told} {path} says more.")


def _listen(lines: Any, tell: Tell) -> str:
    """Hand on how far all are; return what the first that failed said, as the others only miss it then."""
    failed = ""
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError:  # what a library printed
            continue
        failed = failed or message.get("failed", "")
        if "done" in message:
            tell(message)
    return str(failed)


def _killed(said: str) -> str:
    """Return which signal ended a process, which cannot say it, by what torchrun `said`; SIGTERM is its own."""
    signals = [int(number) for number in re.findall(r"exitcode\s*: -(\d+)", said) if int(number) != signal.SIGTERM]
    if not signals:
        return ""
    more = "; the machine may be out of memory" if signals[0] == signal.SIGKILL else ""
    return f"The training failed: one of the processes was killed by signal {signals[0]}{more}."


def _environment(processes: int) -> dict[str, str]:
    """The processes meet on the loopback interface, share the processors, and import nothing from where they run."""
    threads = max(1, (os.cpu_count() or 1) // 2 // processes)
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return {"OMP_NUM_THREADS": str(threads)} | loopback | os.environ | {"PYTHONSAFEPATH": "1"}


def main() -> None:
    """Train as one of several; torchrun has set RANK, and told where the others are. Whichever fails says why."""
    leash_this()
    leash_forks()

    def tell(message: dict[str, Any]) -> None:
        if os.environ.get("RANK", "0") == "0" or "failed" in message:
            print(json.dumps(message), flush=True)

    try:
        with uncollected():
            from workers.train.run import run

        request = Request.from_json(sys.argv[1])
        run(request, bundles.load(Path(request.bundle)), Path(request.out), tell)
    except WetreadError as error:
        tell({"failed": str(error)})
        raise
    except BaseException as error:  # the border of the process; its traceback goes to the log
        tell({"failed": f"The training failed in process {os.environ.get('RANK', '0')}: {first_cause(error)}."})
        raise


if __name__ == "__main__":
    main()
