"""The model card of a bundle: what its authors wrote in `docs/README.md`, and its figures in `docs/metrics.json`.

The figures are looked for, not demanded: a bundle from elsewhere may have neither file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from node.bundles import Bundle
from node.errors import BundleError

_NAMES = {
    "auc": "AUROC",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "hausdorff95_mm": "95 % Hausdorff distance (mm)",
    "hausdorff95_px": "95 % Hausdorff distance (pixels)",
    "hausdorff95_voxels": "95 % Hausdorff distance (voxels)",
    "volume_error_percent": "volume error (%)",
    "area_error_percent": "area error (%)",
}

COLUMNS = ("cohort", "of", "figure", "value", "95 % interval")


@dataclass(frozen=True)
class Figure:
    """One figure of one cohort; `of` names the finding or segment, empty where there is one. None: not defined."""

    cohort: str
    name: str
    of: str
    value: float | None
    ci95: tuple[float, float] | None

    @property
    def shown(self) -> str:
        """The value for people."""
        return "not defined" if self.value is None else _short(self.value)

    @property
    def interval(self) -> str:
        """The 95 % interval in brackets, empty where there is none."""
        return f"[{_short(self.ci95[0])}, {_short(self.ci95[1])}]" if self.ci95 else ""


def card(bundle: Bundle) -> str:
    """Return the text of `docs/README.md` (Markdown), empty where there is none."""
    path = bundle.folder / "docs" / "README.md"
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def metrics(bundle: Bundle) -> Mapping[str, Any]:
    """Return the content of `docs/metrics.json`, empty where there is none; raises `BundleError` where it is broken."""
    path = bundle.folder / "docs" / "metrics.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from None
    if not isinstance(found, dict):
        raise BundleError(f"{path}: a table was expected")
    return found


def is_of_other_weights(found: Mapping[str, Any], bundle: Bundle) -> bool:
    """Return whether the figures say which weights they are of, and these are not the ones in `bundle` now."""
    return bool(found.get("weights_sha256", bundle.weights_sha256) != bundle.weights_sha256)


def figures(found: Mapping[str, Any]) -> tuple[Figure, ...]:
    """Return the figures in `{"cohorts": {cohort: {figure: {"value", "ci95"} | {part: {"value", "ci95"}}}}}`."""
    cohorts = found.get("cohorts")
    if not isinstance(cohorts, Mapping):
        return ()
    return tuple(
        figure
        for cohort, table in cohorts.items()
        if isinstance(table, Mapping)
        for name, entry in table.items()
        if isinstance(entry, Mapping)
        for figure in _figures(str(cohort), _NAMES.get(name, name.replace("_", " ")), entry)
    )


def table(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the figures as rows of text with the columns `COLUMNS`."""
    return [
        {"cohort": f.cohort, "of": f.of, "figure": f.name, "value": f.shown, "95 % interval": f.interval}
        for f in figures(found)
    ]


def _figures(cohort: str, name: str, entry: Mapping[str, Any]) -> Iterator[Figure]:
    if "value" in entry:
        yield _figure(cohort, name, "", entry)
        return
    for part, inner in entry.items():
        if isinstance(inner, Mapping) and "value" in inner:
            yield _figure(cohort, name, str(part), inner)


def _figure(cohort: str, name: str, of: str, entry: Mapping[str, Any]) -> Figure:
    low_high = entry.get("ci95")
    value = entry["value"]
    return Figure(
        cohort,
        name,
        of,
        float(value) if isinstance(value, int | float) else None,
        (float(low_high[0]), float(low_high[1])) if isinstance(low_high, list) and len(low_high) == 2 else None,
    )


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
