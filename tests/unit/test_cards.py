"""Figures out of metrics.json as `wetread evaluate` and the bundles' own scripts write it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node import bundles, cards, cli
from node.errors import BundleError
from tests.unit.phantom import classifier

METRICS = {
    "weights_sha256": "ab",
    "cohorts": {
        "north": {
            "images": 3,
            "auc": {"value": 0.91234, "ci95": [0.9, 0.95]},
            "dice": {"Left": {"value": 0.8, "ci95": None}, "Right": {"value": None, "ci95": None}},
            "confusion": {"Left": {"true_positive": 1}},
            "calibration": [1, 2],
        },
        "odd": 7,
    },
}


def test_figures_are_found_with_and_without_parts() -> None:
    first, left, right = cards.figures(METRICS)
    assert (first.cohort, first.name, first.of, first.shown, first.interval) == (
        "north",
        "AUROC",
        "",
        "0.912",
        "[0.900, 0.950]",
    )
    assert (left.of, left.shown, left.interval) == ("Left", "0.800", "")
    assert (right.of, right.shown) == ("Right", "not defined")


@pytest.mark.parametrize("found", [{}, {"cohorts": []}, {"cohorts": {"a": {"b": {"c": 1}}}}])
def test_nothing_is_made_up(found: dict[str, object]) -> None:
    assert cards.figures(found) == ()
    assert cards.table(found) == []


def test_every_shipped_bundle_has_a_card_and_figures() -> None:
    for bundle in bundles.available():
        assert cards.card(bundle).startswith("# "), bundle.name
        assert all(figure.ci95 for figure in cards.figures(cards.metrics(bundle)))
        assert cards.figures(cards.metrics(bundle)), bundle.name


def test_models_show_tells_card_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = classifier(tmp_path / "models" / "bright")
    (tmp_path / "wetread.toml").write_text(f'[worker]\nmodels = "{tmp_path / "models"}"\n')
    show = ["models", "show", "bright", "--config", str(tmp_path / "wetread.toml")]
    assert cli.run(show) == 0
    assert "No figures are known" in capsys.readouterr().out
    (bundle.folder / "docs").mkdir()
    (bundle.folder / "docs" / "metrics.json").write_text(json.dumps(METRICS))
    (bundle.folder / "docs" / "README.md").write_text("# Bright\n\nSees light.\n")
    assert cli.run(show) == 0
    out = capsys.readouterr().out
    assert "[0.900, 0.950]" in out
    assert "measured with other weights" in out
    assert out.endswith("# Bright\n\nSees light.\n")
    assert cli.run([*show, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["metrics"], told["card"]) == (METRICS, "# Bright\n\nSees light.\n")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_broken_figures_are_named(text: str, tmp_path: Path) -> None:
    bundle = classifier(tmp_path / "bright")
    (bundle.folder / "docs").mkdir()
    (bundle.folder / "docs" / "metrics.json").write_text(text)
    with pytest.raises(BundleError, match=r"docs/metrics\.json"):
        cards.metrics(bundle)
