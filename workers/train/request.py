"""What is asked of a training; travels to the child as one line of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """`bundle`: the folder to train from; `data`: images with a manifest or lists; `out`: the folder of the new bundle.

    `epochs`: None is what train.json says. `fine_tune`: begin with the weights of `bundle`, not with random ones.
    `overrides`: other values for ids of train.json, as `monai.bundle run --ID VALUE` takes them. `processes`: more than
    one train together, one on each GPU, by multi_gpu_train.json.
    """

    bundle: str
    digest: str
    data: str
    out: str
    started: float
    epochs: int | None = None
    fine_tune: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)
    processes: int = 1

    def to_json(self) -> str:
        """Return the request as one line of JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(line: str) -> Request:
        """Return the request in `line`; raises ValueError or TypeError where it is none."""
        return Request(**json.loads(line))
