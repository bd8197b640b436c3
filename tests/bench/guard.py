"""Does a bundle know what it was not made for? Its own unseen test patients against other images, by its guard.

    python -m tests.bench.guard --data DATA --dicom DICOM [--bundles NAME …] [--json]

DATA holds the sets that the bundles were trained on, DICOM folders of other studies. A bundle of films is shown every
image (at most 25 of a series, evenly spread) as a film, a bundle of volumes every series that is one. Says, with 95 %
bootstrap intervals over patients and series: how many of its own are declined, the AUROC of the score alone between
its own and each other set, and how many of these the guard declines by score and bounds together. Headers are left out
of account: the images pass as if they said what the bundle wants to hear. Nothing was tuned on any image seen here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from node import bundles
from node.bundles import SHIPPED, Bundle
from node.errors import Unsuitable
from node.findings import Volume
from node.study import scan
from workers import restraint
from workers.evaluate.images import volume
from workers.load.series import load
from workers.predict.guard import Guard

SEED, RESAMPLES, MOST_OF_A_SERIES = 20, 500, 25
SETS = {
    "brain MR": ("mr_brain_pgbm001_1991", "mr_brain_pgbm003_hippocrop", "mr_t1_pacsman128"),
    "head CT": ("ct_head_ge_tilt28",),
    "mammogram": ("mg",),
    "PET": ("pet_qin_headneck",),
    "chest CT": ("ct_chest_lidc0314_100",),
    "synthetic, odd, non-medical": ("enhanced", "syntaxes", "nonimage_and_odd", "charsets", "rtstruct_rtutils"),
}
ALIKE = {"chest_xray": ("cxr",), "lung_fields": ("cxr",), "hippocampus": ("11_HCropVolume",)}
"""Images of the bundle's own kind from elsewhere: counted, but no part of what should be declined."""
Scored = list[tuple[str, float, bool]]
"""(patient or series, score, declined)."""


def own(bundle: Bundle, guard: Guard, data: Path) -> Scored:
    """Score the test patients of `bundle`."""
    spec = importlib.util.spec_from_file_location("datalists", SHIPPED / "datalists.py")
    assert spec is not None
    assert spec.loader is not None
    lists = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lists)
    cases = lists.datalist(lists.LISTS[bundle.name](data))["test"]
    return [
        scored(str(case["patient"]), volume(data / case["image"], bundle.dicom.dimensions), bundle, guard)
        for case in cases
    ]


def others(bundle: Bundle, guard: Guard, folders: Sequence[Path], but: Sequence[str] = ()) -> Scored:
    """Score what can be loaded of the studies in `folders`, `but` some; what cannot is declined before any guard."""
    found: Scored = []
    for name, paths in series_in(folders):
        if set(but) & set(paths[0].parts):
            continue
        dimensions = bundle.dicom.dimensions
        if dimensions == 2:
            paths = paths[:: -(-len(paths) // MOST_OF_A_SERIES)]
        for one in [paths] if dimensions == 3 else [[path] for path in paths]:
            try:
                volumes = load(one, dimensions)
            except (Unsuitable, OSError):
                continue
            if dimensions == 2 or len(volumes[0].pixels) > 1:
                step = -(-len(volumes) // MOST_OF_A_SERIES)
                found += [scored(name, each, bundle, guard) for each in volumes[::step]]
    return found


def series_in(folders: Sequence[Path]) -> Iterator[tuple[str, list[Path]]]:
    """Yield each series with pixels below `folders`, its files in order."""
    for folder in folders:
        for study in scan(folder)[0]:
            for series in study.series:
                paths = [i.path for i in series.instances if "Rows" in i.attributes]
                if paths:
                    yield series.series_instance_uid, paths


def scored(name: str, image: Volume, bundle: Bundle, guard: Guard) -> tuple[str, float, bool]:
    """Score one image, and say whether it would be declined whatever its header says."""
    return name, guard.look(image).score, bool(restraint.declined((), [image], bundle))


def auroc(known: NDArray[np.float64], foreign: NDArray[np.float64]) -> float:
    """Return how often a foreign image has the higher score (ties count half)."""
    ranks = rankdata(np.concatenate([known, foreign]))[len(known) :]
    return float((ranks.sum() - len(foreign) * (len(foreign) + 1) / 2) / (len(known) * len(foreign)))


def drawn(found: Scored, draw: np.random.Generator) -> list[int]:
    """Draw patients or series with replacement; return the places of their images."""
    names = np.array([name for name, _, _ in found])
    kinds = np.unique(names)
    places = {kind: np.flatnonzero(names == kind) for kind in kinds}
    return [int(place) for kind in draw.choice(kinds, len(kinds)) for place in places[kind]]


def measured(known: Scored, foreign: Scored) -> dict[str, Any]:
    """Return the AUROC and the declined share of `foreign`, each with its interval."""
    draw = np.random.default_rng(SEED)
    a, b = (np.array([score for _, score, _ in found]) for found in (known, foreign))
    gone = np.array([declined for _, _, declined in foreign])
    samples = []
    for _ in range(RESAMPLES):
        i, j = drawn(known, draw), drawn(foreign, draw)
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
    gone = np.array([declined for _, _, declined in found])
    low, high = np.percentile([gone[drawn(found, draw)].mean() for _ in range(RESAMPLES)], [2.5, 97.5])
    value, bounds = round(float(gone.mean()), 4), [round(float(low), 4), round(float(high), 4)]
    return {"images": len(found), "patients": len({n for n, _, _ in found}), "value": value, "ci95": bounds}


def measure(bundle: Bundle, data: Path, dicom: Path) -> dict[str, Any]:
    """Return all figures of one bundle."""
    guard = Guard(bundle)
    known = own(bundle, guard, data)
    alike = [folder for name in ALIKE[bundle.name] for folder in dicom.rglob(name)]
    told: dict[str, Any] = {"bundle": bundle.title, "own_declined": share(known), "sets": {}}
    if kin := others(bundle, guard, alike):
        told["alike_elsewhere"] = {"images": len(kin), "declined": sum(declined for _, _, declined in kin)}
    every: Scored = []
    for title, names in SETS.items():
        found = others(bundle, guard, [dicom / name for name in names], but=ALIKE[bundle.name])
        print(f"{bundle.name}: {title}, {len(found)} images", file=sys.stderr)
        every += found
        if found:
            told["sets"][title] = measured(known, found)
    told["sets"]["all"] = measured(known, every)
    return told


def show(told: dict[str, Any]) -> None:
    """Print one bundle's table."""
    known = told["own_declined"]
    low, high = known["ci95"]
    print(f"\n{told['bundle']}: {known['images']} images of {known['patients']} own test patients")
    print(f"own declined {known['value']:.2%} ({low:.2%} to {high:.2%})")
    if kin := told.get("alike_elsewhere"):
        print(f"of its own kind from elsewhere: {kin['declined']} of {kin['images']} declined")
    for title, found in told["sets"].items():
        one, gone = found["auroc"], found["declined"]
        print(
            f"  {title:28} {found['images']:4} images, {found['series']:3} series   "
            f"AUROC {one['value']:.4f} ({one['ci95'][0]:.3f} to {one['ci95'][1]:.3f})   "
            f"declined {gone['value']:.1%} ({gone['ci95'][0]:.1%} to {gone['ci95'][1]:.1%})"
        )


def main() -> None:
    """Print the tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the labelled sets")
    parser.add_argument("--dicom", type=Path, required=True, help="folder with the folders of other studies")
    parser.add_argument("--bundles", nargs="*", default=list(ALIKE))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    told = [measure(bundles.find(name), options.data, options.dicom) for name in options.bundles]
    if options.json:
        print(json.dumps(told, indent=1))
        return
    for one in told:
        show(one)


if __name__ == "__main__":
    main()
