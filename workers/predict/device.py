"""Where a network runs, and that it says the same each time."""

from __future__ import annotations

import torch

from node.errors import Permanent


def choose(name: str) -> torch.device:
    """Return the device for `worker.device`: `"auto"` is CUDA where there is one, else the CPU.

    Raises `Permanent` for a device that this machine does not have. Turns on deterministic algorithms where the
    operation has one, for the whole process.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
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
