"""`manifest.csv`: which images, and what is known about each. Read whole before anything runs; guesses no label."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from node.bundles import Bundle, FindingEntry
from node.errors import ConfigError, Permanent

MASK_SUFFIXES = (".png", ".nii", ".nii.gz")
"""JPEG is not among them: it changes the values of labels."""
ALL = "all"
"""All images together; the cohort of images in a manifest without cohorts."""
UNNAMED = "unnamed"
"""The cohort of images that name none, where others do."""

_ABSENT = frozenset({"0", "absent", "negative", "normal", "none", "no", "false"})
_PRESENT = frozenset({"1", "present", "positive", "abnormal", "yes", "true"})


@dataclass(frozen=True)
class Case:
    """One line of the manifest.

    `image`: a file, or a folder with the DICOM files of one series. `truth`: one boolean per `[[finding]]` of the
    bundle, or the path of a mask. `patient` is what the intervals resample; without one, each image is its own.
    """

    line: int
    name: str
    image: Path
    truth: tuple[bool, ...] | Path
    patient: str
    cohort: str


def load(path: Path, bundle: Bundle) -> tuple[Case, ...]:
    """Return the cases in `path`, in its order; paths in it are relative to its folder.

    Raises `Permanent` for a detector, and `ConfigError` with the line: no table, a column missing, no rows, a row of
    another length, an image or mask that is not there, an image named twice, a label that the bundle does not know.
    """
    if bundle.dicom.detection:
        raise Permanent(
            f"{bundle.title} is a detector; wetread measures findings and masks, not boxes, and nothing was read. "
            "Compare the Image Regions of the SRs that `wetread read` writes with your own boxes, such as by FROC."
        )
    cases: dict[Path, Case] = {}
    for line, row in _rows(path):
        case = _case(path, line, row, bundle)
        first = cases.setdefault(case.image.resolve(), case)
        if first is not case:
            raise ConfigError(path, line, f"image {case.name} was named before, in line {first.line}; name it once")
    if not cases:
        raise ConfigError(path, 1, "it has no images; expected one line per image below the column names")
    return tuple(cases.values())


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            _require_columns(path, reader.fieldnames)
            for row in reader:
                if None in row or None in row.values():
                    expected = len(reader.fieldnames or ())
                    raise ConfigError(
                        path, reader.line_num, f"it has another number of cells than the {expected} columns"
                    )
                yield reader.line_num, {str(key).strip(): value.strip() for key, value in row.items()}
    except OSError as error:
        raise ConfigError(path, None, f"it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(path, None, 'it is not UTF-8 text; save it as "CSV UTF-8" with commas') from None
    except csv.Error as error:
        raise ConfigError(path, reader.line_num, f"it is no comma-separated table: {error}") from None


def _require_columns(path: Path, names: Sequence[str] | None) -> None:
    if names is None:
        raise ConfigError(path, 1, "it is empty; expected the columns image,label[,patient][,cohort]")
    found = [name.strip() for name in names]
    if missing := [name for name in ("image", "label") if name not in found]:
        told = f"column {' and '.join(missing)} missing among {', '.join(found)[:80]}"
        raise ConfigError(path, 1, f"{told}; expected image,label[,patient][,cohort], separated by commas")
    if twice := [name for name in ("image", "label", "patient", "cohort") if found.count(name) > 1]:
        raise ConfigError(path, 1, f"column {twice[0]} is there twice, and nobody knows which one counts; keep one")


def _case(path: Path, line: int, row: Mapping[str, str], bundle: Bundle) -> Case:
    name = row["image"]
    image = path.parent / name
    if not name or not _is_there(image):
        raise ConfigError(path, line, f'image "{name[:200]}" does not exist; paths are relative to {path.parent}')
    truth = _mask(path, line, row["label"]) if bundle.dicom.segment else _findings(path, line, row["label"], bundle)
    cohort = row.get("cohort", ALL) or UNNAMED
    if "cohort" in row and cohort == ALL:
        raise ConfigError(path, line, f'cohort "{ALL}" stands for all images together; give it another name')
    return Case(line, name, image, truth, row.get("patient") or name, cohort)


def _is_there(path: Path) -> bool:
    """Whether anybody can open it; several lines in one cell are no file's name, which the system says by an error."""
    try:
        return path.exists()
    except OSError:
        return False


def _mask(path: Path, line: int, label: str) -> Path:
    if not label.lower().endswith(MASK_SUFFIXES):
        raise ConfigError(
            path, line, f'label "{label[:200]}" is no mask; expected the path of one of {", ".join(MASK_SUFFIXES)}'
        )
    if not _is_there(path.parent / label) or not (path.parent / label).is_file():
        raise ConfigError(path, line, f'mask "{label[:200]}" does not exist; paths are relative to {path.parent}')
    return path.parent / label


def _findings(path: Path, line: int, label: str, bundle: Bundle) -> tuple[bool, ...]:
    """One finding: 0 or 1, or a word for it, or its name. Several: the names of those present, with `;` between."""
    entries = bundle.dicom.finding
    said = _folded(label)
    if said in _ABSENT:
        return (False,) * len(entries)
    if len(entries) == 1 and said in _PRESENT:
        return (True,)
    named = {part.strip() for part in said.split(";")}
    present = tuple(bool(named & _names(entry)) for entry in entries)
    if named - {name for entry in entries for name in _names(entry)}:
        choice = "0 or 1, or" if len(entries) == 1 else "0, or, separated by semicolons,"
        known = ", ".join(entry.label for entry in entries)
        told = f'label "{label[:60]}" is unknown to {bundle.title}; expected {choice} {known}'
        raise ConfigError(path, line, told)
    return present


def _names(entry: FindingEntry) -> set[str]:
    return {_folded(name) for name in (entry.label, entry.type.meaning, entry.type.code)}


def _folded(name: str) -> str:
    """A name whatever its case is and however its letters are composed: a table from a Mac may have u and two dots."""
    return unicodedata.normalize("NFC", name).casefold()
