"""Show how far the adult films of `chest_xray` carry: AUC on unseen adults, by the number of training patients.

    python models/learning_curve.py --datalist LISTS/chest_xray.json --data DATA [--features pixels|head|borrowed]

A logistic regression is trained on growing parts of the adult training patients, several times each; its penalty is
chosen on the validation patients. What it sees of a film: `pixels` are principal components of 64 × 64 of them, `head`
is what the head of `chest_xray` sees (its last stage), `borrowed` is the deepest stage of `lung_fields`. The network of
`chest_xray` has seen all adult training patients, so the small sizes of `head` are too good; that of `lung_fields` has
seen no adult and no finding. The last lines fit two forms to the curve and say where each would reach 0.85: one that
ends somewhere, and a kinder one that gains the same by every doubling.
"""

import argparse
import json
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from figures import auc, interval
from monai.bundle.config_parser import ConfigParser
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from node.bundles import SHIPPED

SEED, SIDE, COMPONENTS, DRAWS, GOAL = 20, 64, 40, 8, 0.85
PENALTIES = {"pixels": (0.0003, 0.003, 0.03)}
STAGE_PENALTIES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)
SHARES = (0.125, 0.25, 0.5, 1.0)

STAGES = {"head": ("chest_xray", "layer4"), "borrowed": ("lung_fields", "bottleneck")}

Array: TypeAlias = NDArray[np.float64]


def films(datalist: Path, part: str) -> list[dict[str, Any]]:
    """Return the adults of one part."""
    return [case for case in json.loads(datalist.read_text(encoding="utf-8"))[part] if case["cohort"] == "adults"]


def small(path: Path) -> Array:
    """Return one film as a row of small pixels, with mean 0 and deviation 1."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float64).ravel()
    return np.asarray((pixels - pixels.mean()) / (pixels.std() + 1e-6))


class Stage:
    """One stage of a trained network that ships, frozen; what lies behind it is not computed."""

    class Seen(Exception):
        """Holds what left the stage."""

    def __init__(self, bundle: str, layer: str) -> None:
        parser = ConfigParser(json.loads((SHIPPED / bundle / "configs" / "inference.json").read_text(encoding="utf-8")))
        self._before = parser.get_parsed_content("preprocessing")
        self._network = parser.get_parsed_content("network_def").eval()
        weights = SHIPPED / bundle / "models" / "model.pt"
        self._network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self._network.get_submodule(layer).register_forward_hook(self._stop)

    def _stop(self, layer: torch.nn.Module, given: object, found: torch.Tensor) -> None:
        raise self.Seen(found)

    def see(self, path: Path) -> Array:
        """Return mean, deviation and maximum of every channel for one film."""
        image = self._before({"image": str(path)})["image"].as_tensor()[None]
        try:
            with torch.inference_mode():
                self._network(image)
        except self.Seen as seen:
            places = seen.args[0][0].double().flatten(1)
            return np.asarray(torch.cat([places.mean(1), places.std(1), places.amax(1)]))
        raise AssertionError("the stage is on the way of every film")


def trained(rows: Array, labels: Array, penalty: float, features: str) -> Any:
    """Return the linear model trained on some films."""
    reduced = [PCA(min(COMPONENTS, len(labels) - 1), random_state=SEED)] if features == "pixels" else []
    return make_pipeline(*reduced, StandardScaler(), LogisticRegression(C=penalty, max_iter=500)).fit(rows, labels)


def scores(model: Any, pixels: Array, labels: Array) -> Array:
    """Return rows of truth and probability."""
    return np.column_stack([labels, model.predict_proba(pixels)[:, 1]])


def best(training: tuple[Array, Array], validation: tuple[Array, Array], features: str) -> Any:
    """Return the model with the penalty that gives the best AUC on the validation patients."""
    models = [trained(*training, penalty, features) for penalty in PENALTIES.get(features, STAGE_PENALTIES)]
    return max(models, key=lambda model: auc(scores(model, *validation)))


def curve(parts: dict[str, tuple[Array, Array]], patients: Array, features: str) -> tuple[list[int], list[float]]:
    """Print the curve line by line, and return numbers of patients and mean AUC on test."""
    rows, labels = parts["training"]
    names, random = np.unique(patients), np.random.default_rng(SEED)
    sizes, found = [], []
    print("patients  films  AUC on test: mean (lowest to highest of the draws)")
    for share in SHARES:
        drawn = [random.permutation(names)[: round(share * len(names))] for _ in range(DRAWS if share < 1 else 1)]
        kept = [np.isin(patients, some) for some in drawn]
        models = [best((rows[k], labels[k]), parts["validation"], features) for k in kept]
        results = [auc(scores(model, *parts["test"])) for model in models]
        count = np.mean([k.sum() for k in kept])
        print(f"{len(drawn[0]):8d} {count:6.0f}  {np.mean(results):.3f} ({min(results):.3f} to {max(results):.3f})")
        sizes.append(len(drawn[0]))
        found.append(float(np.mean(results)))
    return sizes, found


def extrapolate(sizes: list[int], found: list[float]) -> None:
    """Print two forms fitted to the curve, and the number of patients at which each reaches the goal."""
    slope, top = np.polyfit(-1 / np.sqrt(sizes), found, 1)
    needed = f"with {(slope / (top - GOAL)) ** 2:.0f} patients" if slope > 0 and top > GOAL else "never"
    print(f"AUC = {top:.3f} - {slope:.2f} / sqrt(patients): {GOAL} {needed}")
    gain, start = np.polyfit(np.log2(sizes), found, 1)
    needed = f"with {2 ** ((GOAL - start) / gain):.2g} patients" if gain > 0 else "never"
    print(f"AUC = {start:.3f} + {gain:.4f} by every doubling: {GOAL} {needed}")


def main() -> None:
    """Print the curve, its interval at full size, and where it would reach the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datalist", type=Path, required=True, help="chest_xray.json, written by datalists.py")
    parser.add_argument("--data", type=Path, required=True, help="folder with the labelled sets")
    parser.add_argument("--features", choices=("pixels", *STAGES), default="pixels", help="what a film is told by")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the same sums in the same order
    see = small if options.features == "pixels" else Stage(*STAGES[options.features]).see
    cases = {part: films(options.datalist, part) for part in ("training", "validation", "test")}
    parts = {
        part: (np.stack([see(options.data / c["image"]) for c in some]), np.array([float(c["label"]) for c in some]))
        for part, some in cases.items()
    }
    sizes, found = curve(parts, np.array([case["patient"] for case in cases["training"]]), options.features)
    model = best(parts["training"], parts["validation"], options.features)
    whole = interval(scores(model, *parts["test"]), [case["patient"] for case in cases["test"]], auc)
    low, high = whole["ci95"]
    print(f"all films, 95 % interval over patients: {whole['value']:.3f} ({low:.3f} to {high:.3f})")
    print(f"the same model on validation, where its penalty was chosen: {auc(scores(model, *parts['validation'])):.3f}")
    extrapolate(sizes, found)


if __name__ == "__main__":
    main()
