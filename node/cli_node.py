"""`wetread serve | worker | check | demo`: the node, its worker, whether both would work, and both at once."""

from __future__ import annotations

import logging
import signal
import threading
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli_output import config_option, json_option, load_all, load_settings, print_json
from node.errors import Permanent, WetreadError
from node.store.locks import ROLES

if TYPE_CHECKING:
    from node.daemon import Node

log = logging.getLogger(__name__)


@click.command(short_help="Run the node: take studies, decide what reads them.")
@config_option
@click.option("--with-worker", is_flag=True, help="Start one worker as well, on this machine.")
@click.option("--role", "roles", multiple=True, type=click.Choice(ROLES), help="Only this part; may be given again.")
def serve(config: Path | None, with_worker: bool, roles: tuple[str, ...]) -> None:
    """Run the node: take studies and decide what reads them; a `wetread worker` reads and delivers.

    With --role only some of its parts run here, the others in other processes or on other hosts with the same
    database, broker and spool. SIGHUP has the configuration read again, and the log says what of it needs a restart;
    new listener processes take the place of the old ones, which end with their associations.
    """
    stopping, reloading = _stop_on_signals(), _set_by(signal.SIGHUP)  # before imports, which take seconds
    from node import broker
    from node.daemon import Node, Role
    from node.helper import Worker
    from node.log import configure
    from node.settings import find_config

    settings, routes = load_all(config)
    configure(settings.log)
    with Node(settings, routes, roles=[role for role in Role if role in (roles or ROLES)]) as node:
        if node.broker_url == broker.MEMORY:
            _work_here(node, with_worker, stopping, reloading)
            return
        worker = Worker(config or find_config()) if with_worker else None
        try:
            while not stopping.wait(1.0):
                _require_sound(node)
                if reloading.is_set():
                    reloading.clear()
                    if _reload(node, config) and worker is not None:
                        worker.stop()
                        worker = Worker(config or find_config())
                if worker is not None and not worker.is_running():
                    raise Permanent("The worker ended; the node stops, too. Its log says why.")
        finally:
            if worker is not None:
                worker.stop()


def _reload(node: Node, config: Path | None) -> bool:
    """Take the configuration in anew, or keep the old one and say in one line why; True: workers must take it in, too.

    A worker reads it when it starts; one of this node's own is started again, others are for the admin to restart.
    """
    from node import reload
    from node.log import configure

    try:
        changed = node.reload(*load_all(config))
        configure(node.settings.log)
        log.info("The configuration was read again.", extra={"action": "configuration_reloaded", "changed": changed})
        node.roll()
    except (WetreadError, OSError, ValueError) as error:  # whatever is wrong with a file, the node goes on
        log.error("The old configuration stays. %s", error, extra={"action": "configuration_refused"})
        return False
    if workers := reload.concerns_workers(changed):
        what = ", ".join(workers)
        log.warning("Restart the workers: they read %s when they start.", what, extra={"action": "workers_are_behind"})
    return bool(workers)


def _require_sound(node: Node) -> None:
    """Raise what the start came to that had to wait for the database."""
    if node.failure is not None:
        raise node.failure


def _work_here(node: Node, with_worker: bool, stopping: threading.Event, reloading: threading.Event) -> None:
    """Without a broker only a worker in this very process can be told of jobs; it takes in nothing on SIGHUP."""
    from node import broker

    threading.Thread(target=_decline, args=(reloading,), name="reload", daemon=True).start()
    if not with_worker:
        click.echo("wetread: no broker: nothing will be read; install valkey, or use --with-worker", err=True)
    while not stopping.wait(0.1):
        _require_sound(node)
        if with_worker and node.has_begun.is_set():
            import_module("workers.app").work(node.settings, broker.MEMORY, ["read", "send"])
            return


def _decline(reloading: threading.Event) -> None:
    while reloading.wait():
        reloading.clear()
        log.error(
            "The old configuration stays. A node without a broker needs a restart to read another.",
            extra={"action": "configuration_refused"},
        )


@click.command(short_help="Run a worker: read studies, deliver results.")
@config_option
def worker(config: Path | None) -> int:
    """Run a worker: read the studies that the node has routed, and deliver the results.

    SIGHUP has the configuration read again: what is in hand is ended first. The log says what needs a restart.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # while it is imported, which takes seconds; the file is read then
    app = import_module("workers.app")  # by name: node knows no workers
    from node.log import configure
    from node.settings import find_config

    settings = load_settings(config)
    configure(settings.log)
    status: int = app.run(config or find_config(), settings)
    return status


@click.command(short_help="Say whether a configuration would work.")
@config_option
@click.option("--no-echo", is_flag=True, help="Do not ask the destinations.")
@json_option
def check(config: Path | None, no_echo: bool, as_json: bool) -> None:
    """Say whether this configuration would work: files, folders, database, broker, models, destinations."""
    from node.check import check_all

    results = check_all(config, echo=not no_echo)
    if as_json:
        print_json([{"what": r.what, "ok": r.ok, "message": r.message} for r in results])
    for result in () if as_json else results:
        click.echo(f"{'OK   ' if result.ok else 'ERROR'}  {result.what}: {result.message}")
    if bad := [result.what for result in results if not result.ok]:
        raise Permanent(f"{len(bad)} of {len(results)} checks failed: {', '.join(bad)}.")


@click.command(short_help="Show it all at once, on this machine.")
@click.option("--exit", "leave", is_flag=True, help="End by itself once the results have arrived.")
@click.option("--study", type=click.Path(exists=True, path_type=Path), metavar="DIR", help="Push this study instead.")
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), default=Path("demo"), show_default=True)
@click.option("--timeout", type=click.IntRange(10), default=170, show_default=True, help="Seconds to wait for results.")
def demo(leave: bool, study: Path | None, state: Path, timeout: int) -> None:
    """Show it all at once: a simulated modality sends a synthetic chest film, a simulated PACS gets the results."""
    from node.demo import Demo

    stopping = _stop_on_signals()
    with Demo(state, click.echo) as running:
        running.push(study)
        if not running.wait(timeout, stopping):
            raise click.Abort
        running.show()
        if not leave:
            click.echo("\nIt stays up until Ctrl-C.")
            stopping.wait()


def _stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set."""
    return _set_by(signal.SIGTERM, signal.SIGINT)


def _set_by(*numbers: signal.Signals) -> threading.Event:
    """Return an event that these signals set."""
    event = threading.Event()
    for number in numbers:
        signal.signal(number, lambda *_: event.set())
    return event


COMMANDS: tuple[Any, ...] = (serve, worker, check, demo)
