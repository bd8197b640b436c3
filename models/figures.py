"""Turn the files `evaluate.json` wrote into the figures of a bundle: one value and its 95 % interval per cohort.

    python models/figures.py segmentation --datalist FILE --evaluation DIR --out …/metrics.json --parts NAME …
    python models/figures.py classification --datalist FILE --validation DIR --evaluation DIR --out …/metrics.json
    python models/figures.py calibration --datalist FILE --validation DIR

`calibration` reads validation patients evaluated with temperature 1 and prints the temperature and threshold that
`classification` records. Intervals resample patients, not images, because images of one patient are alike.
"""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from workers.evaluate.calibration import SENSITIVITY, logit, scaled, temperature_of, threshold_of

SEED = 20
RESAMPLES = 1000

Array: TypeAlias = NDArray[np.float64]
Case: TypeAlias = Mapping[str, Any]
Statistic: TypeAlias = Callable[[Array], float]


def cases(datalist: Path, part: str) -> dict[str, Case]:
    """Return the cases of one part by file name, the name `evaluate.json` writes them under."""
    return {Path(case["image"]).name: case for case in json.loads(datalist.read_text(encoding="utf-8"))[part]}


def interval(values: Array, patients: Sequence[str], statistic: Statistic) -> dict[str, Any]:
    """Return `statistic` over the rows of `values` and its 95 % bootstrap interval over patients.

    A resample the statistic is not defined on (one class only) counts for nothing.
    """
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    rows = [np.flatnonzero(index == number) for number in range(len(names))]
    random = np.random.default_rng(SEED)
    draws = (random.integers(len(names), size=len(names)) for _ in range(RESAMPLES))
    found = [statistic(values[np.concatenate([rows[n] for n in draw])]) for draw in draws]
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return {"value": _short(statistic(values)), "ci95": [_short(low), _short(high)]}


def _short(value: float) -> float:
    return round(float(value), 4)


def by_cohort(names: Sequence[str], known: Mapping[str, Case]) -> dict[str, list[int]]:
    """Return the rows of each cohort, and of all cases together where there are several cohorts."""
    found: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        found.setdefault(known[name]["cohort"], []).append(row)
    return found if len(found) == 1 else {**dict(sorted(found.items())), "all": list(range(len(names)))}


def segmentation(datalist: Path, evaluation: Path, parts: Sequence[str]) -> dict[str, Any]:
    """Return mean Dice and 95th percentile surface distance (voxels) of each part, per cohort of the test patients."""
    known = cases(datalist, "test")
    figures: dict[str, Any] = {}
    for metric, title in (("dice", "dice"), ("hd95", "hausdorff95_voxels")):
        names, values = _read_scores(evaluation / f"{metric}_raw.csv", len(parts))
        for cohort, rows in by_cohort(names, known).items():
            patients = [known[names[row]]["patient"] for row in rows]
            entry = figures.setdefault(cohort, {"images": len(rows), "patients": len(set(patients))})
            entry[title] = {
                part: interval(values[rows, column], patients, lambda v: float(np.mean(v)))
                for column, part in enumerate(parts)
            }
    return {"part": "test", "cohorts": figures}


def _read_scores(path: Path, columns: int) -> tuple[list[str], Array]:
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))[1:]
    return [Path(line[0]).name for line in lines], np.array(
        [[float(v) for v in line[1 : columns + 1]] for line in lines]
    )


def _read_probabilities(folder: Path, known: Mapping[str, Case]) -> tuple[list[str], Array]:
    """Return file names and an array (images, 2) of truth and probability."""
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        lines = [(Path(line[0]).name, float(line[1])) for line in csv.reader(file)]
    names = [name for name, _ in lines]
    return names, np.array([[known[name]["label"], probability] for name, probability in lines])


def calibration_error(pairs: Array, bins: int = 10) -> float:
    """Return the expected calibration error of (truth, probability) rows, in bins of equal width."""
    place = np.minimum((pairs[:, 1] * bins).astype(int), bins - 1)
    filled = [pairs[place == number] for number in np.unique(place)]
    return float(sum(len(rows) * abs(np.mean(rows[:, 0]) - np.mean(rows[:, 1])) for rows in filled) / len(pairs))


def auc(pairs: Array) -> float:
    """Return the area under the ROC curve of (truth, probability) rows, NaN where one class is absent."""
    truth = pairs[:, 0] == 1
    positive, negative = int(truth.sum()), int((~truth).sum())
    if not positive or not negative:
        return float("nan")
    ranks = float(rankdata(pairs[:, 1])[truth].sum())
    return (ranks - positive * (positive + 1) / 2) / (positive * negative)


def _rate(truth: int, threshold: float) -> Statistic:
    """Return sensitivity (truth 1) or specificity (truth 0) at a threshold as a statistic."""

    def statistic(pairs: Array) -> float:
        kept = pairs[pairs[:, 0] == truth, 1] >= threshold
        return float(np.mean(kept == bool(truth))) if len(kept) else float("nan")

    return statistic


def classification(datalist: Path, validation: Path, evaluation: Path) -> dict[str, Any]:
    """Return temperature and threshold chosen on validation, and what they give on the test patients per cohort."""
    chosen = calibration(datalist, validation)
    known = cases(datalist, "test")
    names, pairs = _read_probabilities(evaluation, known)
    statistics: dict[str, Statistic] = {
        "auc": auc,
        "sensitivity": _rate(1, chosen["threshold"]),
        "specificity": _rate(0, chosen["threshold"]),
        "calibration_error": calibration_error,
    }
    figures: dict[str, Any] = {}
    for cohort, rows in by_cohort(names, known).items():
        patients = [known[names[row]]["patient"] for row in rows]
        figures[cohort] = {
            "images": len(rows),
            "patients": len(set(patients)),
            "abnormal": int(pairs[rows, 0].sum()),
            "calibration_error_if_perfect": _short(unavoidable_error(pairs[rows])),
            **{name: interval(pairs[rows], patients, statistic) for name, statistic in statistics.items()},
        }
    return {"chosen_on_validation": chosen, "part": "test", "cohorts": figures}


def unavoidable_error(pairs: Array, draws: int = 400) -> float:
    """Return the mean calibration error of a perfect model: labels drawn by the probabilities of `pairs`.

    With few images no bin has the share it should, so that the error of a small cohort is never near 0.
    """
    random = np.random.default_rng(SEED)
    truths = (random.random(len(pairs)) < pairs[:, 1] for _ in range(draws))
    return float(np.mean([calibration_error(np.column_stack([truth, pairs[:, 1]])) for truth in truths]))


def command() -> str:
    """Return the command that is running, every path but the last part of it left out."""
    return " ".join(["python models/figures.py", *(Path(word).name if "/" in word else word for word in sys.argv[1:])])


def calibration(datalist: Path, validation: Path) -> dict[str, Any]:
    """Return temperature and threshold, and what they give there, from validation patients at temperature 1."""
    known = cases(datalist, "validation")
    names, pairs = _read_probabilities(validation, known)
    truth = pairs[:, 0]
    temperature = round(temperature_of(truth, logit(pairs[:, 1])), 3)
    after = np.column_stack([truth, scaled(pairs[:, 1], temperature)])
    threshold = threshold_of(truth, after[:, 1])
    return {
        "temperature": temperature,
        "threshold": threshold,
        "asked_sensitivity": SENSITIVITY,
        "sensitivity": _short(_rate(1, threshold)(after)),
        "specificity": _short(_rate(0, threshold)(after)),
        "sensitivity_by_cohort": {
            cohort: _short(_rate(1, threshold)(after[rows])) for cohort, rows in by_cohort(names, known).items()
        },
        "calibration_error_before": _short(calibration_error(pairs)),
        "calibration_error": _short(calibration_error(after)),
    }


def main() -> None:
    """Compute the figures asked for; write them to `--out`, or print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("segmentation", "classification", "calibration"))
    parser.add_argument("--datalist", type=Path, required=True, help="list written by datalists.py")
    parser.add_argument("--evaluation", type=Path, help="output_dir of evaluate.json on the test patients")
    parser.add_argument(
        "--validation", type=Path, help="output_dir of evaluate.json --part validation --temperature 1.0"
    )
    parser.add_argument("--parts", nargs="+", default=[], help="names of the segments, in the order of their values")
    parser.add_argument("--out", type=Path, help="file to write instead of printing")
    options = parser.parse_args()
    if options.kind == "segmentation":
        figures = segmentation(options.datalist, options.evaluation, options.parts)
    elif options.kind == "classification":
        figures = classification(options.datalist, options.validation, options.evaluation)
    else:
        figures = calibration(options.datalist, options.validation)
    kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out and options.out.is_file() else {}
    kept = {key: kept[key] for key in ("guard",) if key in kept}  # measured by tests/bench/guard.py, on other images
    text = json.dumps({"command": command(), **figures, **kept}, indent=1) + "\n"
    print(text, end="") if options.out is None else options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
