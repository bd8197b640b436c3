"""Does a bundle know what it was not made for? Its own unseen test patients against other images, by its guard.

    python -m tests.bench.guard --data DATA --dicom DICOM [--bundles NAME …] [--limit N] [--record]

DATA holds the sets that the bundles were trained on, DICOM folders of other studies. A bundle of films is shown every
image (at most 25 of a series, evenly spread) as a film, a bundle of volumes every series that is one. Says, with 95 %
bootstrap intervals over patients and series: how many of its own are declined, the AUROC of the score alone between
its own and each other set, and how many of these the guard declines by score and bounds together. Headers are left out
of account: the images pass as if they said what the bundle wants to hear. Every image is decoded once, and each set is
told as soon as it is measured. `--record` writes the figures into each bundle's `docs/metrics.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from node import bundles
from node.bundles import Bundle
from tests.bench.guard_images import MOST_OF_A_SERIES, Shown, others, own, synthetic
from workers.predict.guard import Guard

SEED, RESAMPLES = 20, 500
COMMAND = "python -m tests.bench.guard --data DATA --dicom DICOM --record"
SETS = {
    "chest films from elsewhere": ("cxr",),
    "brain MR": ("mr_brain_pgbm001_1991", "mr_brain_pgbm003_hippocrop", "mr_t1_pacsman128"),
    "head CT": ("ct_head_ge_tilt28",),
    "mammogram": ("mg",),
    "PET": ("pet_qin_headneck",),
    "chest CT": ("ct_chest_lidc0314_100",),
    "synthetic, odd, non-medical": ("enhanced", "syntaxes", "nonimage_and_odd", "charsets", "rtstruct_rtutils"),
}
ALIKE = {"chest_xray": "cxr", "lung_fields": "cxr", "hippocampus": "11_HCropVolume"}
"""Folders with images of the bundle's own kind from elsewhere: counted, but no part of what should be declined."""
PHANTOMS = "our own phantoms"
Scored = list[tuple[str, float, bool]]
"""(patient or series, score, declined)."""


def scored(images: Sequence[Shown], bundle: Bundle, guard: Guard) -> Scored:
    """Score `images` together, and say which would be declined whatever their headers say."""
    if not images:
        return []
    scores = guard.scores(torch.stack([one.copy for one in images]), np.stack([one.statistics for one in images]))
    gone = [not score <= 1 or bundle.name in one.outside for one, score in zip(images, scores, strict=True)]
    return [(one.name, float(score), out) for one, score, out in zip(images, scores, gone, strict=True)]


def auroc(known: NDArray[np.float64], foreign: NDArray[np.float64]) -> float:
    """Return how often a foreign image has the higher score (ties count half)."""
    ranks = rankdata(np.concatenate([known, foreign]))[len(known) :]
    return float((ranks.sum() - len(foreign) * (len(foreign) + 1) / 2) / (len(known) * len(foreign)))


def places(found: Scored) -> list[NDArray[np.int64]]:
    """Return the places of each patient's or series' images."""
    _, index = np.unique([name for name, _, _ in found], return_inverse=True)
    order = np.argsort(index, kind="stable")
    return np.split(order, np.cumsum(np.bincount(index))[:-1])


def drawn(groups: Sequence[NDArray[np.int64]], draw: np.random.Generator) -> NDArray[np.int64]:
    """Draw patients or series with replacement; return the places of their images."""
    return np.concatenate([groups[k] for k in draw.integers(len(groups), size=len(groups))])


def measured(known: Scored, foreign: Scored) -> dict[str, Any]:
    """Return the AUROC and the declined share of `foreign`, each with its interval."""
    draw = np.random.default_rng(SEED)
    a, b = (np.array([score for _, score, _ in found]) for found in (known, foreign))
    gone = np.array([declined for _, _, declined in foreign])
    mine, theirs = places(known), places(foreign)
    samples = []
    for _ in range(RESAMPLES):
        i, j = drawn(mine, draw), drawn(theirs, draw)
        samples.append((auroc(a[i], b[j]), float(gone[j].mean())))
    low, high = np.percentile(np.array(samples), [2.5, 97.5], axis=0).round(3).tolist()
    return {
        "images": len(foreign),
        "series": len({name for name, _, _ in foreign}),
        "auroc": {"value": round(auroc(a, b), 4), "ci95": [low[0], high[0]]},
        "declined": {"value": round(float(gone.mean()), 3), "ci95": [low[1], high[1]]},
    }


def share(found: Scored) -> dict[str, Any]:
    """Return the declined share of `found` with its interval over patients."""
    draw = np.random.default_rng(SEED)
    gone, groups = np.array([declined for _, _, declined in found]), places(found)
    low, high = np.percentile([gone[drawn(groups, draw)].mean() for _ in range(RESAMPLES)], [2.5, 97.5])
    value, bounds = round(float(gone.mean()), 4), [round(float(low), 4), round(float(high), 4)]
    return {"images": len(found), "patients": len({n for n, _, _ in found}), "value": value, "ci95": bounds}


class Table:
    """The figures of one bundle, told as they come."""

    def __init__(self, bundle: Bundle, data: Path, part: str, limit: int | None) -> None:
        self.bundle, self._guard = bundle, Guard(bundle)
        self._known = scored(list(own(bundle, data, part, limit)), bundle, self._guard)
        self._every: Scored = []
        self.told: dict[str, Any] = {"part": part, "own_declined": share(self._known), "sets": {}}
        declined = self.told["own_declined"]
        tell(f"\n{bundle.title}: {declined['images']} images of {declined['patients']} own {part} patients")
        tell(f"own declined {declined['value']:.2%} ({declined['ci95'][0]:.2%} to {declined['ci95'][1]:.2%})")

    def add(self, title: str, images: Sequence[Shown]) -> None:
        """Measure a set of foreign images, leaving out those of the bundle's own kind."""
        alike = {ALIKE[self.bundle.name]}
        found = scored([one for one in images if not alike & one.folders], self.bundle, self._guard)
        if kin := scored([one for one in images if alike & one.folders], self.bundle, self._guard):
            self.told["alike_elsewhere"] = {"images": len(kin), "declined": sum(gone for _, _, gone in kin)}
            tell(f"{self.bundle.name:12} its own kind, {title}: {sum(gone for *_, gone in kin)} of {len(kin)} declined")
        if found:
            self._every += found
            self._tell(title, measured(self._known, found))

    def end(self) -> None:
        """Measure all foreign images together."""
        self._tell("all", measured(self._known, self._every))

    def _tell(self, title: str, found: dict[str, Any]) -> None:
        self.told["sets"][title] = found
        one, gone = found["auroc"], found["declined"]
        tell(
            f"{self.bundle.name:12} {title:28} {found['images']:4} images, {found['series']:3} series   "
            f"AUROC {one['value']:.4f} ({one['ci95'][0]:.3f} to {one['ci95'][1]:.3f})   "
            f"declined {gone['value']:.1%} ({gone['ci95'][0]:.1%} to {gone['ci95'][1]:.1%})"
        )


def tell(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def measure(judges: Sequence[Bundle], options: argparse.Namespace) -> list[Table]:
    """Measure bundles of the same dimensions: each foreign image is decoded once for all of them."""
    tables = [Table(bundle, options.data, options.part, options.limit) for bundle in judges]
    most = min(options.limit or MOST_OF_A_SERIES, MOST_OF_A_SERIES)
    for title, names in SETS.items():
        images = list(others([options.dicom / name for name in names], judges, most))
        for table in tables:
            table.add(title, images)
    for table in tables:
        table.add(PHANTOMS, list(synthetic(judges)))
        table.end()
    return tables


def record(table: Table) -> None:
    """Write the figures into the bundle's `docs/metrics.json`, beside those of the network."""
    path = table.bundle.folder / "docs" / "metrics.json"
    figures = json.loads(path.read_text(encoding="utf-8")) | {"guard": {"command": COMMAND, **table.told}}
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the labelled sets")
    parser.add_argument("--dicom", type=Path, required=True, help="folder with the folders of other studies")
    parser.add_argument("--bundles", nargs="*", default=list(ALIKE))
    parser.add_argument("--part", choices=("validation", "test"), default="test", help="of the bundle's own patients")
    parser.add_argument("--limit", type=int, help="at most so many of its own images, and of those of a series")
    parser.add_argument("--record", action="store_true", help="write the figures into docs/metrics.json of each bundle")
    options = parser.parse_args()
    if options.record and (options.limit or options.part != "test"):
        parser.error("only figures of all test patients are recorded")
    asked = [bundles.find(name) for name in options.bundles]
    for dimensions in (2, 3):
        judges = [bundle for bundle in asked if bundle.dicom.dimensions == dimensions]
        for table in measure(judges, options) if judges else []:
            if options.record:
                record(table)


if __name__ == "__main__":
    main()
