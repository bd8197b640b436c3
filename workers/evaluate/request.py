"""What is asked of an evaluation; travels to the child as one line of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

RESAMPLES = 1000


@dataclass(frozen=True)
class Request:
    """`bundle`: its folder; `digest`: what it must be; `manifest`, `out`: paths; `started`: seconds since the epoch."""

    bundle: str
    digest: str
    manifest: str
    out: str
    device: str
    started: float
    resamples: int = RESAMPLES
    runtime: Literal["auto", "torch", "openvino"] = "torch"

    def to_json(self) -> str:
        """Return the request as one line of JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(line: str) -> Request:
        """Return the request in `line`; raises ValueError or TypeError where it is none."""
        return Request(**json.loads(line))
