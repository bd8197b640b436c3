"""The data list of a training: every patient in one part alone, by a hash of who it is.

From the folder of `--data`: `<bundle>.json` as MONAI bundles know it; or `manifest.csv` as `wetread evaluate` reads it;
or, for the bundles that ship, the public sets that `models/datalists.py` knows.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from node.bundles import SHIPPED, Bundle
from node.errors import ConfigError
from workers.evaluate import manifest

PARTS = ("training", "validation", "test")
Lists = dict[str, list[dict[str, Any]]]


def load(data: Path, bundle: Bundle) -> Lists:
    """Return `{part: [{"image", "label", "patient", "cohort"}]}`, paths relative to `data`.

    Raises `ConfigError` where there is no list, it is wrong, a patient or an image is in two parts, or one of training
    and validation is empty or, of a bundle with one finding, has images of one class alone.
    """
    listed, table = data / f"{bundle.name}.json", data / "manifest.csv"
    if listed.is_file():
        found, source = _listed(listed), listed
    elif is_table(data, bundle):
        found, source = _split(manifest.load(table, bundle), data), table
    else:
        found, source = _public(data, bundle), data
    for part in PARTS[:2]:
        if not found.get(part):
            raise ConfigError(source, None, f"the part {part} is empty; more patients are needed")
    for part in PARTS[:2] if len(bundle.dicom.finding) == 1 else ():
        classes = {str(case["label"]) for case in found[part] if "label" in case}
        if len(classes) == 1:
            told = f"all images of the part {part} have the label {classes.pop()}"
            raise ConfigError(source, None, f"{told}: nothing can be learned or chosen there; more patients are needed")
    return found


def is_table(data: Path, bundle: Bundle) -> bool:
    """Whether the lists come from a manifest, whose images and masks are as `wetread evaluate` reads them."""
    return (data / "manifest.csv").is_file() and not (data / f"{bundle.name}.json").is_file()


def _listed(path: Path) -> Lists:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
        lists: Lists = {part: list(found.get(part, [])) for part in PARTS}
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(path, None, f"it is no data list with the parts {', '.join(PARTS)}: {error}") from None
    where: dict[str, str] = {}
    for part in PARTS:
        for number, case in enumerate(lists[part], 1):
            _require_case(path, f"case {number} of the part {part}", case)
            _require_one_part(path, part, case, where)
    return lists


def _require_case(path: Path, where: str, case: Any) -> None:
    if not isinstance(case, dict) or not {"image", "label"} <= case.keys():
        raise ConfigError(path, None, f"{where} is no table with image and label; label it, or take it out")
    images = case["image"] if isinstance(case["image"], list) else [case["image"]]
    if missing := [str(image) for image in images if not (path.parent / str(image)).exists()]:
        told = f'{where}: image "{missing[0]}" does not exist; paths are relative to {path.parent}'
        raise ConfigError(path, None, told)


def _require_one_part(path: Path, part: str, case: Mapping[str, Any], where: dict[str, str]) -> None:
    """Refuse a patient or an image that is in another part, too; `where` has the part of each seen so far."""
    names = [f"image {os.path.normpath(str(case['image']))}"]
    names += [f"patient {case['patient']}"] if case.get("patient") is not None else []
    for name in names:
        if (first := where.setdefault(name, part)) != part:
            told = f"{name} is in the part {first} and in the part {part}"
            raise ConfigError(path, None, f"{told}: the figures would flatter; keep all of a patient in one part")


def _split(cases: Sequence[manifest.Case], data: Path) -> Lists:
    part_of: Callable[[str], str] = _script().part_of
    found: Lists = {part: [] for part in PARTS}
    for case in cases:
        row = {
            "image": os.path.relpath(case.image, data),
            "label": _label(case, data),
            "patient": case.patient,
            "cohort": case.cohort,
        }
        found[part_of(case.patient)].append(row)
    return found


def _label(case: manifest.Case, data: Path) -> int | list[int] | str:
    """0 or 1, of several findings one for each; or the path of the mask."""
    if isinstance(case.truth, Path):
        return os.path.relpath(case.truth, data)
    there = [int(present) for present in case.truth]
    return there[0] if len(there) == 1 else there


def _public(data: Path, bundle: Bundle) -> Lists:
    script = _script()
    if bundle.name not in script.LISTS:
        told = f"it has neither {bundle.name}.json nor manifest.csv; columns image,label[,patient][,cohort]"
        raise ConfigError(data, None, told)
    try:
        found: Lists = script.datalist(script.LISTS[bundle.name](data))
    except OSError as error:
        told = f"it has no {bundle.name}.json, no manifest.csv and no {error.filename}"
        raise ConfigError(data, None, told) from None
    return found


def _script() -> Any:
    """`models/datalists.py`: content beside the bundles, and no package."""
    spec = importlib.util.spec_from_file_location("datalists", SHIPPED / "datalists.py")
    assert spec is not None  # noqa: S101 - it ships with the bundles
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_manifest(path: Path, cases: Sequence[Mapping[str, Any]], data: Path, bundle: Bundle) -> None:
    """Write `cases` as a manifest for `wetread evaluate`, with absolute paths."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("image", "label", "patient", "cohort"))
        for case in cases:
            label = _told(case["label"], data, bundle)
            image = (data / str(case["image"])).resolve()
            cohort = str(case.get("cohort", "test"))
            table.writerow((image, label, case.get("patient", image), "test" if cohort == manifest.ALL else cohort))


def _told(label: Any, data: Path, bundle: Bundle) -> Any:
    """A label of a data list as a manifest has it."""
    if isinstance(label, list):
        there = [entry.label for entry, present in zip(bundle.dicom.finding, label, strict=False) if present]
        return ";".join(there) or 0
    return (data / str(label)).resolve() if bundle.dicom.segment else label
