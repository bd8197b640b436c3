"""Show how far the adult films of `chest_xray` carry: AUC of a linear model on unseen adults, by training patients.

    python models/learning_curve.py --datalist LISTS/chest_xray.json --data DATA

The model is a logistic regression on principal components of 64 × 64 pixels, chosen because it trains in seconds; the
curve of a network lies elsewhere. Each size is drawn several times from the training patients; the penalty is chosen
on the validation patients. The last lines fit `AUC = a - b / sqrt(patients)` and say where that would reach 0.85.
"""

import argparse
import json
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from figures import auc, interval
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SEED, SIDE, COMPONENTS, DRAWS, GOAL = 20, 64, 40, 8, 0.85
PENALTIES = (0.0003, 0.003, 0.03)
SHARES = (0.125, 0.25, 0.5, 1.0)

Array: TypeAlias = NDArray[np.float64]


def films(datalist: Path, data: Path, part: str) -> tuple[Array, Array, list[str]]:
    """Return pixels (film, 64 · 64), labels and patients of the adults of one part."""
    cases = [case for case in json.loads(datalist.read_text(encoding="utf-8"))[part] if case["cohort"] == "adults"]
    pixels = np.stack([film(data / case["image"]) for case in cases])
    return pixels, np.array([float(case["label"]) for case in cases]), [case["patient"] for case in cases]


def film(path: Path) -> Array:
    """Return one film as a row of small pixels, with mean 0 and deviation 1."""
    with Image.open(path) as image:
        small = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float64).ravel()
    return np.asarray((small - small.mean()) / (small.std() + 1e-6))


def trained(pixels: Array, labels: Array, penalty: float) -> Any:
    """Return the linear model trained on some films."""
    steps = PCA(min(COMPONENTS, len(labels) - 1), random_state=SEED), StandardScaler()
    return make_pipeline(*steps, LogisticRegression(C=penalty, max_iter=500)).fit(pixels, labels)


def scores(model: Any, pixels: Array, labels: Array) -> Array:
    """Return rows of truth and probability."""
    return np.column_stack([labels, model.predict_proba(pixels)[:, 1]])


def best(training: tuple[Array, Array], validation: tuple[Array, Array]) -> Any:
    """Return the model with the penalty that gives the best AUC on the validation patients."""
    models = [trained(*training, penalty) for penalty in PENALTIES]
    return max(models, key=lambda model: auc(scores(model, *validation)))


def main() -> None:
    """Print the curve, its interval at full size, and where it would reach the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datalist", type=Path, required=True, help="chest_xray.json, written by datalists.py")
    parser.add_argument("--data", type=Path, required=True, help="folder with the labelled sets")
    options = parser.parse_args()
    pixels, labels, patients = films(options.datalist, options.data, "training")
    validation = films(options.datalist, options.data, "validation")[:2]
    *test, tested = films(options.datalist, options.data, "test")
    names = np.unique(patients)
    random = np.random.default_rng(SEED)
    sizes, found = [], []
    print("patients  films  AUC on test: mean (lowest to highest of the draws)")
    for share in SHARES:
        drawn = [random.permutation(names)[: round(share * len(names))] for _ in range(DRAWS if share < 1 else 1)]
        kept = [np.isin(patients, some) for some in drawn]
        results = [auc(scores(best((pixels[k], labels[k]), validation), *test)) for k in kept]
        count = np.mean([k.sum() for k in kept])
        print(f"{len(drawn[0]):8d} {count:6.0f}  {np.mean(results):.3f} ({min(results):.3f} to {max(results):.3f})")
        sizes.append(len(drawn[0]))
        found.append(float(np.mean(results)))
    whole = interval(scores(best((pixels, labels), validation), *test), tested, auc)
    low, high = whole["ci95"]
    print(f"all films, 95 % interval over patients: {whole['value']:.3f} ({low:.3f} to {high:.3f})")
    slope, top = np.polyfit(-1 / np.sqrt(sizes), found, 1)
    print(f"fit: AUC = {top:.3f} - {slope:.2f} / sqrt(patients)")
    needed = (slope / (top - GOAL)) ** 2 if top > GOAL else float("inf")
    print(f"AUC {GOAL} by this fit: {'never' if needed == float('inf') else f'{needed:.0f} patients'}")


if __name__ == "__main__":
    main()
