"""Show how far the adult films carry `chest_xray` as a whole: AUC on unseen adults of networks trained from the start.

    python models/learning_curve.py --datalist LISTS/chest_xray.json --data DATA --out DIR [--jobs N]

Each network is trained by the bundle's own `train.json`, on all children and on a growing part of the adult training
patients, and its epoch is chosen by the bundle's own validation. What is in DIR already is not trained again. The last
lines fit two forms to the curve and say where each would reach 0.85: one that ends somewhere, and a kinder one that
gains the same by every doubling. Eight networks take four minutes on a GPU, and hours on a CPU.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from figures import auc, interval
from monai.bundle.config_parser import ConfigParser
from numpy.typing import NDArray

from node.bundles import SHIPPED

SEED, EPOCHS, DRAWS, GOAL = 20, 20, 2, 0.85
SHARES = (0.125, 0.25, 0.5, 1.0)
FOLDER = SHIPPED / "chest_xray"

Array: TypeAlias = NDArray[np.float64]


def films(datalist: Path, part: str) -> list[dict[str, Any]]:
    """Return the adults of one part."""
    return [case for case in json.loads(datalist.read_text(encoding="utf-8"))[part] if case["cohort"] == "adults"]


def part_of(datalist: Path, share: float, draw: int) -> tuple[dict[str, Any], int]:
    """Return the list with a drawn share of the adult training patients, and how many patients these are."""
    lists = json.loads(datalist.read_text(encoding="utf-8"))
    names = np.unique([case["patient"] for case in films(datalist, "training")])
    drawn = set(np.random.default_rng(SEED + draw).permutation(names)[: round(share * len(names))])
    kept = [case for case in lists["training"] if case["cohort"] != "adults" or case["patient"] in drawn]
    return {"training": kept, "validation": lists["validation"]}, len(drawn)


def train(options: argparse.Namespace, share: float, draw: int) -> tuple[int, Path]:
    """Train one network; return the number of adult patients and the folder of its weights."""
    lists, patients = part_of(options.datalist, share, draw)
    out = options.out / f"{patients}-{draw}"
    if (out / "done").is_file():
        return patients, out
    out.mkdir(parents=True, exist_ok=True)
    (out / "list.json").write_text(json.dumps(lists) + "\n", encoding="utf-8")
    asked = {"bundle_root": FOLDER, "dataset_dir": options.data, "datalist": out / "list.json", "output_dir": out}
    asked |= {"config_file": FOLDER / "configs" / "train.json", "seed": SEED + draw, "max_epochs": options.epochs}
    words = [word for name, value in asked.items() for word in (f"--{name}", str(value))]
    with (out / "log").open("w", encoding="utf-8") as log:
        subprocess.run([sys.executable, "-m", "monai.bundle", "run", *words], check=True, stdout=log, stderr=log)
    (out / "done").touch()
    return patients, out


class Adults:
    """The adult films of one part, as the network gets them, with their labels."""

    def __init__(self, options: argparse.Namespace, part: str) -> None:
        self._parser = ConfigParser(json.loads((FOLDER / "configs" / "inference.json").read_text(encoding="utf-8")))
        before = self._parser.get_parsed_content("preprocessing")
        cases = films(options.datalist, part)
        images = [before({"image": str(options.data / case["image"])})["image"].as_tensor() for case in cases]
        self._images = torch.stack(images)
        self._labels = [float(case["label"]) for case in cases]
        self.patients = [case["patient"] for case in cases]

    @torch.inference_mode()
    def scores(self, weights: Path) -> Array:
        """Return rows of truth and logit."""
        network = self._parser.get_parsed_content("network_def").eval()
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        found = torch.cat([network(some) for some in torch.split(self._images, 32)])
        return np.column_stack([self._labels, found.double().numpy()])


def extrapolate(sizes: list[int], found: list[float]) -> None:
    """Print two forms fitted to the curve, and the number of patients at which each reaches the goal."""
    slope, top = np.polyfit(-1 / np.sqrt(sizes), found, 1)
    needed = f"with {(slope / (top - GOAL)) ** 2:.0f} patients" if slope > 0 and top > GOAL else "never"
    print(f"AUC = {top:.3f} - {slope:.2f} / sqrt(patients): {GOAL} {needed}")
    gain, start = np.polyfit(np.log2(sizes), found, 1)
    needed = f"with {2 ** ((GOAL - start) / gain):.0f} patients" if gain > 0 else "never"
    print(f"AUC = {start:.3f} + {gain:.4f} by every doubling: {GOAL} {needed}")


def main() -> None:
    """Train, and print the curve, its interval at full size, and where it would reach the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datalist", type=Path, required=True, help="chest_xray.json, written by datalists.py")
    parser.add_argument("--data", type=Path, required=True, help="folder with the labelled sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights of each network")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--jobs", type=int, default=1, help="networks that are trained at a time")
    options = parser.parse_args()
    runs = [(share, draw) for share in reversed(SHARES) for draw in range(DRAWS)]
    with ThreadPoolExecutor(options.jobs) as pool:
        made = list(pool.map(lambda run: train(options, *run), runs))
    test, validation = Adults(options, "test"), Adults(options, "validation")
    found: dict[int, list[tuple[Array, float]]] = {}
    for patients, out in made:
        weights = out / "model.pt"
        found.setdefault(patients, []).append((test.scores(weights), auc(validation.scores(weights))))
    print("patients  AUC on test: mean (each network); on validation")
    sizes, means = sorted(found), []
    for size in sizes:
        each = [auc(on_test) for on_test, _ in found[size]]
        means.append(float(np.mean(each)))
        chosen = np.mean([value for _, value in found[size]])
        print(f"{size:8d}  {means[-1]:.3f} ({', '.join(f'{value:.3f}' for value in each)}); {chosen:.3f}")
    whole = interval(found[sizes[-1]][0][0], test.patients, auc)
    low, high = whole["ci95"]
    print(f"the first of all patients, 95 % interval over patients: {whole['value']:.3f} ({low:.3f} to {high:.3f})")
    together = np.mean([on_test for on_test, _ in found[sizes[-1]]], axis=0)
    print(f"mean of the networks of all patients: {auc(together):.3f}")
    extrapolate(sizes, means)


if __name__ == "__main__":
    main()
