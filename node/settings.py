"""The two configuration files as frozen models: `wetread.toml` (what the node is) and `routes.toml` (what it does).

Durations and sizes are strings with units. Unknown keys are refused. Loading a file, with line numbers in the
errors, is `load_settings` and `load_routes`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from node.bundles import Condition

_DURATION = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_duration(value: Any) -> float:
    """Return the seconds in `"60 s"`, `"15 min"`, `"72 h"`, `"30 d"`; anything else is a ValueError."""
    return _parse_quantity(value, _DURATION, 'a duration such as "60 s", "15 min" or "72 h"')


def parse_size(value: Any) -> int:
    """Return the bytes in `"500 MB"`, `"10 GB"`, `"2 GiB"`; anything else is a ValueError."""
    return int(_parse_quantity(value, _SIZE, 'a size such as "500 MB" or "10 GB"'))


def _parse_quantity(value: Any, units: dict[str, Any], expected: str) -> float:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", value)
        if match and match[2] in units:
            return float(match[1]) * float(units[match[2]])
    raise ValueError(f"{value!r} is not {expected}")


def _ae_title(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("an AE Title of 1 to 16 characters was expected (PS3.5 §6.2)")
    if len(value.strip()) > 16:
        raise ValueError(f'"{value}" has {len(value.strip())} characters; an AE Title has at most 16 (PS3.5 §6.2)')
    if "\\" in value or not value.isascii() or not value.isprintable():
        raise ValueError(f'"{value}" has a character that an AE Title may not have (PS3.5 §6.2)')
    return value.strip()


Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
AETitle = Annotated[str, BeforeValidator(_ae_title)]
Port = Annotated[int, Field(ge=0, le=65535)]
ResultKind = Literal["SR", "SEG", "SC"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeSettings(_Section):
    """`[node]`: our AE."""

    ae_title: AETitle = "WETREAD"
    bind: str = "127.0.0.1"
    port: Port = 11112


class Peer(_Section):
    """`[[peer]]`: an AE allowed to send to us, from one address or network (CIDR)."""

    name: str
    ae_title: AETitle
    address: str


class Destination(_Section):
    """`[destination.NAME]`: an AE that receives results."""

    kind: Literal["dimse"] = "dimse"
    host: str
    port: Annotated[int, Field(ge=1, le=65535)]
    ae_title: AETitle
    commitment: bool = False
    retry: Duration = 72 * 3600.0
    """How long a delivery is tried again before it is DEAD."""


class Completeness(_Section):
    """`[completeness]`: when a study is taken as complete."""

    quiet_period: Duration = 60.0
    max_wait: Duration = 3600.0
    late_instances: Literal["reread", "ignore"] = "reread"


class SpoolSettings(_Section):
    """`[spool]`: where bytes live and how long."""

    url: Path = Path("state/spool")
    keep_images: Duration = 7 * 86400.0
    keep_results: Duration = 30 * 86400.0
    refuse_below: Size = 2 * 10**9


class DatabaseSettings(_Section):
    """`[database]`: SQLAlchemy URL; SQLite beside the spool by default."""

    url: str = "sqlite:///state/wetread.db"


class BrokerSettings(_Section):
    """`[broker]`: a Redis or Valkey URL, or `"embedded"`."""

    url: str = "embedded"


class WorkerSettings(_Section):
    """`[worker]`: how jobs run."""

    models: Path | None = None
    device: str = "auto"
    job_timeout: Duration = 900.0
    max_attempts: int = Field(default=3, ge=1, le=20)


class WebSettings(_Section):
    """`[web]`: the status pages; other than loopback needs a token file."""

    bind: str = "127.0.0.1"
    port: Port = 8080
    token_file: Path | None = None


class LogSettings(_Section):
    """`[log]`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Settings(_Section):
    """`wetread.toml`."""

    node: NodeSettings = NodeSettings()
    peer: tuple[Peer, ...] = ()
    destination: dict[str, Destination] = {}
    completeness: Completeness = Completeness()
    spool: SpoolSettings = SpoolSettings()
    database: DatabaseSettings = DatabaseSettings()
    broker: BrokerSettings = BrokerSettings()
    worker: WorkerSettings = WorkerSettings()
    web: WebSettings = WebSettings()
    log: LogSettings = LogSettings()


class Route(_Section):
    """One `[[route]]`: in studies matching `when`, series matching `series` are read by `models`, for `send_to`."""

    name: str
    when: dict[str, Condition] = {}
    series: dict[str, Condition] = {}
    models: tuple[str, ...]
    send_to: tuple[str, ...]
    results: tuple[ResultKind, ...] = ("SR", "SEG", "SC")


class Routes(_Section):
    """`routes.toml`."""

    route: tuple[Route, ...] = ()
