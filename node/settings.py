"""The two configuration files as frozen models: `wetread.toml` (what the node is) and `routes.toml` (what it does).

Durations and sizes are strings with units, unknown keys are refused, and relative paths mean the folder of the
file. Every error of `load_settings` and `load_routes` names the file, the line, the key and what was expected.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from node import bundles
from node.bundles import Condition
from node.configfile import Key, line_of, read_model, title
from node.errors import ConfigError

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


def _network(value: Any) -> str:
    try:
        return str(ipaddress.ip_network(value, strict=False)) if "/" in value else str(ipaddress.ip_address(value))
    except (ValueError, TypeError):
        raise ValueError(f'{value!r} is not an address such as "10.1.2.3" or a network such as "10.1.2.0/24"') from None


def _bind(value: Any) -> str:
    if value == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError(f'{value!r} is not an address to listen on, such as "127.0.0.1" or "0.0.0.0"') from None


def _device(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        return value
    raise ValueError(f'{value!r} is not "auto", "cpu", "cuda" or "cuda:0"')


Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
AETitle = Annotated[str, BeforeValidator(_ae_title)]
Bind = Annotated[str, BeforeValidator(_bind)]
Network = Annotated[str, BeforeValidator(_network)]
Device = Annotated[str, BeforeValidator(_device)]
Port = Annotated[int, Field(ge=0, le=65535)]
ResultKind = Literal["SR", "SEG", "SC"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeSettings(_Section):
    """`[node]`: our AE."""

    ae_title: AETitle = "WETREAD"
    bind: Bind = "127.0.0.1"
    port: Port = 11112


class Peer(_Section):
    """`[[peer]]`: an AE allowed to send to us, from one address or network (CIDR)."""

    name: str
    ae_title: AETitle
    address: Network


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
    trusted: Path = Path("trusted.toml")
    """The file of pins: which bundles may run."""
    device: Device = "auto"
    job_timeout: Duration = 900.0
    max_attempts: int = Field(default=3, ge=1, le=20)


class WebSettings(_Section):
    """`[web]`: the status pages; other than loopback needs a token file."""

    bind: Bind = "127.0.0.1"
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


_CHECKOUT = Path(__file__).resolve().parent.parent / "config"
SHIPPED = _CHECKOUT if _CHECKOUT.is_dir() else Path(sys.prefix) / "share" / "wetread" / "config"
"""The default configuration: beside the code in a checkout, under the prefix where installed."""


def find_config() -> Path:
    """Return `$WETREAD_CONFIG`, else `wetread.toml` here, else the machine's, else the one that ships with wetread."""
    if named := os.environ.get("WETREAD_CONFIG"):
        return Path(named)
    places = (Path("wetread.toml"), Path("/etc/wetread/wetread.toml"))
    return next((place for place in places if place.is_file()), SHIPPED / "wetread.toml")


def load_settings(path: Path) -> Settings:
    """Read `wetread.toml`. Raises `ConfigError`.

    Relative paths in it mean its folder; those of the shipped defaults mean the current folder, since a program's
    own folder is no place for state.
    """
    settings, lines = read_model(path, Settings)
    _refuse_duplicates(path, "peer", [peer.name for peer in settings.peer], lines)
    if not is_loopback(settings.node.bind) and not settings.peer:
        message = f"{settings.node.bind} is reachable from outside, so at least one [[peer]] must be named"
        raise ConfigError(path, line_of(("node", "bind"), lines), f"[node] bind: {message}")
    if not is_loopback(settings.web.bind) and settings.web.token_file is None:
        message = f"{settings.web.bind} is reachable from outside, so [web] token_file must name a file with the token"
        raise ConfigError(path, line_of(("web", "bind"), lines), f"[web] bind: {message}")
    folder = path.resolve().parent
    return _resolve(settings, Path.cwd() if folder == SHIPPED.resolve() else folder)


def load_routes(path: Path, settings: Settings) -> Routes:
    """Read `routes.toml`; every model must be installed and every destination configured. Raises `ConfigError`."""
    routes, lines = read_model(path, Routes)
    _refuse_duplicates(path, "route", [route.name for route in routes.route], lines)
    folders = (settings.worker.models,) if settings.worker.models else ()
    models = list(bundles.names(*folders))
    for index, route in enumerate(routes.route):
        _refuse_unknown(path, ("route", index, "models"), route, models, lines)
        _refuse_unknown(path, ("route", index, "send_to"), route, list(settings.destination), lines)
    return routes


def is_loopback(address: str) -> bool:
    """Say whether only this machine can reach `address`."""
    return ipaddress.ip_address(address).is_loopback


def state_folder(settings: Settings) -> Path:
    """Return the folder that holds what the node owns on this machine: the spool's parent."""
    return settings.spool.url.parent


def _refuse_duplicates(path: Path, table: str, names: list[str], lines: dict[Key, int]) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            first = line_of((table, names.index(name)), lines)
            line = line_of((table, index, "name"), lines)
            raise ConfigError(path, line, f'{table} "{name}": the name is taken by the {table} on line {first}')


def _refuse_unknown(path: Path, key: Key, route: Route, known: list[str], lines: dict[Key, int]) -> None:
    what = {"models": "Model Bundle", "send_to": "[destination]"}[str(key[-1])]
    for name in getattr(route, str(key[-1])):
        if name not in known:
            where = title(key, {"route": {key[1]: {"name": route.name}}})
            have = ", ".join(known) or "none"
            raise ConfigError(path, line_of(key, lines), f'{where}: there is no {what} "{name}"; there is {have}')


def _resolve(settings: Settings, base: Path) -> Settings:
    """Return `settings` with absolute paths."""

    def absolute(path: Path | None) -> Path | None:
        return None if path is None else base / path.expanduser()

    database = settings.database.url
    if database.startswith("sqlite:///") and not database.startswith("sqlite:////"):
        database = f"sqlite:///{base / database.removeprefix('sqlite:///')}"
    update = {
        "spool": settings.spool.model_copy(update={"url": absolute(settings.spool.url)}),
        "database": settings.database.model_copy(update={"url": database}),
        "worker": settings.worker.model_copy(
            update={"models": absolute(settings.worker.models), "trusted": absolute(settings.worker.trusted)}
        ),
        "web": settings.web.model_copy(update={"token_file": absolute(settings.web.token_file)}),
    }
    return settings.model_copy(update=update)
