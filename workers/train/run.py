"""A whole training: a copy of the bundle, its data list, its `train.json` by MONAI, curves and a card.

The bundle trained from stays as it is; the copy is a bundle of its own, with another digest.
"""

from __future__ import annotations

import json
import logging
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from monai.bundle.workflows import ConfigWorkflow

from node import clock
from node.bundles import Bundle
from node.errors import BundleError, Permanent
from workers.predict import weights
from workers.predict.scripts import Scripts
from workers.train import datalist
from workers.train.request import Request
from workers.train.watch import Tell, Watch

_COPIED = ("configs", "scripts", "LICENSE")
_LIST, _LOG = "datalist.json", "training.log"


def train(request: Request, bundle: Bundle, lists: datalist.Lists, tell: Tell) -> None:
    """Train a copy of `bundle` in `request.out`; go on where a checkpoint lies there.

    Writes models/model.pt (the best on the validation patients), docs/curves.json and curves.png, docs/README.md, and
    test.csv, the manifest of the patients that were never looked at. Raises `BundleError` where train.json does not
    build or lacks a part, `Permanent` where the training fails.
    """
    if bundle.digest != request.digest:
        raise BundleError(f"Bundle {bundle.title} has changed since it was looked up. It was not trained.")
    out = Path(request.out)
    _copy(bundle, out, request)
    (out / _LIST).write_text(json.dumps(lists, indent=1) + "\n", encoding="utf-8")
    datalist.write_manifest(out / "test.csv", lists.get("test", []), Path(request.data))
    logging.basicConfig(filename=out / _LOG, level=logging.INFO, force=True)
    with Scripts(out):
        found = _run(request, bundle, out, tell)
    (out / "docs" / "curves.png").write_bytes(curves(found))
    (out / "docs" / "README.md").write_text(card(request, bundle, lists, found), encoding="utf-8")


def _run(request: Request, bundle: Bundle, out: Path, tell: Tell) -> list[dict[str, Any]]:
    """Run the training and return its curves."""
    workflow = _workflow(request, bundle, out)
    parts = _parts(workflow, bundle)
    if request.fine_tune:
        _begin_with(parts, bundle)
    watch = Watch(parts, out, int(workflow.parser.get("seed", 0) or 0), tell)
    watch.attach()
    try:
        workflow.run()
    except Exception as error:  # a bundle's training is its author's code
        raise Permanent(f"The training of {bundle.title} failed: {_root(error)}. {out / _LOG} says more.") from error
    workflow.finalize()
    return watch.curves


def _copy(bundle: Bundle, out: Path, request: Request) -> None:
    if out.resolve() == bundle.folder:
        raise Permanent(f"{out} is the bundle itself; name another --out.")
    if (out / "checkpoint.pt").is_file():
        return
    if out.exists() and any(out.iterdir()) and not (out / _LOG).is_file():
        raise Permanent(f"{out} is not empty and no training began there; name another --out.")
    (out / "models").mkdir(parents=True, exist_ok=True)
    (out / _LOG).touch()
    for name in _COPIED:
        source = bundle.folder / name
        if source.is_dir():
            shutil.copytree(source, out / name, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copyfile(source, out / name)
    metadata = dict(bundle.metadata) | {"eval_metrics": {}}
    metadata["version"] = f"{bundle.version.partition('+')[0]}+{clock.to_datetime(request.started):%Y%m%d}"
    (out / "configs" / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def _workflow(request: Request, bundle: Bundle, out: Path) -> ConfigWorkflow:
    """`monai.bundle run` on the same file: the same class, the same overrides."""
    overrides: dict[str, Any] = {"max_epochs": request.epochs} if request.epochs else {}
    try:
        workflow = ConfigWorkflow(
            config_file=str(out / "configs" / "train.json"),
            workflow_type="train",
            logging_file=False,
            bundle_root=str(out),
            dataset_dir=str(Path(request.data).resolve()),
            datalist=str(out / _LIST),
            output_dir=str(out / "models"),
            **overrides,
        )
        workflow.initialize()
    except Exception as error:  # a bundle's expressions are its author's code
        raise BundleError(f"Bundle {bundle.title}: configs/train.json does not build: {_root(error)}") from error
    return workflow


def _parts(workflow: ConfigWorkflow, bundle: Bundle) -> dict[str, Any]:
    parser = workflow.parser
    ids = {"trainer": "train#trainer", "evaluator": "validate#evaluator", "handlers": "validate#handlers"}
    ids |= {name: name for name in ("network", "optimizer", "lr_scheduler", "ema")}
    try:
        found = {name: parser.get_parsed_content(key) for name, key in ids.items() if key in parser}
    except Exception as error:  # a bundle's expressions are its author's code
        raise BundleError(f"Bundle {bundle.title}: configs/train.json does not build: {_root(error)}") from error
    needed = ("trainer", "evaluator", "handlers", "network", "optimizer")
    if missing := [ids[name] for name in needed if name not in found]:
        raise BundleError(f"Bundle {bundle.title}: configs/train.json has no id {', '.join(missing)}.")
    return found


def _begin_with(parts: dict[str, Any], bundle: Bundle) -> None:
    network = parts["network"]
    weights.load(network, bundle, next(network.parameters()).device)
    if ema := parts.get("ema"):
        ema.ema_model.load_state_dict(network.state_dict())


def _root(error: BaseException) -> str:
    """The first line of what went wrong first: MONAI wraps every error of an expression."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def curves(found: list[dict[str, Any]]) -> bytes:
    """Return loss and validation metrics over the epochs as PNG."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    names = sorted({name for point in found for name in point} - {"epoch"})
    for name in names:
        points = [(point["epoch"], point[name]) for point in found if name in point]
        axis.plot(*zip(*points, strict=True), marker=".", label=name.replace("_", " "))
    axis.set(xlabel="Epoch", title="Training")
    axis.grid(color="#eeeeee")
    axis.legend(frameon=False)
    out = BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def card(request: Request, bundle: Bundle, lists: datalist.Lists, found: list[dict[str, Any]]) -> str:
    """Return the card of the new bundle; what the old one's says stands below it, with another heading."""
    original = bundle.folder / "docs" / "README.md"
    began = f"the weights of {bundle.title}" if request.fine_tune else "random weights"
    counts = ", ".join(_count(part, lists.get(part, [])) for part in datalist.PARTS)
    said = original.read_text(encoding="utf-8") if original.is_file() else "It had no card.\n"
    return (
        f"# {bundle.name}, trained here\n\n"
        f"Trained on {clock.to_iso(request.started)} by the `train.json` of {bundle.title}, from {began}, "
        f"{found[-1]['epoch']} epochs: {counts}. The weights are the best on the validation patients. "
        "Figures on the test patients are in `metrics.json`; they were used for nothing else. "
        "Not a medical device; not for diagnosis.\n\n![Training curves](curves.png)\n\n"
        f"What follows is the card of the bundle trained from; **its figures are not of these weights.**\n\n#{said}"
    )


def _count(part: str, cases: list[dict[str, Any]]) -> str:
    return f"{len(cases)} {part} images of {len({str(c.get('patient', c['image'])) for c in cases})} patients"
