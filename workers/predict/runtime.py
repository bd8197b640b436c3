"""What computes a network on a CPU: PyTorch, or OpenVINO in float32 where it is installed and gives the same answer.

A network is converted once, when it first reads, with what OpenVINO adds up too coarsely put otherwise (`norms.py`),
and checked against PyTorch on noise of two sizes; whatever fails there is said in the log, and PyTorch goes on.
Nothing is sent anywhere: the converter that reports its use is not called.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from node.errors import Permanent
from workers.predict import norms

log = logging.getLogger(__name__)

Runtime = Literal["auto", "torch", "openvino"]
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
SAME_WITHIN = 1e-4
"""By how much answers to noise may differ, as a part of the largest: float32 sums in another order."""


class Runner:
    """A network as inferers call it: one tensor in, what the network says out."""

    def __init__(self, network: torch.nn.Module, device: torch.device, runtime: Runtime, title: str) -> None:
        """Choose the runtime; raises `Permanent` where OpenVINO is asked for and not installed."""
        is_there = find_spec("openvino") is not None
        if runtime == "openvino" and not is_there:
            raise Permanent(
                'worker.runtime is "openvino", which is not installed: pip install "wetread[openvino]", or set "auto".'
            )
        self._network, self._title = network, title
        self._is_wanted = runtime != "torch" and is_there and device.type == "cpu"
        self._run: Run | None = None
        self.name = "torch"

    def __call__(self, image: torch.Tensor, *more: Any, **named: Any) -> Any:
        """Return what the network makes of `image` (batch, channel, …)."""
        if self._is_wanted:
            self._is_wanted = False
            self._convert(image)
        if self._run is None or more or named:
            return self._network(image, *more, **named)
        return torch.from_numpy(self._run(np.ascontiguousarray(image.numpy())))

    def __getattr__(self, name: str) -> Any:
        """Whatever else an inferer asks of a network."""
        return getattr(self._network, name)

    def _convert(self, image: torch.Tensor) -> None:
        try:
            with torch.inference_mode(False), torch.no_grad():  # a trace needs ordinary tensors
                self._run = _checked(self._network, tuple(image.shape))
            self.name = "openvino"
        except Exception as error:  # whatever a foreign converter raises, the network itself is sound
            told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            log.warning("%s runs in PyTorch, not in OpenVINO: %s", self._title, told, extra={"action": "runtime"})


def _checked(network: torch.nn.Module, shape: tuple[int, ...]) -> Run:
    """Return `network` in OpenVINO; raises ValueError where it answers otherwise than in PyTorch."""
    example = _noise(shape)
    run = _converted(norms.exact(network), example)
    for noise in (example, _noise(_smaller(network, shape))):
        expected = network(noise)
        if not isinstance(expected, torch.Tensor):
            raise ValueError(f"the network answers with a {type(expected).__name__}")
        found, largest = run(noise.numpy()), float(expected.abs().max())
        apart = float(np.abs(found - expected.numpy()).max()) if found.shape == tuple(expected.shape) else np.inf
        if not apart <= SAME_WITHIN * largest:
            raise ValueError(f"on noise of {tuple(noise.shape)} the answers are {apart:.2g} apart, of {largest:.2g}")
    return run


def _converted(network: torch.nn.Module, example: torch.Tensor) -> Run:
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a trace: where it does not hold for another input, the check finds out
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
    front = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced, example_input=(example,))  # must outlive the conversion
    model = front.convert(front.load(decoder))
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
        answer = request.infer([image], share_inputs=True, share_outputs=True)[0]
        return np.array(answer, np.float32)  # the next call writes to the memory of this one

    return run


def _noise(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _smaller(network: torch.nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape of half the size that `network` takes, so that a trace which holds for one size only is found out.

    A network that takes one size only is asked again with two images at a time.
    """
    half = (*shape[:2], *(max(size // 2, 1) for size in shape[2:]))
    try:
        network(_noise(half))
    except Exception:  # what a network raises on a size that it was not made for
        return (shape[0] + 1, *shape[1:])
    return half
