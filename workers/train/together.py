"""Several processes that train one network together, one on each GPU: torchrun on this machine.

Each process is `python -m workers.train.together REQUEST`; the first of them says how far all are. torchrun gives each
a session of its own, so that ending ours would leave them: each ends with torchrun, and torchrun with this process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from node import bundles
from node.errors import Permanent, WetreadError
from node.leash import leash_forks, leash_this, leashed
from workers.imports import uncollected
from workers.train.request import Request

Tell = Callable[[dict[str, Any]], None]


def launch(request: Request, tell: Tell) -> None:
    """Run `request.processes` processes until all have ended; raises `Permanent` with what the first of them said."""
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += [str(request.processes), "-m", "workers.train.together", request.to_json()]
    with subprocess.Popen(leashed(command), stdout=subprocess.PIPE, env=_environment(request.processes)) as process:
        assert process.stdout is not None  # noqa: S101 - asked for above
        failed = _listen(process.stdout, tell)
    if failed or process.returncode:
        told = failed or f"one of {request.processes} processes ended with {process.returncode}"
        raise Permanent(f"The training failed: {told}. {Path(request.out) / 'training.log'} says more.")


def _listen(lines: Any, tell: Tell) -> str:
    failed = ""
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError:  # what a library printed
            continue
        failed = message.get("failed", failed)
        if "done" in message:
            tell(message)
    return str(failed)


def _environment(processes: int) -> dict[str, str]:
    """The processes meet on the loopback interface, share the processors, and import nothing from where they run."""
    threads = max(1, (os.cpu_count() or 1) // 2 // processes)
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return {"OMP_NUM_THREADS": str(threads)} | loopback | os.environ | {"PYTHONSAFEPATH": "1"}


def main() -> None:
    """Train as one of several; torchrun has set RANK, and told where the others are."""
    leash_this()
    leash_forks()
    with uncollected():
        from workers.train.run import run

    request = Request.from_json(sys.argv[1])
    is_first = os.environ.get("RANK", "0") == "0"

    def tell(message: dict[str, Any]) -> None:
        if is_first:
            print(json.dumps(message), flush=True)

    try:
        run(request, bundles.load(Path(request.bundle)), Path(request.out), tell)
    except WetreadError as error:
        tell({"failed": str(error)})
        sys.exit(1)


if __name__ == "__main__":
    main()
