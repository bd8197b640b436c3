"""Where a chest network looks when it is right: does the saliency map of a true positive lie in the lung fields?

    python -m tests.bench.saliency --datalist LISTS/chest_xray.json --data DATA [--every N] [--cohort children] [--json]
    python -m tests.bench.saliency … --part validation --layers layer2 layer3 layer4

The second compares layers on validation patients, which is how the one in dicom.toml was chosen; the first measures
that one. Reads films with `chest_xray`, makes the map of each that is called abnormal and is, and compares it with the
lung fields that `lung_fields` draws on the same film. Says for these maps, with 95 % bootstrap intervals over
patients: how often the strongest place is in a lung, how much of the map lies there, how much of the film the lungs
cover (what a blind map would get), and how alike the map is to that of randomized weights (Adebayo 2018). The
reference is a network's too, and leaves out lung that an opacity hides.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from node import bundles
from node.bundles import Bundle, ExplainEntry
from node.findings import Volume
from workers.evaluate.images import volume
from workers.predict.explain import saliency
from workers.predict.network import Network

SEED, RESAMPLES = 20, 1000
FIGURES = (
    ("strongest place in a lung field", "strongest"),
    ("share of the map in the lung fields", "share"),
    ("share of the film that lung fields cover", "covered"),
    ("rank correlation with randomized weights", "randomized"),
)


class Looks:
    """The networks that say where one looks and where the lungs are, and one like the first that learned nothing."""

    def __init__(self, bundle: Bundle, layer: str | None = None) -> None:
        if bundle.dicom.explain is None:
            raise SystemExit("chest_xray has no [explain] in configs/dicom.toml")
        self._how = bundle.dicom.explain if layer is None else ExplainEntry(method="grad-cam", layer=layer)
        lungs = bundles.find("lung_fields")
        self.bundle = bundle
        self.chest, self.blank = (Network(bundle, "auto", bundle.digest) for _ in range(2))
        self.lungs = Network(lungs, "auto", lungs.digest)
        torch.manual_seed(SEED)
        for part in self.blank._network.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()

    def compare(self, film: Volume) -> dict[str, float] | None:
        """Return the figures of one film, None where it is not called abnormal."""
        if self.chest.read(film)[0] < self.bundle.dicom.finding[0].threshold:
            return None
        lungs = self.lungs.read(film)[0].T > 0
        found, blank = (self._map(network, film) for network in (self.chest, self.blank))
        return {
            "strongest": float(lungs[np.unravel_index(found.argmax(), found.shape)]),
            "share": float(found[lungs].sum() / found.sum()) if found.any() else 0.0,
            "covered": float(lungs.mean()),
            "randomized": float(spearmanr(found.ravel(), blank.ravel()).statistic) if blank.any() else 0.0,
        }

    def _map(self, network: Network, film: Volume) -> NDArray[np.float32]:
        return saliency(network, film, self._how, [self.bundle.dicom.finding[0].output])[0].values[0]


def measure(cases: Sequence[dict[str, Any]], data: Path, looks: Looks) -> list[tuple[str, dict[str, float]]]:
    """Return patient and figures of each true positive among `cases`."""
    found = []
    for number, case in enumerate(cases, 1):
        figures = looks.compare(volume(data / case["image"], 2))
        if figures is not None:
            found.append((str(case["patient"]), figures))
        print(f"\r{number}/{len(cases)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return found


def interval(values: NDArray[np.float64], patients: Sequence[str]) -> dict[str, Any]:
    """Return the mean of `values` and its 95 % bootstrap interval over patients."""
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    sums, counts = np.bincount(index, values), np.bincount(index)
    draws = np.random.default_rng(SEED).integers(len(names), size=(RESAMPLES, len(names)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"value": round(float(values.mean()), 3), "ci95": [round(float(low), 3), round(float(high), 3)]}


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datalist", type=Path, required=True, help="chest_xray.json of models/datalists.py")
    parser.add_argument("--data", type=Path, required=True, help="folder that its paths are relative to")
    parser.add_argument("--cohort", default="children")
    parser.add_argument("--every", type=int, default=1, help="read each N-th film only")
    parser.add_argument("--part", choices=["validation", "test"], default="test")
    parser.add_argument("--layers", nargs="*", default=[None], help="of the network; without it the bundle's own")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.part == "test" and options.layers != [None]:
        parser.error("layers are compared on validation patients: --part validation")
    known = json.loads(options.datalist.read_text(encoding="utf-8"))[options.part]
    cases = [case for case in known if case["cohort"] == options.cohort and case["label"] == 1][:: options.every]
    bundle = bundles.find("chest_xray")
    for layer in options.layers:
        found = measure(cases, options.data, Looks(bundle, layer))
        patients = [patient for patient, _ in found]
        told: dict[str, Any] = {"bundle": bundle.title, "part": options.part, "layer": layer or "as in dicom.toml"}
        told |= {"true_positives": len(found), "patients": len(set(patients))}
        told |= {key: interval(np.array([figures[key] for _, figures in found]), patients) for _, key in FIGURES}
        show(told, options.cohort, as_json=options.json)


def show(told: dict[str, Any], cohort: str, *, as_json: bool) -> None:
    """Print the figures of one layer."""
    if as_json:
        print(json.dumps(told, indent=1), flush=True)
        return
    print(f"{told['bundle']}, layer {told['layer']}, {told['part']} patients: ", end="")
    print(f"{told['true_positives']} true positives of {told['patients']} patients, {cohort}")
    for title, key in FIGURES:
        low, high = told[key]["ci95"]
        print(f"{title:42} {told[key]['value']:.3f}  ({low:.3f} to {high:.3f})", flush=True)


if __name__ == "__main__":
    main()
