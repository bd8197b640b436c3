"""Where memory runs out, a sliding window takes smaller steps instead of failing; the answer stays the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from monai.inferers.inferer import SlidingWindowInferer

log = logging.getLogger(__name__)
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What PyTorch's own allocator on the CPU, and the libraries of a GPU, say in a plain RuntimeError."""


def stepping_down(inferer: Any, infer: Callable[[], Any], title: str) -> Any:
    """Return what `infer` gives, after smaller batches of windows or stitching on the CPU where memory runs out.

    What was stepped down stays so for the next series. Raises what `infer` raised where no smaller step is left.
    """
    steps = _smaller_steps(inferer)
    while True:
        try:
            return infer()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            step = next(steps, None) if _is_out_of_memory(error) else None
            if step is None:
                raise
            log.warning("%s ran out of memory; it goes on with %s.", title, step, extra={"action": "step_down"})
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _smaller_steps(inferer: Any) -> Iterator[str]:
    """Make `inferer` need less, one step at a time, and say how."""
    if not isinstance(inferer, SlidingWindowInferer):
        return
    while inferer.sw_batch_size > 1:
        inferer.sw_batch_size //= 2
        yield f"{inferer.sw_batch_size} windows at a time"
    if torch.cuda.is_available() and str(inferer.device) != "cpu":
        inferer.device = torch.device("cpu")
        yield "stitching on the CPU"


def _is_out_of_memory(error: BaseException) -> bool:
    """Also where MONAI says so in other words, and PyTorch's own are the cause."""
    is_said = any(words in str(error) for words in _WORDS)
    is_caused = error.__cause__ is not None and _is_out_of_memory(error.__cause__)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or is_said or is_caused
