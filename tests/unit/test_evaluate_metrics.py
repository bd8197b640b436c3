"""Figures against values worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from node.findings import Source, Volume
from tests.unit.phantom import segmenter
from workers.evaluate import metrics
from workers.evaluate.overlap import Overlap, overlaps, size_unit

TRUTH = np.array([False, False, True, True])
SAID = np.array([0.1, 0.4, 0.35, 0.8])


def test_classification_by_hand() -> None:
    figures = metrics.classification(TRUTH, SAID, 0.5)(np.arange(4), np.ones(4))
    assert figures == pytest.approx(
        {
            "auroc": 0.75,  # of four pairs, three are in order
            "auprc": 5 / 6,  # 1/2 · 1 at 0.8, 1/2 · 2/3 at 0.35
            "accuracy": 0.75,
            "sensitivity": 0.5,
            "specificity": 1.0,
            "precision": 1.0,
            "f1": 2 / 3,
            "calibration_error": (0.1 + 0.65 + 0.4 + 0.2) / 4,
        }
    )


def test_a_weight_counts_as_so_many_images() -> None:
    weight = np.array([1.0, 2.0, 3.0, 1.0])
    rows = np.repeat(np.arange(4), weight.astype(int))
    statistic = metrics.classification(TRUTH, SAID, 0.5)
    assert statistic(np.arange(4), weight) == pytest.approx(statistic(rows, np.ones(7)))


def test_figures_that_are_not_defined_are_none() -> None:
    statistic = metrics.classification(np.zeros(3, bool), np.array([0.1, 0.2, 0.3]), 0.5)
    found = metrics.with_intervals(statistic, np.arange(3), ["a", "b", "c"], 20)
    for name in ("auroc", "auprc", "sensitivity", "precision", "f1"):
        assert found[name] == {"value": None, "ci95": None}
    assert found["specificity"] == {"value": 1.0, "ci95": [1.0, 1.0]}


def test_intervals_resample_patients_and_not_images() -> None:
    values = np.repeat([0.0, 1.0], 50)
    statistic = metrics.means({"dice": values})
    by_patient = metrics.with_intervals(statistic, np.arange(100), ["a"] * 50 + ["b"] * 50)["dice"]
    assert by_patient == {"value": 0.5, "ci95": [0.0, 1.0]}
    low, high = metrics.with_intervals(statistic, np.arange(100), [str(k) for k in range(100)])["dice"]["ci95"]
    assert 0.38 < low < 0.45
    assert 0.55 < high < 0.62


def test_intervals_are_the_same_each_time() -> None:
    statistic = metrics.classification(TRUTH, SAID, 0.5)
    runs = [metrics.with_intervals(statistic, np.arange(4), list("abcd"), 50) for _ in range(2)]
    assert runs[0] == runs[1]


def test_one_patient_has_no_interval() -> None:
    assert metrics.with_intervals(metrics.means({"dice": np.array([0.5, 0.7])}), np.arange(2), ["a", "a"])["dice"] == {
        "value": 0.6,
        "ci95": None,
    }


def volume(shape: tuple[int, int, int], spacing: tuple[float, float, float] | None) -> Volume:
    slices, rows, columns = spacing or (1.0, 1.0, 1.0)
    sources = tuple(Source(str(k)) for k in range(shape[0]))
    affine = np.diag([columns, rows, slices, 1.0])
    return Volume(np.zeros(shape, np.float32), affine, sources, spacing, "MR", is_projection=False)


def test_overlap_in_three_dimensions(tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom")
    truth = np.zeros((10, 12, 14), np.uint8)
    truth[2:6, 3:7, 4:8] = 1
    predicted = np.roll(truth, 2, axis=0)
    first, second = overlaps(predicted, truth, volume(truth.shape, (2.5, 0.8, 0.7)), bundle)
    assert first.dice == pytest.approx(0.5)
    assert first.hausdorff95 == pytest.approx(5.0)
    assert first.true_size == pytest.approx(64 * 2.5 * 0.8 * 0.7 / 1000)
    assert first.size_error_percent == 0.0
    assert all(math.isnan(v) for v in (second.dice, second.hausdorff95, second.size_error_percent))


@pytest.mark.parametrize(("spacing", "far"), [((1.0, 0.5, 0.25), 1.5), (None, 3.0)])
def test_overlap_of_films(spacing: tuple[float, float, float] | None, far: float, tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom", dimensions=2)
    truth = np.zeros((1, 20, 20), np.uint8)
    truth[0, 5, 2:18] = 1
    predicted = np.roll(truth, 3, axis=1)
    predicted[0, 8, 2:10] = 0
    film = volume((1, 20, 20), spacing)
    fit = overlaps(predicted, truth, film, bundle)[0]
    assert fit.dice == 0.0
    assert fit.size_error_percent == pytest.approx(50.0)
    assert size_unit(film) == ("cm²" if spacing else "px")
    assert fit.true_size == pytest.approx(16 * 0.5 * 0.25 / 100 if spacing else 16)
    straight = overlaps(np.roll(truth, 3, axis=1), truth, film, bundle)[0]
    assert straight.hausdorff95 == pytest.approx(far)


def test_a_missed_and_an_invented_segment_have_dice_zero(tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom", dimensions=2)
    there, empty = np.zeros((1, 8, 8), np.uint8), np.zeros((1, 8, 8), np.uint8)
    there[0, 2:4, 2:4] = 1
    film = volume((1, 8, 8), None)
    missed, invented = overlaps(empty, there, film, bundle)[0], overlaps(there, empty, film, bundle)[0]
    assert (missed.dice, missed.size_error_percent, invented.dice) == (0.0, 100.0, 0.0)
    assert math.isnan(missed.hausdorff95)
    assert math.isnan(invented.size_error_percent)
    assert isinstance(missed, Overlap)
