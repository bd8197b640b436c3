"""The figures and their 95 % intervals: scikit-learn's statistics, resampled by patient.

Images of one patient are alike, so a resample draws patients, not images; a draw is a weight per image.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from workers.evaluate.request import RESAMPLES

SEED = 20
BINS = 10

Numbers = NDArray[np.float64]
Statistic = Callable[[NDArray[np.intp], Numbers], Mapping[str, float]]
"""Rows of a table and a weight for each → named figures, NaN where they are not defined."""


def classification(truth: NDArray[np.bool_], probability: Numbers, threshold: float) -> Statistic:
    """Return the statistic of one finding: `truth` and `probability` per image, present from `threshold` on."""

    def of(rows: NDArray[np.intp], weight: Numbers) -> dict[str, float]:
        y, p = truth[rows], probability[rows]
        matrix = confusion_matrix(y, p >= threshold, labels=[False, True], sample_weight=weight)
        both = bool(y.any() and not y.all())
        return _rates(matrix) | {
            "auroc": float(roc_auc_score(y, p, sample_weight=weight)) if both else math.nan,
            "auprc": float(average_precision_score(y, p, sample_weight=weight)) if y.any() else math.nan,
            "calibration_error": calibration_error(y, p, weight),
        }

    return of


def _rates(matrix: NDArray[Any]) -> dict[str, float]:
    (tn, fp), (fn, tp) = matrix.astype(float)
    return {
        "accuracy": _ratio(tp + tn, tp + tn + fp + fn),
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "precision": _ratio(tp, tp + fp),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def bins(truth: NDArray[np.bool_], probability: Numbers, weight: Numbers) -> NDArray[np.float64]:
    """Return, for each filled bin of equal width: mean probability, share that is present, weight; (bins, 3)."""
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    total = np.bincount(place, weight, BINS)
    filled = total > 0
    said = np.bincount(place, weight * probability, BINS)[filled] / total[filled]
    true = np.bincount(place, weight * truth, BINS)[filled] / total[filled]
    return np.column_stack([said, true, total[filled]])


def calibration_error(truth: NDArray[np.bool_], probability: Numbers, weight: Numbers) -> float:
    """Return the expected calibration error (Naeini et al. 2015)."""
    said, true, total = bins(truth, probability, weight).T
    return float(np.sum(total * np.abs(said - true)) / np.sum(total))


def means(columns: Mapping[str, Numbers]) -> Statistic:
    """Return the statistic that averages each column, one value per image, over the values that are numbers."""

    def of(rows: NDArray[np.intp], weight: Numbers) -> dict[str, float]:
        return {name: _mean(values[rows], weight) for name, values in columns.items()}

    return of


def _mean(values: Numbers, weight: Numbers) -> float:
    known = np.isfinite(values)
    return _ratio(float(values[known] @ weight[known]), float(weight[known].sum()))


def with_intervals(
    statistic: Statistic, rows: NDArray[np.intp], patients: Sequence[str], resamples: int = RESAMPLES
) -> dict[str, dict[str, Any]]:
    """Return each figure over `rows` as `{"value": v, "ci95": [low, high]}`; None where it is not defined.

    `patients` names the patient of each of `rows`. A resample a figure is not defined on counts for nothing.
    """
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    with config_context(assume_finite=True, skip_parameter_validation=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes that a resample lacks; NaN says it
        whole = statistic(rows, np.ones(len(rows)))
        drawn = _drawn(statistic, rows, index, len(names), resamples)
    return {
        name: {"value": _short(value), "ci95": _interval([d[name] for d in drawn])} for name, value in whole.items()
    }


def _drawn(
    statistic: Statistic, rows: NDArray[np.intp], index: NDArray[np.intp], patients: int, resamples: int
) -> list[Mapping[str, float]]:
    """Return the figures of each draw; of few patients there are few draws (5 have 126), and each is reckoned once."""
    if patients < 2:  # nothing to resample
        return []
    random = np.random.default_rng(SEED)
    figures: dict[bytes, Mapping[str, float]] = {}
    drawn = []
    for _ in range(resamples):
        times = np.bincount(random.integers(patients, size=patients), minlength=patients)
        draw = hashlib.sha256(times.tobytes()).digest()
        if draw not in figures:
            weight = times[index].astype(float)
            figures[draw] = statistic(rows[weight > 0], weight[weight > 0])
        drawn.append(figures[draw])
    return drawn


def _interval(values: list[float]) -> list[float] | None:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return [round(float(low), 4), round(float(high), 4)]


def _short(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
