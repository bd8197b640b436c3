"""Write the data lists the bundles train on: one decathlon-style JSON per bundle, split by patient.

A patient falls into the same part (training, validation or test) of every list, because the part is a seeded hash of
the patient and of nothing else: the children of `cxr_lungmask_v7_512` are also in `cxr_pneumonia_kermany224`.

    python models/datalists.py --data DIR --out DIR

DIR of `--data` holds the four folders named in each bundle's README; image paths in the lists are relative to it.
"""

import argparse
import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

SEED = "wetread-1"
PARTS = (("validation", 0.12), ("test", 0.32), ("training", 1.0))

Case: TypeAlias = dict[str, str | int]


def part_of(patient: str) -> str:
    """Return the part a patient belongs to: 12 % validation, 20 % test, the rest training."""
    digest = hashlib.sha256(f"{SEED}:{patient}".encode()).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    return next(part for part, below in PARTS if fraction < below)


def kermany_patient(name: str) -> str:
    """Return one name per child: `NORMAL2-IM-0383` and `IM-0383` could be one child, so they are split as one."""
    found = re.search(r"person\d+|IM-\d+", name)
    if found is None:
        raise ValueError(f"{name}: no patient number in this name; expected personNNN or IM-NNNN")
    return found.group()


def rows(manifest: Path) -> Iterator[dict[str, str]]:
    """Yield the lines of a manifest as dictionaries."""
    with manifest.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def chest_xray(data: Path) -> Iterator[Case]:
    """Yield children's and adults' films; label 1 is pneumonia (children) or any of 14 findings (adults)."""
    folder = "cxr_pneumonia_kermany224"
    for row in rows(data / folder / "manifest.csv"):
        yield {
            "image": f"{folder}/{row['path']}",
            "label": int(row["label"] != "NORMAL"),
            "patient": kermany_patient(row["patient"]),
            "cohort": "children",
        }
    folder = "cxr_nih_adult_320"
    for row in rows(data / folder / "manifest.csv"):
        yield {
            "image": f"{folder}/images/{row['id']}.jpg",
            "label": int(row["No_Finding"] != "1"),
            "patient": f"nih-{row['patient']}",
            "cohort": "adults",
        }


def lung_fields(data: Path) -> Iterator[Case]:
    """Yield children's films with their hand-drawn lung fields."""
    folder = "cxr_lungmask_v7_512"
    for row in rows(data / folder / "manifest.csv"):
        yield {
            "image": f"{folder}/images/{row['id']}.jpg",
            "label": f"{folder}/masks/{row['id']}.png",
            "patient": kermany_patient(row["patient"]),
            "cohort": "children, normal" if row["label"] == "NORMAL" else "children, pneumonia",
        }


def hippocampus(data: Path) -> Iterator[Case]:
    """Yield MR crops with both labels; one crop is one patient."""
    folder = "mr_hippocampus_msd"
    for row in rows(data / folder / "manifest.csv"):
        yield {
            "image": f"{folder}/images/{row['id']}.nii.gz",
            "label": f"{folder}/labels/{row['id']}.nii.gz",
            "patient": row["id"],
            "cohort": "adults",
        }


LISTS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "chest_xray": chest_xray,
    "lung_fields": lung_fields,
    "hippocampus": hippocampus,
}


def datalist(cases: Iterator[Case]) -> dict[str, list[Case]]:
    """Sort cases into training, validation and test, in a stable order."""
    parts: dict[str, list[Case]] = {"training": [], "validation": [], "test": []}
    for case in sorted(cases, key=lambda case: str(case["image"])):
        parts[part_of(str(case["patient"]))].append(case)
    return parts


def main() -> None:
    """Write `<bundle>.json` for every bundle and print the number of cases in each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the labelled sets")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the lists to")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for bundle, cases in LISTS.items():
        parts = datalist(cases(options.data))
        (options.out / f"{bundle}.json").write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
        print(bundle, *(f"{part}={len(found)}" for part, found in parts.items()))


if __name__ == "__main__":
    main()
