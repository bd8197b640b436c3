"""`report.html`: one file for people, with its pictures in it and nothing fetched from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from node.cards import Figure, figures

_TITLES = {
    "roc": "ROC curve",
    "precision-recall": "Precision and recall",
    "calibration": "Calibration: points on the line keep what they say; larger points are more images",
    "probabilities": "Probabilities by what is true; the scale of counts is logarithmic",
    "worst": "Worst cases",
    "dice": "Dice per image, by segment and cohort",
    "sizes": "Predicted over true sizes",
}


def render(found: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Return the report on `found`, the content of metrics.json, with `pictures` by file name as data URIs."""
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    shown = [
        (_title(name), "data:image/png;base64," + base64.b64encode(png).decode()) for name, png in pictures.items()
    ]
    return environment.get_template("report.html").render(
        found=found, rows=_rows(figures(found)), counts=_counts(found["cohorts"]), pictures=shown
    )


def _title(name: str) -> str:
    stem, _, number = name.removesuffix(".png").rpartition("-")
    return _TITLES.get(stem if number.isdigit() else name.removesuffix(".png"), name)


def _rows(found: tuple[Figure, ...]) -> list[tuple[str, str, dict[str, Figure]]]:
    """One row per figure and what it is of; in it one `Figure` per cohort."""
    table: dict[tuple[str, str], dict[str, Figure]] = {}
    for figure in found:
        table.setdefault((figure.of, figure.name), {})[figure.cohort] = figure
    return [(of, name, cohorts) for (of, name), cohorts in table.items()]


def _counts(cohorts: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, int]]]:
    """(cohort, finding or segment, the four counts): a confusion matrix, or the presence of a segment."""
    return [
        (cohort, of, counts)
        for cohort, table in cohorts.items()
        for of, counts in (table.get("confusion") or table.get("presence") or {}).items()
    ]
