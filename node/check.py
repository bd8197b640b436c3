"""`wetread check`: would this configuration work? Each part is tried as the node would use it."""

from __future__ import annotations

import errno
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from node.errors import Permanent, WetreadError

if TYPE_CHECKING:
    from node.settings import Destination, Route, Routes, Settings


@dataclass(frozen=True)
class Result:
    """What one check found."""

    what: str
    ok: bool
    message: str


def check_all(config: Path | None, echo: bool = True) -> list[Result]:
    """Try everything that the configuration names; raises `ConfigError` when it does not even load."""
    from node.cli_output import load_all
    from node.settings import find_config

    settings, routes = load_all(config)
    results = [Result("configuration", True, str(config or find_config()))]
    for what, attempt in _attempts(settings, routes, echo):
        try:
            results.append(Result(what, True, attempt()))
        except WetreadError as error:
            results.append(Result(what, False, str(error)))
        except OSError as error:
            results.append(Result(what, False, f"{error.filename or what}: {error.strerror or error}"))
    return results


def _attempts(settings: Settings, routes: Routes, echo: bool) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "state folder", lambda: _state(settings)
    yield "spool", lambda: _spool(settings)
    yield "database", lambda: _database(settings)
    yield "broker", lambda: _broker(settings)
    yield "DICOM port", lambda: _port(settings, "listener", settings.node.bind, settings.node.port)
    yield "web port", lambda: _web(settings)
    if settings.tls.certificate is not None:
        yield "TLS", lambda: _tls(settings)
    if any(peer.passcode_file is not None for peer in settings.peer):
        yield "peers", lambda: _passcodes(settings)
    for name in sorted({model for route in routes.route for model in route.models}):
        yield f"model {name}", lambda name=name: _model(name, settings)  # type: ignore[misc]
    for route in (route for route in routes.route if "SALIENCY" in route.results):
        yield f"route {route.name}", lambda r=route: _saliency(r, settings)  # type: ignore[misc]
    for route in (route for route in routes.route if "PM" in route.results):
        yield f"route {route.name}", lambda r=route: _parametric_maps(r, settings)  # type: ignore[misc]
    for name, destination in settings.destination.items() if echo else ():
        yield f"destination {name}", lambda d=destination: _echo(d, settings)  # type: ignore[misc]


def _state(settings: Settings) -> str:
    from node.settings import state_folder

    folder = state_folder(settings)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return f"{folder} can be written"


def _tls(settings: Settings) -> str:
    from node import clock
    from node.tls import server_context, valid_until

    server_context(settings.tls)
    return f"{settings.tls.certificate} and its key can be used until {clock.to_iso(valid_until(settings.tls))}"


def _passcodes(settings: Settings) -> str:
    from node.accept.association import Admission

    Admission(settings)
    return "their passcodes can be read"


def _spool(settings: Settings) -> str:
    from node.store.spool import Spool

    spool = Spool(settings.spool.url, settings.spool.refuse_below)
    spool.check_room(0)
    with tempfile.TemporaryFile(dir=spool.root):
        pass
    return f"{settings.spool.url} can be written and has room"


def _database(settings: Settings) -> str:
    from node.store.db import Database

    db = Database(settings.database.url)
    try:
        with db.transaction():
            return f"{db.url.render_as_string(hide_password=True)} opens and can be written"
    finally:
        db.close()


def _broker(settings: Settings) -> str:
    from node import broker
    from node.errors import BrokerUnavailable
    from node.settings import state_folder

    with broker.resolve(settings, state_folder(settings)) as url:
        if url == broker.MEMORY:
            return "no server was found; jobs are announced within one process: use serve --with-worker"
        bell = broker.make_app(url)
        with bell.connection_for_write() as connection:
            try:
                connection.ensure_connection(max_retries=1, timeout=5)
            except Exception as error:  # every transport has errors of its own
                raise BrokerUnavailable(f"The broker does not answer ({type(error).__name__}).") from None
    return "the embedded server starts" if settings.broker.url == "embedded" else "answers"


def _port(settings: Settings, role: str, host: str, port: int) -> str:
    from node.settings import state_folder
    from node.store.locks import is_held

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE and is_held(state_folder(settings), role):
                return f"{host}:{port} is in use; the node of this state folder is running, and it should be its own"
            raise OSError(error.errno, f"{host}:{port}: {error.strerror}") from None
    return f"{host}:{port} is free"


def _web(settings: Settings) -> str:
    from node.web.auth import read_token

    token = read_token(settings.web.token_file)
    return _port(settings, "web", settings.web.bind, settings.web.port) + (", with a token" if token else "")


def _model(name: str, settings: Settings) -> str:
    from node import trust
    from node.cli_bundle import check_bundle, find

    return check_bundle(trust.require(find(name, settings), settings))


def _saliency(route: Route, settings: Settings) -> str:
    from node.cli_bundle import find

    able = [name for name in route.models if find(name, settings).dicom.explain is not None]
    if not able:
        raise Permanent(
            f'The route "{route.name}" asks for SALIENCY, and none of its models has [explain] in its dicom.toml: no '
            "map would ever be sent. Add [explain] to one, or remove SALIENCY."
        )
    return f"saliency maps of {', '.join(able)}"


def _parametric_maps(route: Route, settings: Settings) -> str:
    """A map is made of volumes alone, of each segment, or of each finding that has a saliency map."""
    from node.cli_bundle import find

    models = {name: find(name, settings).dicom for name in route.models}
    able = [
        name
        for name, dicom in models.items()
        if dicom.dimensions == 3 and (dicom.kind == "segmentation" or dicom.explain is not None)
    ]
    if not able:
        raise Permanent(
            f'The route "{route.name}" asks for PM, and none of its models can make a Parametric Map: that takes a '
            "model of volumes that segments, or has [explain] in its dicom.toml. Add one, or remove PM."
        )
    return f"Parametric Maps of {', '.join(able)}"


def _echo(destination: Destination, settings: Settings) -> str:
    from node import calling
    from node.errors import Transient

    where = f"{destination.ae_title} at {destination.host}:{destination.port}"
    answer = calling.echo(calling.Peer.of(destination, settings), calling.Timeouts(dimse=10.0))
    if answer.status != 0:
        words = " ".join(filter(None, (f"({answer.note})." if answer.note else "", answer.remedy)))
        raise Transient(f"{where} does not answer C-ECHO: {answer.code} {words}".rstrip())
    return f"{where} answers{' over TLS' if destination.tls else ''}"
