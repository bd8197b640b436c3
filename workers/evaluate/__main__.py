"""The child of `wetread evaluate`: one request line on standard input, JSON lines of progress and the end on output."""

from __future__ import annotations

from pathlib import Path

from node import bundles
from workers.child import Tell, answer
from workers.evaluate import manifest
from workers.evaluate.request import Request
from workers.imports import uncollected


def work(line: str, tell: Tell) -> None:
    """Evaluate as `line` asks; a wrong manifest is told before torch is there, which takes seconds."""
    request = Request.from_json(line)
    bundle = bundles.load(Path(request.bundle))
    cases = manifest.load(Path(request.manifest), bundle)
    with uncollected():
        from workers.evaluate.run import evaluate

    evaluate(request, bundle, cases, tell)


if __name__ == "__main__":
    answer(work)
