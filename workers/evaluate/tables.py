"""Scores become figures per cohort, in the shape that a bundle's `docs/metrics.json` has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.bundles import Bundle
from workers.evaluate import metrics
from workers.evaluate.manifest import ALL
from workers.evaluate.request import RESAMPLES
from workers.evaluate.scoring import Score

Rows = NDArray[np.intp]
Table = dict[str, Any]
Busy = Callable[[str], None]


def by_cohort(scores: Sequence[Score]) -> dict[str, Rows]:
    """Return the places of each cohort's scores, by name, and of all together where there are several."""
    found: dict[str, list[int]] = {}
    for place, one in enumerate(scores):
        found.setdefault(one.case.cohort, []).append(place)
    places = {name: np.array(found[name], dtype=np.intp) for name in sorted(found)}
    return places if len(places) == 1 else places | {ALL: np.arange(len(scores))}


def cohorts(
    scores: Sequence[Score], bundle: Bundle, resamples: int = RESAMPLES, busy: Busy = lambda of: None
) -> dict[str, Table]:
    """Return the figures of every cohort: `{cohort: {figure: {finding or segment: {"value", "ci95"}}}}` and counts.

    `busy` hears which finding or segment of a cohort is reckoned: those of many images take minutes.
    """
    make = _findings if bundle.dicom.finding else _segments
    tables = {}
    for cohort, rows in by_cohort(scores).items():
        patients = [scores[row].case.patient for row in rows]
        counts = {"images": len(rows), "patients": len(set(patients))}
        tables[cohort] = counts | make(scores, rows, patients, bundle, resamples, busy)
    return tables


def truth_of(scores: Sequence[Score], output: int) -> NDArray[np.bool_]:
    """Return, per score, whether finding number `output` is there."""
    return np.array([score.case.truth[output] for score in scores if isinstance(score.case.truth, tuple)], dtype=bool)


def probability_of(scores: Sequence[Score], output: int) -> NDArray[np.float64]:
    """Return, per score, the probability of finding number `output`."""
    return np.array([score.probabilities[output] for score in scores])


def _findings(
    scores: Sequence[Score], rows: Rows, patients: Sequence[str], bundle: Bundle, resamples: int, busy: Busy
) -> Table:
    table: Table = {}
    for output, entry in enumerate(bundle.dicom.finding):
        busy(entry.label)
        truth, probability = truth_of(scores, output), probability_of(scores, output)
        statistic = metrics.classification(truth, probability, entry.threshold)
        figures: Table = {**metrics.with_intervals(statistic, rows, patients, resamples)}
        figures["confusion"] = _confusion(truth[rows], probability[rows] >= entry.threshold)
        figures["calibration"] = _calibration(truth[rows], probability[rows])
        for name, figure in figures.items():
            table.setdefault(name, {})[entry.label] = figure
    return table


def _confusion(truth: NDArray[np.bool_], said: NDArray[np.bool_]) -> dict[str, int]:
    return {
        "true_positive": int((truth & said).sum()),
        "false_negative": int((truth & ~said).sum()),
        "false_positive": int((~truth & said).sum()),
        "true_negative": int((~truth & ~said).sum()),
    }


def _calibration(truth: NDArray[np.bool_], probability: NDArray[np.float64]) -> list[dict[str, float]]:
    found = metrics.bins(truth, probability, np.ones(len(truth)))
    return [
        {"probability": round(p, 4), "present": round(share, 4), "images": int(n)} for p, share, n in found.tolist()
    ]


def _segments(
    scores: Sequence[Score], rows: Rows, patients: Sequence[str], bundle: Bundle, resamples: int, busy: Busy
) -> Table:
    table: Table = {}
    for number, entry in enumerate(bundle.dicom.segment):
        busy(entry.label)
        columns = {name: values for name, values in _columns(scores, number).items() if np.isfinite(values[rows]).any()}
        figures: Mapping[str, Any] = metrics.with_intervals(metrics.means(columns), rows, patients, resamples)
        for name, figure in {**figures, "presence": _presence(scores, rows, number)}.items():
            table.setdefault(name, {})[entry.label] = figure
    return table


def _columns(scores: Sequence[Score], number: int) -> dict[str, NDArray[np.float64]]:
    """One value per score for each figure of one segment; distances in mm and in pixels never meet in one mean."""
    fits = [score.overlaps[number] for score in scores]
    errors = [fit.size_error_percent for fit in fits]
    return {
        "dice": np.array([fit.dice for fit in fits]),
        "hausdorff95_mm": _where([fit.hausdorff95 for fit in fits], [score.in_mm for score in scores]),
        "hausdorff95_px": _where([fit.hausdorff95 for fit in fits], [not score.in_mm for score in scores]),
        "volume_error_percent": _where(errors, [score.size_unit == "mL" for score in scores]),
        "area_error_percent": _where(errors, [score.size_unit != "mL" for score in scores]),
    }


def _where(values: Sequence[float], kept: Sequence[bool]) -> NDArray[np.float64]:
    return np.array([value if keep else math.nan for value, keep in zip(values, kept, strict=True)])


def _presence(scores: Sequence[Score], rows: Rows, number: int) -> dict[str, int]:
    """Count the images on which a segment is there or not, and found or not: Dice alone hides both."""
    fits = [scores[row].overlaps[number] for row in rows]
    said = np.array([fit.predicted_size > 0 for fit in fits])
    return _confusion(np.array([fit.true_size > 0 for fit in fits]), said)
