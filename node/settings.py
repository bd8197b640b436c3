"""The two configuration files as frozen models: `wetread.toml` (what the node is) and `routes.toml` (what it does).

Durations and sizes are strings with units, unknown keys are refused, and relative paths mean the folder of the
file. Every error of `load_settings` and `load_routes` names the file, the line, the key and what was expected.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from node import bundles, settings_rules
from node.bundles import Condition
from node.configfile import Key, line_of, read_model, title
from node.configvalues import (
    AETitle,
    Bind,
    BrokerUrl,
    Check,
    Count,
    DatabaseUrl,
    Device,
    Duration,
    Flag,
    Folder,
    Host,
    Network,
    Port,
    ResultKind,
    Size,
    Text,
    Weight,
    sqlite_below,
)
from node.errors import ConfigError, Permanent


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeSettings(_Section):
    """`[node]`: our AE."""

    ae_title: AETitle = "WETREAD"
    bind: Bind = "127.0.0.1"
    port: Port = 11112
    state: Folder | None = None
    """What belongs to this host alone: locks, audit trail, embedded broker, scratch; None: the spool's parent."""
    max_associations: Count = 100
    """Open at once, all peers together."""
    max_associations_per_address: Count = 64
    listener_processes: Annotated[int, Field(ge=0, le=64, strict=True)] = 0
    """Processes that serve associations; with 0 the node's own process does."""


class TlsSettings(_Section):
    """`[tls]`: the listener's certificate; with `ca`, peers need one too."""

    certificate: Folder | None = None
    key: Folder | None = None
    ca: Folder | None = None


class Peer(_Section):
    """`[[peer]]`: an AE allowed to send to us, from one address or network (CIDR)."""

    name: Text
    ae_title: AETitle
    address: Network
    max_associations: Count = 32
    reserved: Annotated[int, Field(ge=0, le=64, strict=True)] = 2
    """Places among `[node] max_associations` that nobody else can take."""
    user: Text | None = None
    """The user name that it must say (PS3.7 §D.3.3.7)."""
    passcode_file: Folder | None = None


class Destination(_Section):
    """`[destination.NAME]`: an AE that receives results."""

    kind: Literal["dimse"] = "dimse"
    host: Host
    port: Annotated[int, Field(ge=1, le=65535, strict=True)]
    ae_title: AETitle
    commitment: Flag = False
    tls: Flag = False
    retry: Duration = 72 * 3600.0
    """How long a delivery is tried again before it is DEAD."""


class IngestSettings(_Section):
    """`[ingest]`: how an instance is judged before it is kept."""

    check: Check = "standard"


class Completeness(_Section):
    """`[completeness]`: when a study is taken as complete. Evidence that holds adds its weight; 1 is enough."""

    quiet_period: Duration = 60.0
    max_wait: Duration = 3600.0
    pause: Duration = 0.5
    """Nothing but the longest wait counts before so long without an instance."""
    archive: Text | None = None
    """The destination that is asked how many instances a study has."""
    fetch: Literal["no", "move", "get"] = "no"
    fetch_attempts: int = Field(default=3, ge=1, le=20, strict=True)
    fetch_timeout: Annotated[Duration, Field(gt=0)] = 600.0
    release_weight: Weight = 0.5
    count_weight: Weight = 0.5
    quiet_weight: Weight = 1.0
    wait_weight: Weight = 1.0
    late_instances: Literal["supersede", "reread", "ignore"] = "supersede"


class SpoolSettings(_Section):
    """`[spool]`: where bytes live and how long."""

    url: Folder = Path("state/spool")
    keep_images: Duration = 7 * 86400.0
    keep_results: Duration = 30 * 86400.0
    refuse_below: Size = 2 * 10**9


class DatabaseSettings(_Section):
    """`[database]`: SQLAlchemy URL; SQLite beside the spool by default."""

    url: DatabaseUrl = "sqlite:///state/wetread.db"


class BrokerSettings(_Section):
    """`[broker]`: a Redis or Valkey URL, or `"embedded"`."""

    url: BrokerUrl = "embedded"


class WorkerSettings(_Section):
    """`[worker]`: how jobs run."""

    models: Folder | None = None
    trusted: Folder = Path("trusted.toml")
    """The file of pins: which bundles may run."""
    device: Device = "auto"
    runtime: Literal["auto", "torch", "openvino"] = "torch"
    """What computes networks on a CPU."""
    readers: int = Field(default=2, ge=1, le=8, strict=True)
    """Series in hand at a time: the network of one computes while the others are loaded or reported."""
    job_timeout: Annotated[Duration, Field(gt=0)] = 900.0
    max_attempts: int = Field(default=3, ge=1, le=20, strict=True)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where Model Bundles are looked for before those that are shipped."""
        return (self.models,) if self.models else ()


class WebSettings(_Section):
    """`[web]`: the status pages; other than loopback needs a token file."""

    bind: Bind = "127.0.0.1"
    port: Port = 8080
    token_file: Folder | None = None


class LogSettings(_Section):
    """`[log]`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Settings(_Section):
    """`wetread.toml`."""

    node: NodeSettings = NodeSettings()
    tls: TlsSettings = TlsSettings()
    peer: tuple[Peer, ...] = ()
    destination: dict[str, Destination] = {}
    ingest: IngestSettings = IngestSettings()
    completeness: Completeness = Completeness()
    spool: SpoolSettings = SpoolSettings()
    database: DatabaseSettings = DatabaseSettings()
    broker: BrokerSettings = BrokerSettings()
    worker: WorkerSettings = WorkerSettings()
    web: WebSettings = WebSettings()
    log: LogSettings = LogSettings()


class Route(_Section):
    """One `[[route]]`: in studies matching `when`, series matching `series` are read by `models`, for `send_to`."""

    name: Text
    when: dict[str, Condition] = {}
    series: dict[str, Condition] = {}
    models: tuple[str, ...]
    send_to: tuple[str, ...]
    results: tuple[ResultKind, ...] = ("SR", "SEG", "SC")
    priority: Literal["routine", "high", "stat"] = "routine"
    """Read at least so urgently; the images may ask for more."""
    decline: Literal["silent", "report", "never"] = "silent"
    """What is sent of images that a bundle declines: nothing, an SR that says why; or they are read all the same."""


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
    settings_rules.refuse_endless(path, settings, lines)
    settings_rules.refuse_open_doors(path, settings, lines)
    folder = path.resolve().parent
    return _resolve(settings, Path.cwd() if folder == SHIPPED.resolve() else folder)


def load_routes(path: Path, settings: Settings, known: Collection[str] = ()) -> Routes:
    """Read `routes.toml`; every model must be installed, or `known` to have been, every destination configured, every
    condition possible. Raises `ConfigError`."""
    routes, lines = read_model(path, Routes)
    _refuse_duplicates(path, "route", [route.name for route in routes.route], lines)
    models = sorted({*bundles.names(*settings.worker.folders), *known})
    for index, route in enumerate(routes.route):
        _refuse_unknown(path, ("route", index, "models"), route, models, lines)
        _refuse_unknown(path, ("route", index, "send_to"), route, list(settings.destination), lines)
        _refuse_conditions(path, index, route, lines)
    return routes


def state_folder(settings: Settings) -> Path:
    """Return the folder that holds what the node owns on this machine: `[node] state`, or else the spool's parent."""
    return settings.node.state or settings.spool.url.parent


def _refuse_duplicates(path: Path, table: str, names: list[str], lines: dict[Key, int]) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            first = line_of((table, names.index(name)), lines)
            line = line_of((table, index, "name"), lines)
            raise ConfigError(path, line, f'{table} "{name}": the name is taken by the {table} on line {first}')


def _refuse_conditions(path: Path, index: int, route: Route, lines: dict[Key, int]) -> None:
    from node import conditions  # the data dictionary costs time that commands without routes need not spend

    for table in ("when", "series"):
        for keyword, condition in getattr(route, table).items():
            try:
                conditions.check({keyword: condition})
            except Permanent as error:
                line = line_of(("route", index, table, keyword), lines)
                raise ConfigError(path, line, f'route "{route.name}": {table}: {error}') from None


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
        database = sqlite_below(base, database.removeprefix("sqlite:///"))
    update = {
        "tls": settings.tls.model_copy(
            update={name: absolute(getattr(settings.tls, name)) for name in ("certificate", "key", "ca")}
        ),
        "peer": tuple(
            peer.model_copy(update={"passcode_file": absolute(peer.passcode_file)}) for peer in settings.peer
        ),
        "node": settings.node.model_copy(update={"state": absolute(settings.node.state)}),
        "spool": settings.spool.model_copy(update={"url": absolute(settings.spool.url)}),
        "database": settings.database.model_copy(update={"url": database}),
        "worker": settings.worker.model_copy(
            update={"models": absolute(settings.worker.models), "trusted": absolute(settings.worker.trusted)}
        ),
        "web": settings.web.model_copy(update={"token_file": absolute(settings.web.token_file)}),
    }
    return settings.model_copy(update=update)
