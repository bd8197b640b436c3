"""Show where the outlines of `lung_fields` are wrong, on the validation patients: what a better network could gain.

    python models/outlines.py --datalist LISTS/lung_fields.json --data DATA

Prints Dice at several thresholds; Dice of the drawn masks themselves after they went through a smaller grid, which no
network on that grid can beat; and the share of Dice that is lost near the drawn border and far from it, and in each
quarter of the lungs from top to bottom, to lung that is missed and to what is outlined besides. One minute on a CPU.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from monai.bundle.config_parser import ConfigParser
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from node.bundles import SHIPPED

FOLDER = SHIPPED / "lung_fields"
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
SIDES = (128, 256, 384)
NEAR_PX, FAR_PX = 4, 8
QUARTERS = ("top", "second", "third", "bottom")

Mask: TypeAlias = NDArray[np.bool_]


class Outline(NamedTuple):
    """One film: who it is of, the mask at each threshold, and the drawn one, all (column, row)."""

    cohort: str
    found: dict[float, Mask]
    drawn: Mask


class Reader:
    """The bundle as inference.json says, but for its threshold."""

    def __init__(self) -> None:
        config = json.loads((FOLDER / "configs" / "inference.json").read_text(encoding="utf-8"))
        steps = config["postprocessing"]["transforms"]
        at = next(place for place, step in enumerate(steps) if step["_target_"] == "AsDiscreted")
        config["soft"] = {"_target_": "Compose", "transforms": steps[:at]}
        kept = [step for step in steps[at + 1 :] if step["_target_"] != "SaveImaged"]
        config["tidy"] = {"_target_": "Compose", "transforms": kept}
        parser = ConfigParser(config)
        self._before, self._soft, self._tidy, self._network = (
            parser.get_parsed_content(name) for name in ("preprocessing", "soft", "tidy", "network_def")
        )
        state = torch.load(FOLDER / "models" / "model.pt", map_location="cpu", weights_only=True)
        self._network.eval().load_state_dict(state)

    def read(self, path: Path) -> dict[float, Mask]:
        """Return the mask of one film at each threshold."""
        case = self._before({"image": str(path)})
        with torch.inference_mode():
            case["pred"] = self._network(case["image"][None])[0]
        soft = self._soft(case)["pred"]
        return {limit: np.asarray(self._tidy({"pred": (soft >= limit).float()})["pred"])[0] > 0 for limit in THRESHOLDS}


def drawn(path: Path) -> Mask:
    """Return the mask that a person drew."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L")).T > 127


def outlines(datalist: Path, data: Path) -> list[Outline]:
    """Read every validation film."""
    reader, cases = Reader(), json.loads(datalist.read_text(encoding="utf-8"))["validation"]
    return [Outline(c["cohort"], reader.read(data / c["image"]), drawn(data / c["label"])) for c in cases]


def dice(found: Mask, truth: Mask) -> float:
    """Return the Dice coefficient of two masks that are not both empty."""
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def through(mask: Mask, side: int) -> Mask:
    """Return a mask as it comes back from a grid whose longest side is `side`."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    scale = side / max(image.size)
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.BILINEAR)) > 127


def lost(found: Mask, truth: Mask) -> dict[str, float]:
    """Return shares of 1 - Dice: `near` and `far` from the drawn border, and missed and extra by quarter of height."""
    missed, extra, whole = truth & ~found, found & ~truth, truth.sum() + found.sum()
    away = np.where(truth, ndimage.distance_transform_edt(truth), ndimage.distance_transform_edt(~truth))
    rows = np.flatnonzero(truth.any(axis=0))
    place = np.clip((np.arange(truth.shape[1]) - rows[0]) * 4 // (rows[-1] - rows[0] + 1), 0, 3)
    wrong = missed | extra
    shares = {"near": (wrong & (away <= NEAR_PX)).sum() / whole, "far": (wrong & (away > FAR_PX)).sum() / whole}
    for number, name in enumerate(QUARTERS):
        shares[f"{name}, missed"] = missed[:, place == number].sum() / whole
        shares[f"{name}, extra"] = extra[:, place == number].sum() / whole
    return {name: float(share) for name, share in shares.items()}


def _line(name: str, values: list[float], read: list[Outline]) -> str:
    cohorts = sorted({one.cohort for one in read})
    means = (np.mean([v for v, one in zip(values, read, strict=True) if one.cohort == cohort]) for cohort in cohorts)
    told = ", ".join(f"{cohort} {mean:.4f}" for cohort, mean in zip(cohorts, means, strict=True))
    return f"{name}: {np.mean(values):.4f} ({told})"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datalist", type=Path, required=True, help="lung_fields.json, written by datalists.py")
    parser.add_argument("--data", type=Path, required=True, help="folder with the labelled sets")
    options = parser.parse_args()
    read = outlines(options.datalist, options.data)
    for limit in THRESHOLDS:
        print(_line(f"Dice at threshold {limit}", [dice(one.found[limit], one.drawn) for one in read], read))
    for side in SIDES:
        print(
            _line(
                f"Dice of the drawn masks through {side} px",
                [dice(through(o.drawn, side), o.drawn) for o in read],
                read,
            )
        )
    shares: list[dict[str, Any]] = [lost(one.found[0.5], one.drawn) for one in read]
    for name in shares[0]:
        print(_line(f"Dice lost {name}", [share[name] for share in shares], read))


if __name__ == "__main__":
    main()
