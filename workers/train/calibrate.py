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
_LIST = "validation.csv"


def calibrate(out: Path, cases: Sequence[Mapping[str, Any]], data: Path, now: float, tell: Tell) -> dict[str, Any]:
    """Choose on `cases` (image paths relative to `data`), write into `out`, and return what was chosen.

    Writes the `temperature` of inference.json and evaluate.json where they have one, `threshold` and `sensitivity` of
    dicom.toml, and docs/calibration.json. Returns an empty table, and changes nothing, where one class has no image.
    """
    bundle = bundles.load(out)
    if len(bundle.dicom.finding) != 1:
        return {}
    has_temperature = _set_temperature(out, 1.0)
    datalist.write_manifest(out / _LIST, cases, data, bundle)
    truth, probability = _read(bundles.load(out), out, now, tell)
    if len(np.unique(truth)) < 2:
        _set_temperature(out, _temperature(bundle))
        return {}
    chosen = choose(truth, probability, bundle.dicom.finding[0].sensitivity or SENSITIVITY, has_temperature)
    if has_temperature:
        _set_temperature(out, chosen["temperature"])
    _set_threshold(out / "configs" / "dicom.toml", chosen)
    (out / "docs" / "calibration.json").write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")
    return chosen


def choose(
    truth: NDArray[np.float64], probability: NDArray[np.float64], sensitivity: float, has_temperature: bool
) -> dict[str, Any]:
    """Return temperature and threshold for `probability` at temperature 1, and what they give on the same images."""
    temperature = round(temperature_of(truth, logit(probability)), 3) if has_temperature else 1.0
    after = scaled(probability, temperature)
    threshold = threshold_of(truth, after, sensitivity)
    figures = metrics.classification(truth == 1, after, threshold)(np.arange(len(truth)), np.ones(len(truth)))
    before = metrics.calibration_error(truth == 1, probability, np.ones(len(truth)))
    return {
        "images": len(truth),
        "temperature": temperature,
        "threshold": threshold,
        "asked_sensitivity": sensitivity,
        **{name: round(figures[name], 4) for name in ("sensitivity", "specificity", "calibration_error")},
        "calibration_error_before": round(before, 4),
    }


def _read(bundle: Bundle, out: Path, now: float, tell: Tell) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Truth and probability of every validation image that can be read, as the node reads it."""
    network, pairs = Network(bundle, "auto", bundle.digest), []
    cases = manifest.load(out / _LIST, bundle)
    for done, case in enumerate(cases):
        tell({"total": len(cases), "done": done, "image": f"calibration, {case.name}"})
        try:
            found = score(case, network, bundle, clock.to_datetime(now), str(out / _LIST))
        except Unsuitable:
            continue
        pairs.append((float(isinstance(case.truth, tuple) and case.truth[0]), found.probabilities[0]))
    truth, probability = np.array(pairs, np.float64).reshape(-1, 2).T
    return truth, probability


def _temperature(bundle: Bundle) -> float:
    said = bundles.read_config(bundles.inference_config(bundle.folder))
    return float(said.get("temperature", 1.0))


def _set_temperature(out: Path, value: float) -> bool:
    """Write the temperature into the configurations that have one; return whether inference.json does."""
    changed = set()
    for path in (out / "configs" / name for name in _CONFIGS if (out / "configs" / name).is_file()):
        text = path.read_text(encoding="utf-8")
        new, count = re.subn(r'("temperature"\s*:\s*)[0-9.eE+-]+', rf"\g<1>{value:g}", text, count=1)
        if count:
            path.write_text(new, encoding="utf-8")
            changed.add(path.name)
    return _CONFIGS[0] in changed


def _set_threshold(path: Path, chosen: Mapping[str, Any]) -> None:
    """Write threshold and sensitivity into dicom.toml; its comments stay."""
    text = re.sub(r"(?m)^sensitivity\s*=.*\n", "", path.read_text(encoding="utf-8"))
    said = f"threshold = {chosen['threshold']:g}\nsensitivity = {chosen['asked_sensitivity']:g}"
    path.write_text(re.sub(r"(?m)^threshold\s*=.*$", said, text, count=1), encoding="utf-8")
