"""A whole training: a copy of the bundle, its data list, its `train.json` by MONAI, curves and a card.

The bundle trained from stays as it is; the copy is a bundle of its own, with another digest.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.bundle.config_parser import ConfigParser
from monai.bundle.workflows import ConfigWorkflow

from node import bundles, clock
from node.bundles import Bundle
from node.errors import BundleError, Permanent, first_cause
from workers.evaluate import manifest
from workers.predict import weights
from workers.predict.guard import path_of
from workers.predict.scripts import Scripts
from workers.train import datalist, films, guard, together
from workers.train.calibrate import VALIDATION, calibrate
from workers.train.card import card, cost, curves
from workers.train.request import Request
from workers.train.together import LOG
from workers.train.watch import Tell, Watch

_COPIED = ("configs", "scripts", "LICENSE")
_LIST, _TEST = "datalist.json", "test.csv"


def train(request: Request, bundle: Bundle, lists: datalist.Lists, tell: Tell) -> None:
    """Train a copy of `bundle` in `request.out`; go on where a checkpoint lies there.

    Writes models/model.pt (the best on the validation patients), temperature and threshold for it, docs/curves.json and
    curves.png, docs/README.md, and test.csv, the manifest of the patients that were never looked at. Raises
    `BundleError` where train.json does not build or lacks a part, `Permanent` where the training fails.
    """
    if bundle.digest != request.digest:
        raise BundleError(f"Bundle {bundle.title} has changed since it was looked up. It was not trained.")
    out = Path(request.out)
    _copy(bundle, out, request)
    with _alone(out):
        _train(request, bundle, lists, tell)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep a second training out of the same folder, as long as this process lives."""
    with (out / LOG).open("a") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Permanent(f"Another training runs in {out}; wait for it, or name another --out.") from None
        yield


def _train(request: Request, bundle: Bundle, lists: datalist.Lists, tell: Tell) -> None:
    out, data = Path(request.out), Path(request.data)
    _files(request, bundle, out)
    _require_same(lists, out)
    opened = films.prepared(lists, data, out, bundle, tell)
    (out / _LIST).write_text(json.dumps(opened, indent=1) + "\n", encoding="utf-8")
    _write_manifests(lists, data, out, bundle)
    if request.processes > 1:
        together.launch(request, tell)
    else:
        run(request, bundle, out, tell)
    if not any((out / "models").glob("model.*")):
        told = f"no validation of {bundle.title} found weights worth keeping. {out / LOG} says more."
        raise Permanent(f"The training ended, but {told} Look at how often train.json validates, and at its metric.")
    found = json.loads((out / "docs" / "curves.json").read_text(encoding="utf-8"))
    with Scripts(out):
        chosen = calibrate(out, bundle, lists["validation"], data, request.started, tell)
    guarded = _fit_guard(bundle, out, lists, data)
    (out / "docs" / "curves.png").write_bytes(curves(found))
    said = card(request, bundle, lists, found, chosen, _spent(request, found) + guarded)
    (out / "docs" / "README.md").write_text(said, encoding="utf-8")


def _require_same(lists: datalist.Lists, out: Path) -> None:
    """Refuse to go on with other lists: an image may have another label, and a test patient have been learned from."""
    known, checkpoint = out / "lists.sha256", out / "checkpoint.pt"
    digest = hashlib.sha256(json.dumps(lists, sort_keys=True).encode()).hexdigest()
    if checkpoint.is_file() and known.is_file() and known.read_text() != digest:
        raise BundleError(f"{checkpoint} was made with other data. Remove it, or name another --out.")
    known.write_text(digest)


def _write_manifests(lists: datalist.Lists, data: Path, out: Path, bundle: Bundle) -> None:
    """Write what is read after the training; what is wrong there is told before it."""
    calibrates = len(bundle.dicom.finding) == 1
    for part, name in (("test", _TEST), *([("validation", VALIDATION)] if calibrates else [])):
        datalist.write_manifest(out / name, lists.get(part, []), data, bundle)
        if lists.get(part) and not bundle.dicom.detection:
            manifest.load(out / name, bundle)


def run(request: Request, bundle: Bundle, out: Path, tell: Tell) -> None:
    """Run the training itself in `out`, alone or as one of several processes; raises as `train` does."""
    logging.basicConfig(filename=out / LOG, level=logging.INFO, force=True)
    with Scripts(out):
        workflow = _workflow(request, bundle, out)
        parts = _parts(workflow, bundle)
        if request.fine_tune:
            _begin_with(parts, bundle)
        Watch(parts, out, int(workflow.parser.get("seed", 0) or 0), tell).attach()
        try:
            workflow.run()
        except Exception as error:  # a bundle's training is its author's code
            logging.exception("The training ends.")
            if isinstance(ours := _root(error), Permanent):
                raise ours from None
            told = f"The training of {bundle.title} failed: {first_cause(error)}. {out / LOG} says more."
            raise Permanent(told) from error
        workflow.finalize()


def _root(error: BaseException) -> BaseException:
    """Return what was raised first: MONAI wraps it."""
    return _root(error.__cause__) if error.__cause__ else error


def _spent(request: Request, found: list[dict[str, Any]]) -> str:
    gpus = request.processes if torch.cuda.is_available() else 0
    return cost(sum(point["seconds"] for point in found), gpus, torch.get_num_threads())


def _fit_guard(bundle: Bundle, out: Path, lists: datalist.Lists, data: Path) -> str:
    """The copy's guard knows the patients of this training; of too few, those of `bundle`, and the card says so."""
    trained = bundles.load(out)
    path, old = path_of(trained), path_of(bundle)
    if path is None:
        return ""
    try:
        guard.fit(trained, lists, data, lambda share: None)
    except ValueError as error:
        if old is None or not old.is_file():
            told = f"{error}. The weights are trained; take `file` out of [guard], or add patients."
            raise Permanent(told) from None
        shutil.copyfile(old, path)
        return f" The guard is still that of {bundle.title}, fitted on its own patients: {error}."
    return ""


def _copy(bundle: Bundle, out: Path, request: Request) -> None:
    if out.resolve() == bundle.folder:
        raise Permanent(f"{out} is the bundle itself; name another --out.")
    if (out / "checkpoint.pt").is_file():
        return
    if out.exists() and any(out.iterdir()) and not (out / LOG).is_file():
        raise Permanent(f"{out} is not empty and no training began there; name another --out.")
    (out / "models").mkdir(parents=True, exist_ok=True)
    (out / LOG).touch()
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
    overrides = request.overrides | ({"max_epochs": request.epochs} if request.epochs else {})
    files = _files(request, bundle, out)
    _require_ids(overrides, files, bundle)
    try:
        workflow = ConfigWorkflow(
            config_file=files,
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
        raise BundleError(f"Bundle {bundle.title}: configs/train.json does not build: {first_cause(error)}") from error
    return workflow


def _require_ids(overrides: dict[str, Any], files: list[str], bundle: Bundle) -> None:
    """MONAI would take a name that is mistyped for a new id, and train with the old value."""
    parser = ConfigParser()
    parser.read_config(files)
    if unknown := [name for name in overrides if name not in parser]:
        raise BundleError(
            f"Bundle {bundle.title}: configs/train.json has no id {', '.join(unknown)} that could get another value; "
            "nothing was trained."
        )


def _files(request: Request, bundle: Bundle, out: Path) -> list[str]:
    names = ["train.json", "multi_gpu_train.json"][: 1 + (request.processes > 1)]
    if not (out / "configs" / names[-1]).is_file():
        raise BundleError(f"Bundle {bundle.title} has no configs/{names[-1]}; nothing was trained.")
    return [str(out / "configs" / name) for name in names]


def _parts(workflow: ConfigWorkflow, bundle: Bundle) -> dict[str, Any]:
    parser = workflow.parser
    ids = {"trainer": "train#trainer", "evaluator": "validate#evaluator", "handlers": "validate#handlers"}
    ids |= {name: name for name in ("network", "optimizer", "lr_scheduler", "ema")}
    try:
        found = {name: parser.get_parsed_content(key) for name, key in ids.items() if key in parser}
    except Exception as error:  # a bundle's expressions are its author's code
        raise BundleError(f"Bundle {bundle.title}: configs/train.json does not build: {first_cause(error)}") from error
    needed = ("trainer", "evaluator", "handlers", "network", "optimizer")
    if missing := [ids[name] for name in needed if name not in found]:
        raise BundleError(f"Bundle {bundle.title}: configs/train.json has no id {', '.join(missing)}.")
    return found


def _begin_with(parts: dict[str, Any], bundle: Bundle) -> None:
    network = getattr(parts["network"], "module", parts["network"])  # the one inside where several train together
    weights.load(network, bundle, next(network.parameters()).device)
    if ema := parts.get("ema"):
        ema.ema_model.load_state_dict(network.state_dict())
