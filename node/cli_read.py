"""`wetread read`: one folder, one model, no node; the same selection and the same supervised child as a node's job."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from node import trust
from node.bundles import Bundle
from node.errors import Permanent, Unsuitable
from node.route.selection import Choice, select
from node.settings import Route, Settings
from node.store.spool import dataset_sha256
from node.store.studies import InstanceRow, manifest_sha256
from node.study import Study, scan


def read_folder(
    folder: Path, model: str, out: Path, results: tuple[str, ...], decline: str, settings: Settings
) -> dict[str, Any]:
    """Read every series in `folder` that `model` can read, and write what it says to `out` as `*.dcm`.

    Returns `readings` and, for all else, why not in `left_out`. Raises `Unsuitable` when nothing was read, and then
    there is no file but the report that `decline` asks for; `Permanent` when a reading failed.
    """
    bundle = trust.find(model, settings)
    studies, left_out = scan(folder)
    reasons = list(left_out)
    readings: list[dict[str, Any]] = []
    reader = import_module("workers.reader").Reader()  # by name: the node does not know the workers
    try:
        with tempfile.TemporaryDirectory(prefix="wetread-read-") as scratch:
            for study, choice in _choices(studies, bundle, reasons):
                request = _request(study, choice, bundle, results, decline, Path(scratch), settings)
                outcome = asdict(reader.read(request, settings.worker.job_timeout))
                _take(outcome, choice, bundle, out, readings, reasons)
    finally:
        reader.stop()
    if not readings:
        raise Unsuitable(f"Nothing in {folder} was read by {bundle.title}. " + " ".join(reasons))
    return {"readings": readings, "left_out": reasons}


def _choices(studies: tuple[Study, ...], bundle: Bundle, reasons: list[str]) -> Iterator[tuple[Study, Choice]]:
    route = Route(name="offline", models=(bundle.name,), send_to=())
    for study in studies:
        for choice in select(study.series, bundle, route):
            if choice.chosen:
                yield study, choice
            else:
                reasons.append(f"{_title(choice)}: {'; '.join(choice.reasons)}.")


def _request(
    study: Study,
    choice: Choice,
    bundle: Bundle,
    results: tuple[str, ...],
    decline: str,
    scratch: Path,
    settings: Settings,
) -> Any:
    make: Callable[..., Any] = import_module("workers.pipeline").Request
    numbers = [series.attributes.get("SeriesNumber") for series in study.series]
    return make(
        job_id=f"offline-{choice.series.series_instance_uid}",
        study_instance_uid=study.study_instance_uid,
        series_instance_uid=choice.series.series_instance_uid,
        revision=1,
        files=tuple(str(instance.path.resolve()) for instance in choice.instances),
        bundle=str(bundle.folder),
        digest=bundle.digest,
        results=results,
        out=str(scratch / choice.series.series_instance_uid),
        device=settings.worker.device,
        runtime=settings.worker.runtime,
        key=_key(study),
        ae_title=settings.node.ae_title,
        decline=decline,
        highest_series_number=max((int(n) for n in numbers if isinstance(n, float)), default=None),
    )


def _key(study: Study) -> str:
    """Return the digest that a node would give this study's manifest, so that the UIDs are the node's."""
    return manifest_sha256(
        InstanceRow(
            sop_instance_uid=instance.sop_instance_uid,
            sop_class_uid=instance.sop_class_uid,
            transfer_syntax_uid=instance.transfer_syntax_uid,
            study_instance_uid=instance.study_instance_uid,
            series_instance_uid=instance.series_instance_uid,
            path=str(instance.path),
            sha256=dataset_sha256(instance.path),
            size=0,
            received_at=0.0,
            revision=1,
        )
        for series in study.series
        for instance in series.instances
    )


def _take(
    outcome: dict[str, Any], choice: Choice, bundle: Bundle, out: Path, readings: list[Any], reasons: list[str]
) -> None:
    if outcome["kind"] == "failed":
        raise Permanent(f"{_title(choice)} was not read by {bundle.title}: {outcome['reason']}")
    documents = _copied(outcome["documents"], bundle, out)
    if outcome["kind"] == "unsuitable":
        where = f" The report of that: {documents[0]['file']}." if documents else ""
        reasons.append(f"{_title(choice)}: {outcome['reason']}{where}")
        return
    readings.append(
        {
            "bundle": bundle.name,
            "version": bundle.version,
            "study_instance_uid": choice.series.study_instance_uid,
            "series_instance_uid": choice.series.series_instance_uid,
            "series": _title(choice),
            "summary": outcome["summary"],
            "documents": documents,
        }
    )


def _copied(documents: Iterable[dict[str, Any]], bundle: Bundle, out: Path) -> list[dict[str, Any]]:
    copied = []
    for document in documents:
        out.mkdir(parents=True, exist_ok=True)
        target = out / f"{bundle.name}-{document['kind']}-{document['sop_instance_uid']}.dcm"
        shutil.copyfile(document["file"], target)
        copied.append({**document, "file": str(target)})
    return copied


def _title(choice: Choice) -> str:
    number = choice.series.attributes.get("SeriesNumber")
    shown = f" {number:g}" if isinstance(number, float) else ""
    return f"series{shown} ({choice.series.series_instance_uid})"
