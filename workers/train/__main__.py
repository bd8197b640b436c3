"""The child of `wetread train`: one request line on standard input, JSON lines of progress and the end on output."""

from __future__ import annotations

from pathlib import Path

from node import bundles
from workers.child import Tell, answer
from workers.train import datalist
from workers.train.request import Request


def work(line: str, tell: Tell) -> None:
    """Train as `line` asks; wrong lists are told before torch is there."""
    request = Request.from_json(line)
    bundle = bundles.load(Path(request.bundle))
    lists = datalist.load(Path(request.data), bundle)
    from workers.train.run import train

    train(request, bundle, lists, tell)


if __name__ == "__main__":
    answer(work)
