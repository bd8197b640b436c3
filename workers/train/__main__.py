"""The child of `wetread train`: one request line on standard input, JSON lines of progress and the end on output."""

from __future__ import annotations

import os
from pathlib import Path

from node import bundles
from node.leash import leash_forks
from workers.child import Tell, answer
from workers.imports import uncollected
from workers.train import datalist
from workers.train.request import Request


def work(line: str, tell: Tell) -> None:
    """Train as `line` asks; wrong lists are told before torch is there."""
    leash_forks()  # what loads the images is forked by torch
    request = Request.from_json(line)
    bundle = bundles.load(Path(request.bundle))
    lists = datalist.load(Path(request.data), bundle)
    with uncollected():
        from workers.train.run import train

    _leave_room()
    train(request, bundle, lists, tell)


def _leave_room() -> None:
    """Compute on half of the processors: beside other work, more threads wait for each other at every barrier."""
    import torch

    from workers.predict.device import cores

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // 2))


if __name__ == "__main__":
    answer(work)
