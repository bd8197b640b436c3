"""After a training: temperature and threshold chosen again on the validation patients, and written into the bundle.

Only for a classification with one finding, which is what a data list has labels for. Never looks at a test patient.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from node import bundles, clock
from node.bundles import Bundle
from node.errors import Unsuitable
from workers.evaluate import manifest, metrics
from workers.evaluate.calibration import SENSITIVITY, logit, scaled, temperature_of, threshold_of
from workers.evaluate.scoring import score
from workers.predict.network import Network
from workers.train import datalist

Tell = Callable[[dict[str, Any]], None]
_CONFIGS = ("inference.json", "evaluate.json")
VALIDATION = "validation.csv"
FEW = 10
"""Images of either class below which no temperature is chosen: one number per ten events (Peduzzi et al. 1996)."""
FEW_PRESENT = 20
"""Images with the finding below which a sensitivity of 95 % cannot be told from one at which none is missed."""


def calibrate(
    out: Path, old: Bundle, cases: Sequence[Mapping[str, Any]], data: Path, now: float, tell: Tell
) -> dict[str, Any]:
    """Choose on `cases` (image paths relative to `data`), write into `out`, and return what was chosen.

    Writes the `temperature` of inference.json and evaluate.json where they have one, `threshold` and `sensitivity` of
    dicom.toml, and docs/calibration.json. Returns an empty table, and leaves what `old`, the bundle trained from, had,
    where one class has no image.
    """
    bundle = bundles.load(out)
    if len(bundle.dicom.finding) != 1:
        return {}
    own = _temperature(old)
    _set_temperature(out, 1.0)
    datalist.write_manifest(out / VALIDATION, cases, data, bundle)
    truth, probability = _read(bundles.load(out), out, now, tell)
    if len(np.unique(truth)) < 2:
        _set_temperature(out, own or 1.0)
        return {}
    chosen = choose(truth, probability, old.dicom.finding[0].sensitivity or SENSITIVITY, own)
    _set_temperature(out, chosen["temperature"])
    _set_threshold(out / "configs" / "dicom.toml", chosen)
    (out / "docs" / "calibration.json").write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")
    return chosen


def choose(
    truth: NDArray[np.float64], probability: NDArray[np.float64], sensitivity: float, own: float | None
) -> dict[str, Any]:
    """Return temperature and threshold for `probability` at temperature 1, and what they give on the same images.

    `own`: the temperature of the old weights, None where the bundle has none. It stays where the images cannot say a
    better one; `notes` tells that, and that a threshold rests on few images.
    """
    present = int(truth.sum())
    kept = _why_kept(truth, probability) if own else ""
    temperature = (own or 1.0) if kept or not own else round(temperature_of(truth, logit(probability)), 3)
    after = scaled(probability, temperature)
    threshold = threshold_of(truth, after, sensitivity)
    figures = metrics.classification(truth == 1, after, threshold)(np.arange(len(truth)), np.ones(len(truth)))
    before = metrics.calibration_error(truth == 1, probability, np.ones(len(truth)))
    likely = binomtest(round(figures["sensitivity"] * present), present).proportion_ci()
    notes = [f"The temperature is still that of the old weights, {temperature:g}: {kept}."] if kept else []
    if present < FEW_PRESENT:
        notes.append(
            f"The threshold rests on {present} images with the finding, fewer than {FEW_PRESENT}: its sensitivity on "
            f"other patients may be anything from {100 * likely.low:.0f} to {100 * likely.high:.0f} %."
        )
    return {
        "images": len(truth),
        "present": present,
        "temperature": temperature,
        "temperature_is": "none" if own is None else "kept" if kept else "chosen",
        "threshold": threshold,
        "asked_sensitivity": sensitivity,
        **{name: round(figures[name], 4) for name in ("sensitivity", "specificity", "calibration_error")},
        "sensitivity_ci95": [round(likely.low, 4), round(likely.high, 4)],
        "calibration_error_before": round(before, 4),
        "notes": notes,
    }


def _why_kept(truth: NDArray[np.float64], probability: NDArray[np.float64]) -> str:
    """Why these images cannot say a temperature; empty where they can."""
    present, absent = probability[truth == 1], probability[truth == 0]
    if (fewer := min(len(present), len(absent))) < FEW:
        return f"one class has {fewer} validation images, fewer than {FEW}"
    if present.min() > absent.max():
        return "the validation images are told apart without an error, to which certainty has no end"
    return ""


def _read(bundle: Bundle, out: Path, now: float, tell: Tell) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Truth and probability of every validation image that can be read, as the node reads it."""
    network, pairs = Network(bundle, "auto", bundle.digest), []
    cases = manifest.load(out / VALIDATION, bundle)
    for done, case in enumerate(cases):
        tell({"total": len(cases), "done": done, "image": f"calibration, {case.name}"})
        try:
            found = score(case, network, bundle, clock.to_datetime(now), str(out / VALIDATION))
        except Unsuitable:
            continue
        pairs.append((float(isinstance(case.truth, tuple) and case.truth[0]), found.probabilities[0]))
    truth, probability = np.array(pairs, np.float64).reshape(-1, 2).T
    return truth, probability


def _temperature(bundle: Bundle) -> float | None:
    found = bundles.read_config(bundles.inference_config(bundle.folder)).get("temperature")
    return float(found) if isinstance(found, int | float) and found > 0 else None


def _set_temperature(out: Path, value: float) -> None:
    """Write the temperature into the configurations that have one."""
    for path in (out / "configs" / name for name in _CONFIGS if (out / "configs" / name).is_file()):
        text = path.read_text(encoding="utf-8")
        path.write_text(
            re.sub(r'("temperature"\s*:\s*)[0-9.eE+-]+', rf"\g<1>{value:g}", text, count=1), encoding="utf-8"
        )


def _set_threshold(path: Path, chosen: Mapping[str, Any]) -> None:
    """Write threshold and sensitivity into dicom.toml, and whether probabilities are calibrated; its comments stay."""
    text = re.sub(r"(?m)^sensitivity\s*=.*\n", "", path.read_text(encoding="utf-8"))
    said = f"threshold = {chosen['threshold']:g}\nsensitivity = {chosen['asked_sensitivity']:g}"
    text = re.sub(r"(?m)^threshold\s*=.*$", said, text, count=1)
    if chosen["temperature_is"] != "none":
        is_calibrated = str(chosen["temperature_is"] == "chosen").lower()
        text = re.sub(r"(?m)^calibrated\s*=.*$", f"calibrated = {is_calibrated}", text, count=1)
    path.write_text(text, encoding="utf-8")
