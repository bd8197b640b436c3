"""A whole evaluation: every case of a manifest read and scored, then figures, pictures and a report.

Runs in a child of `wetread evaluate`, because images of strangers are decoded here.
"""

from __future__ import annotations

import csv
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from node import clock
from node.bundles import Bundle
from node.errors import ConfigError, Permanent, Unsuitable
from workers.evaluate import images, metrics, plots, report, tables
from workers.evaluate.manifest import Case
from workers.evaluate.overlap import Overlap
from workers.evaluate.request import Request
from workers.evaluate.scoring import Comparison, Score, compare, score
from workers.predict.network import Network

Tell = Callable[[dict[str, Any]], None]
WORST = 8
"""Cases shown as pictures."""


def evaluate(request: Request, bundle: Bundle, cases: Sequence[Case], tell: Tell) -> None:
    """Read `cases`, and write metrics.json, cases.csv, plots and report.html to `request.out`.

    `tell` gets `{"total": n}` first and then, before each image is read, `{"image": name, "done": k}`. Raises
    `ConfigError` for a wrong mask, `Unsuitable` when no image could be read, `Permanent` when the network fails.
    """
    out = Path(request.out)
    _require_room(out)
    tell({"total": len(cases)})
    _look_at_masks(request, cases, tell)
    network = Network(bundle, request.device, request.digest, request.runtime)
    scores, not_read = _scores(request, cases, network, bundle, tell)
    found = _figures(request, bundle, scores, not_read, lambda of: tell({"image": f"the intervals of {of}"}))
    pictures = _pictures(request, scores, network, bundle)
    _write(out, found, scores, bundle, pictures)


def _look_at_masks(request: Request, cases: Sequence[Case], tell: Tell) -> None:
    """Tell of a mask on another grid before hours of reading, as far as headers know it."""
    for case in cases:
        if isinstance(case.truth, Path):
            tell({"image": case.name})
            try:
                images.look_at(case.truth, case.image)
            except images.MaskError as error:
                raise ConfigError(request.manifest, case.line, str(error)) from None


def _require_room(out: Path) -> None:
    """Refuse a folder that cannot be written to before hours of reading; it stays away where nothing comes of it."""
    missing = out
    while not missing.exists() and missing != missing.parent:
        missing = missing.parent
    try:
        with tempfile.TemporaryFile(dir=missing):
            pass
    except OSError as error:
        told = f"{out} cannot be written to: {error.strerror}. No image was read; name another --out."
        raise Permanent(told) from None


def _scores(
    request: Request, cases: Sequence[Case], network: Network, bundle: Bundle, tell: Tell
) -> tuple[list[Score], list[dict[str, Any]]]:
    scores: list[Score] = []
    not_read: list[dict[str, Any]] = []
    started = clock.to_datetime(request.started)
    for done, case in enumerate(cases):
        tell({"image": case.name, "done": done})
        try:
            scores.append(score(case, network, bundle, started, request.manifest))
        except (Unsuitable, OSError) as error:
            told = str(error) if isinstance(error, Unsuitable) else f"it cannot be read: {error.strerror or error}"
            not_read.append({"image": case.name, "line": case.line, "cohort": case.cohort, "reason": told})
    if not scores:
        raise Unsuitable(f"None of {len(cases)} images was read by {bundle.title}. The first: {not_read[0]['reason']}.")
    return scores, not_read


def _figures(
    request: Request,
    bundle: Bundle,
    scores: Sequence[Score],
    not_read: list[dict[str, Any]],
    busy: tables.Busy,
) -> dict[str, Any]:
    return {
        "command": f"wetread evaluate {bundle.name} --data {Path(request.manifest).name} --out DIR",
        "bundle": bundle.name,
        "version": bundle.version,
        "kind": bundle.dicom.kind,
        "digest": request.digest,
        "weights_sha256": bundle.weights_sha256,
        "manifest": Path(request.manifest).name,
        "manifest_sha256": hashlib.sha256(Path(request.manifest).read_bytes()).hexdigest(),
        "evaluated_at": clock.to_iso(request.started),
        "thresholds": {entry.label: entry.threshold for entry in bundle.dicom.finding},
        "intervals": {"method": "bootstrap over patients", "resamples": request.resamples, "seed": metrics.SEED},
        "images": len(scores) + len(not_read),
        "not_read": not_read,
        "cohorts": tables.cohorts(scores, bundle, request.resamples, busy),
    }


def _pictures(request: Request, scores: Sequence[Score], network: Network, bundle: Bundle) -> dict[str, bytes]:
    """Return the plots by file name; the worst cases are read once more rather than kept."""
    started = clock.to_datetime(request.started)
    if bundle.dicom.finding:
        return plots.classification(scores, bundle, WORST)
    worst: list[tuple[Score, Comparison]] = [
        (one, compare(one.case, network, bundle, started, request.manifest)) for one in worst_segmented(scores, WORST)
    ]
    return plots.segmentation(scores, bundle, worst)


def worst_segmented(scores: Sequence[Score], count: int) -> list[Score]:
    """Return the scores with the lowest mean Dice, the worst first."""
    return sorted((score for score in scores if score.dice < 1), key=lambda score: score.dice)[:count]


def _write(
    out: Path, found: dict[str, Any], scores: Sequence[Score], bundle: Bundle, pictures: dict[str, bytes]
) -> None:
    """Put all in place once all is written; what an earlier evaluation left goes, where this one has no such file."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".evaluation-", dir=out) as beside:
            _write_all(Path(beside), found, scores, bundle, pictures)
            for path in Path(beside).iterdir():
                path.replace(out / path.name)
    except OSError as error:
        told = f"{out} cannot be written to: {error.strerror or error}. What lay there before is as it was."
        raise Permanent(told) from None
    for path in out.glob("*.png"):
        if path.name not in pictures and plots.NAMES.fullmatch(path.name):
            path.unlink()


def _write_all(
    out: Path, found: dict[str, Any], scores: Sequence[Score], bundle: Bundle, pictures: dict[str, bytes]
) -> None:
    for name, png in pictures.items():
        (out / name).write_bytes(png)
    _write_cases(out / "cases.csv", scores, bundle)
    (out / "report.html").write_text(report.render(found, pictures), encoding="utf-8")
    (out / "metrics.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _write_cases(path: Path, scores: Sequence[Score], bundle: Bundle) -> None:
    """One line per image and finding or segment, so that every figure can be computed again by other means."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        if bundle.dicom.finding:
            table.writerow(("image", "cohort", "finding", "truth", "probability"))
            table.writerows(_finding_lines(scores, bundle))
        else:
            columns = ("dice", "hausdorff95", "distance_unit", "true_size", "predicted_size", "size_unit")
            table.writerow(("image", "cohort", "segment", *columns))
            table.writerows(_segment_lines(scores, bundle))


def _finding_lines(scores: Sequence[Score], bundle: Bundle) -> list[tuple[object, ...]]:
    return [
        (one.case.name, one.case.cohort, entry.label, int(truth), f"{probability:.6f}")
        for one in scores
        if isinstance(one.case.truth, tuple)
        for entry, truth, probability in zip(bundle.dicom.finding, one.case.truth, one.probabilities, strict=True)
    ]


def _segment_lines(scores: Sequence[Score], bundle: Bundle) -> list[tuple[object, ...]]:
    return [
        (one.case.name, one.case.cohort, entry.label, *_measures(one, fit))
        for one in scores
        for entry, fit in zip(bundle.dicom.segment, one.overlaps, strict=True)
    ]


def _measures(one: Score, fit: Overlap) -> tuple[str, ...]:
    distance = f"{fit.hausdorff95:.3f}", "mm" if one.in_mm else "px"
    return (f"{fit.dice:.4f}", *distance, f"{fit.true_size:.4g}", f"{fit.predicted_size:.4g}", one.size_unit)
