"""`wetread evaluate | train`: a bundle measured on labelled images, or trained on them, in a child process."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from node.cli_output import config_option, json_option, load_settings, print_json, print_rows
from node.errors import Permanent


@click.command(short_help="Measure a model on labelled images.")
@click.argument("name", metavar="NAME")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    metavar="CSV",
    help="Columns image,label[,patient][,cohort].",
)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), metavar="DIR")
@config_option
@json_option
def evaluate(name: str, data: Path, out: Path, config: Path | None, as_json: bool) -> None:
    """Read labelled images with a Model Bundle and write figures with their intervals, plots and a report into DIR.

    The manifest is a CSV file: `image` is DICOM (a file, or a folder with one series), PNG, JPEG or NIfTI; `label` a
    finding (0 or 1, or its name) or the path of a mask. Intervals resample patients, and figures are told per cohort.
    """
    from node import trust

    settings = load_settings(config)
    found = _evaluate(trust.find(name, settings), data, out, settings)
    print_json(found) if as_json else _print_figures(found, out)


def _evaluate(bundle: Any, data: Path, out: Path, settings: Any) -> dict[str, Any]:
    from node import clock

    request = import_module("workers.evaluate.request").Request(  # by name: the node does not know the workers
        bundle=str(bundle.folder),
        digest=bundle.digest,
        manifest=str(data),
        out=str(out),
        device=settings.worker.device,
        runtime=settings.worker.runtime,
        started=clock.now(),
    )
    _follow("workers.evaluate", "reading", request.to_json(), settings.worker.job_timeout)
    return _load(out / "metrics.json")


@click.command(short_help="Train a model on your own images.")
@click.argument("name", metavar="NAME")
@click.option("--data", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), metavar="DIR")
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of those in train.json.")
@click.option("--fine-tune", is_flag=True, help="Begin with the weights of the model instead of random ones.")
@click.option("--processes", type=click.IntRange(min=1), default=1, help="Train on so many GPUs at once.")
@click.option("--set", "overrides", multiple=True, metavar="ID=VALUE", help="Another value for an id of train.json.")
@config_option
@json_option
def train(
    name: str,
    data: Path,
    out: Path,
    epochs: int | None,
    fine_tune: bool,
    processes: int,
    overrides: tuple[str, ...],
    config: Path | None,
    as_json: bool,
) -> None:
    """Train a copy of a Model Bundle by its own train.json, and measure it on patients that were kept apart.

    DIR of --data holds manifest.csv (as for `wetread evaluate`) or a data list NAME.json. The copy in DIR of --out is a
    bundle of its own; a node runs it once `wetread models trust` has pinned it. The same command goes on where a
    training was interrupted, from its last whole epoch.
    """
    from node import bundles, clock, trust

    given = dict(map(_override, overrides))
    settings = load_settings(config)
    bundle = trust.find(name, settings)
    request = import_module("workers.train.request").Request(
        bundle=str(bundle.folder),
        digest=bundle.digest,
        data=str(data),
        out=str(out),
        started=clock.now(),
        epochs=epochs,
        fine_tune=fine_tune,
        overrides=given,
        processes=processes,
    )
    _follow("workers.train", "training", request.to_json(), None)
    trained = bundles.load(out)
    calibration = out / "docs" / "calibration.json"
    for note in _load(calibration)["notes"] if calibration.is_file() else ():
        click.echo(note, err=True)
    if not _has_rows(out / "test.csv"):
        click.echo("No patient fell into the test part: nothing was measured.", err=True)
        if as_json:
            print_json({})
        return
    found = _evaluate(trained, out / "test.csv", out / "docs", settings)
    print_json(found) if as_json else _print_figures(found, out / "docs")


def _override(said: str) -> tuple[str, Any]:
    """`learning_rate=0.001` → its id and its value: JSON or a Python literal where it is some, else the text itself."""
    name, equals, value = said.partition("=")
    if not name or not equals:
        raise click.BadParameter(f'"{said}" is not ID=VALUE, such as learning_rate=0.001', param_hint="--set")
    for read in (json.loads, ast.literal_eval):
        try:
            return name, read(value)
        except (ValueError, SyntaxError):
            continue
    return name, value


def _has_rows(manifest: Path) -> bool:
    return len(manifest.read_text(encoding="utf-8").splitlines()) > 1


def _follow(module: str, label: str, request: str, silence_s: float | None) -> None:
    from node.cli_child import follow

    with _progress(label) as tell:
        follow(module, request, silence_s, tell)


@contextmanager
def _progress(label: str) -> Iterator[Any]:
    """A bar on the terminal with the time that is left; nothing where standard error is no terminal."""
    hidden = not sys.stderr.isatty()
    made: Any = click.progressbar(length=1, label=label, file=sys.stderr, show_pos=True, hidden=hidden)
    with made as bar:

        def tell(message: dict[str, Any]) -> None:
            bar.length = message.get("total", bar.length)
            bar.update(message.get("done", bar.pos) - bar.pos)

        yield tell


def _load(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise Permanent(f"{path} was written and cannot be read back.") from None
    return found


def _print_figures(found: dict[str, Any], out: Path) -> None:
    from node import cards

    print_rows(cards.table(found), cards.COLUMNS, "No figure could be computed.")
    for cohort, table in found["cohorts"].items():
        click.echo(f"{cohort}: {table['images']} images of {table['patients']} patients")
    if found["not_read"]:
        click.echo(f"{len(found['not_read'])} images were not read; the report says why.")
    click.echo(f"{out / 'report.html'}")


COMMANDS = (evaluate, train)
