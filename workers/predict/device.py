"""Where a network runs, on how many threads, and that it says the same each time."""

from __future__ import annotations

import os

import torch

from node.errors import Permanent


def choose(name: str) -> torch.device:
    """Return the device for `worker.device`: `"auto"` is CUDA where there is one, else the CPU.

    Raises `Permanent` for a device that this machine does not have. Settles threads and determinism for the process.
    """
    _settle()
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise Permanent(f'worker.device is "{name}"; "auto", "cpu", "cuda" or "cuda:1" was expected.') from None
    if device.type == "cuda" and (not has_cuda or (device.index or 0) >= torch.cuda.device_count()):
        raise Permanent(f'worker.device is "{name}", but this machine has {torch.cuda.device_count()} CUDA devices.')
    return device


def _settle() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid that costs a pass over every new tensor; the attribute is there at run time only.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // 2))


def cores() -> int:
    """Return the logical processors this process may use.

    Half of them get a thread each: two share one core's arithmetic, and a thread that must wait for a core the node
    is using holds up all others at every barrier. Measured beside a busy process on 4: 0.07 s with 2 threads, 1.5 s
    with 4.
    """
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
