"""The pictures of an evaluation as PNG: curves per cohort, distributions, and the worst cases."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from node.bundles import Bundle
from node.errors import Unsuitable
from node.findings import Volume
from workers.evaluate import images, metrics
from workers.evaluate.overlap import flat
from workers.evaluate.scoring import Comparison, Score
from workers.evaluate.tables import by_cohort, probability_of, truth_of

mpl.rcParams["text.parse_math"] = False  # a dollar in the name of a file or a cohort is a dollar

NAMES = re.compile(r"(roc|precision-recall|calibration|probabilities|worst|dice|sizes)(-\d+)?\.png")
"""What the pictures may be called."""
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
"""Told apart by people who see few colors (Okabe and Ito)."""
_TRUTH, _PREDICTED = "#56b4e9", "#e69f00"
_DPI = 110
_WIDEST = 60
"""In inches; matplotlib draws nothing of more than 65,535 pixels."""
_COLUMNS = 4

Draw = Callable[[Any, NDArray[np.bool_], NDArray[np.float64], str, str], None]


def classification(scores: Sequence[Score], bundle: Bundle, worst: int) -> dict[str, bytes]:
    """Return ROC, precision-recall, calibration, probabilities and the worst cases of each finding by file name."""
    found = {}
    for output, entry in enumerate(bundle.dicom.finding):
        end = f"-{output + 1}.png" if len(bundle.dicom.finding) > 1 else ".png"
        for name, draw, axes in _CURVES:
            found[name + end] = _curves(scores, output, draw, (entry.label, *axes))
        found["probabilities" + end] = _probabilities(scores, output, entry.label, entry.threshold)
        if shown := _wrong(scores, output, entry.threshold)[:worst]:
            found["worst" + end] = _films(shown, output, bundle)
    return found


def segmentation(
    scores: Sequence[Score], bundle: Bundle, worst: Sequence[tuple[Score, Comparison]]
) -> dict[str, bytes]:
    """Return the spread of Dice, predicted over true sizes, and the worst cases by file name."""
    found = {"dice.png": _spread(scores, bundle), "sizes.png": _sizes(scores, bundle)}
    if worst:
        figure, axes = _grid(len(worst))
        for (score, found_there), axis in zip(worst, axes, strict=False):
            _outlines(axis, found_there, f"Dice {score.dice:.3f}\n{_short(score.case.name)}")
        figure.suptitle("Worst cases: truth blue, prediction orange", fontsize=10)
        found["worst.png"] = _png(figure)
    return found


def _roc(axis: Any, truth: NDArray[np.bool_], probability: NDArray[np.float64], name: str, color: str) -> None:
    if truth.any() and not truth.all():
        false_alarms, found, _ = roc_curve(truth, probability)
        axis.plot(false_alarms, found, color=color, label=name)
    axis.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8, linestyle="--")


def _precision_recall(
    axis: Any, truth: NDArray[np.bool_], probability: NDArray[np.float64], name: str, color: str
) -> None:
    if truth.any():
        precision, recall, _ = precision_recall_curve(truth, probability)
        axis.step(recall, precision, where="post", color=color, label=name)


def _calibration(axis: Any, truth: NDArray[np.bool_], probability: NDArray[np.float64], name: str, color: str) -> None:
    said, true, images_ = metrics.bins(truth, probability, np.ones(len(truth))).T
    axis.plot(said, true, color=color, linewidth=1, label=name)
    axis.scatter(said, true, 12 + 120 * images_ / images_.sum(), color=color, alpha=0.7)
    axis.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8, linestyle="--")


_CURVES: tuple[tuple[str, Draw, tuple[str, str]], ...] = (
    ("roc", _roc, ("1 - specificity", "Sensitivity")),
    ("precision-recall", _precision_recall, ("Sensitivity (recall)", "Precision")),
    ("calibration", _calibration, ("Probability that was said", "Share that is present")),
)


def _curves(scores: Sequence[Score], output: int, draw: Draw, titles: tuple[str, str, str]) -> bytes:
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axis = figure.subplots()
    truth, probability = truth_of(scores, output), probability_of(scores, output)
    for number, (cohort, rows) in enumerate(by_cohort(scores).items()):
        name = f" {cohort}" if cohort.startswith("_") else cohort  # matplotlib keeps those out of a legend
        draw(axis, truth[rows], probability[rows], name, _COLORS[number % len(_COLORS)])
    axis.set(title=titles[0], xlabel=titles[1], ylabel=titles[2], xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    return _finished(figure, axis)


def _probabilities(scores: Sequence[Score], output: int, title: str, threshold: float) -> bytes:
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axis = figure.subplots()
    truth, probability = truth_of(scores, output), probability_of(scores, output)
    for there, name, color in ((False, "absent", _COLORS[0]), (True, "present", _COLORS[1])):
        axis.hist(probability[truth == there], bins=20, range=(0, 1), color=color, alpha=0.6, label=name)
    axis.axvline(threshold, color="#444444", linestyle="--", linewidth=1, label=f"threshold {threshold:.2f}")
    axis.set(title=title, xlabel="Probability", ylabel="Images", yscale="symlog")
    return _finished(figure, axis)


def _wrong(scores: Sequence[Score], output: int, threshold: float) -> list[Score]:
    """The scores on the wrong side of the threshold, those furthest from the truth first."""
    truth, probability = truth_of(scores, output), probability_of(scores, output)
    wrong = np.flatnonzero((probability >= threshold) != truth).tolist()
    return [scores[place] for place in sorted(wrong, key=lambda place: -abs(probability[place] - truth[place]))]


def _films(shown: Sequence[Score], output: int, bundle: Bundle) -> bytes:
    figure, axes = _grid(len(shown))
    for score, axis in zip(shown, axes, strict=False):
        there = isinstance(score.case.truth, tuple) and score.case.truth[output]
        told = f"said {score.probabilities[output]:.2f}, {'present' if there else 'absent'}\n{_short(score.case.name)}"
        try:
            volume = images.volume_for(score.case.image, bundle)
        except (Unsuitable, OSError):  # read a moment ago; the file went away
            continue
        _slice(axis, volume, len(volume.pixels) // 2, told)
    return _png(figure)


def _spread(scores: Sequence[Score], bundle: Bundle) -> bytes:
    cohorts = by_cohort(scores)
    width = min(max(4.6, 1.3 * len(cohorts) * len(bundle.dicom.segment)), _WIDEST)
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    axis = figure.subplots()
    names, values = [], []
    for cohort, rows in cohorts.items():
        for number, entry in enumerate(bundle.dicom.segment):
            dice = np.array([scores[row].overlaps[number].dice for row in rows])
            names.append(f"{entry.label}\n{cohort}")
            values.append(dice[np.isfinite(dice)])
    axis.boxplot(values, tick_labels=names, widths=0.5, flierprops={"markersize": 3})
    axis.tick_params(axis="x", labelsize=7)
    axis.set(ylabel="Dice", title="Dice per image")
    axis.grid(axis="y", color="#e6e6e6")
    return _png(figure)


def _sizes(scores: Sequence[Score], bundle: Bundle) -> bytes:
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axis = figure.subplots()
    unit = scores[0].size_unit
    for number, entry in enumerate(bundle.dicom.segment):
        fits = [score.overlaps[number] for score in scores if score.size_unit == unit]
        true, said = [fit.true_size for fit in fits], [fit.predicted_size for fit in fits]
        axis.scatter(true, said, 10, color=_COLORS[number % len(_COLORS)], alpha=0.6, label=entry.label)
    axis.axline((0, 0), slope=1, color="#bbbbbb", linewidth=0.8, linestyle="--")
    axis.set(xlabel=f"True size ({unit})", ylabel=f"Predicted size ({unit})", title="Sizes")
    return _finished(figure, axis)


def _outlines(axis: Any, found: Comparison, title: str) -> None:
    """Both outlines on the slice where they differ most."""
    truth, predicted = flat(found.truth), flat(found.predicted)
    at = int((truth != predicted).sum(axis=(1, 2)).argmax())
    _slice(axis, found.volume, at, title)
    for labels, color in ((truth[at], _TRUTH), (predicted[at], _PREDICTED)):
        for value in np.unique(labels[labels > 0]):
            axis.contour(labels == value, levels=[0.5], colors=[color], linewidths=1)


def _slice(axis: Any, volume: Volume, at: int, title: str) -> None:
    low, high = np.percentile(volume.pixels[at], [0.5, 99.5])
    _, rows, columns = volume.spacing_mm or (1.0, 1.0, 1.0)
    axis.imshow(volume.pixels[at], cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=rows / columns)
    axis.set_title(title, fontsize=7)


def _grid(count: int) -> tuple[Figure, list[Any]]:
    rows = -(-count // _COLUMNS)
    figure = Figure(figsize=(2.5 * min(count, _COLUMNS), 2.8 * rows), layout="constrained")
    axes = np.ravel(figure.subplots(rows, min(count, _COLUMNS), squeeze=False))
    for axis in axes:
        axis.axis("off")
    return figure, list(axes)


def _short(name: str, longest: int = 34) -> str:
    return name if len(name) <= longest else f"…{name[1 - longest :]}"


def _finished(figure: Figure, axis: Any) -> bytes:
    axis.grid(color="#eeeeee")
    axis.set_axisbelow(True)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, frameon=False)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    out = BytesIO()
    figure.savefig(out, format="png", dpi=_DPI)
    return out.getvalue()
