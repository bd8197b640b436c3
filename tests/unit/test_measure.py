"""Volumes in mL and areas in cm², or in pixels where nobody calibrated them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.findings import Volume
from tests.unit.phantom import ORIENTATIONS, body, film, save, stack
from workers.load.series import load
from workers.predict.measure import area, measure, volume_ml

MASK = body() == 1000


@pytest.mark.parametrize("cosines", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_volume_is_voxels_times_their_size(cosines: Any, tmp_path: Path) -> None:
    [volume] = load(save(stack(body(), cosines, (2.5, 0.8, 0.7)), tmp_path), 3)
    found = volume_ml(MASK, volume)
    assert found.value == pytest.approx(MASK.sum() * 2.5 * 0.8 * 0.7 / 1000, rel=1e-5)
    assert (found.name.value, found.unit.value) == ("118565006", "ml")
    assert found.method is not None
    assert found.method.value == "126030"


def one_film(tmp_path: Path, **elements: Any) -> Volume:
    return load(save([film(body()[4], **elements)], tmp_path), 2)[0]


def test_area_of_a_calibrated_film(tmp_path: Path) -> None:
    found = area(MASK[4:5], one_film(tmp_path, PixelSpacing=[0.8, 0.7]))
    assert found.value == pytest.approx(MASK[4].sum() * 0.8 * 0.7 / 100)
    assert found.unit.value == "cm2"


@pytest.mark.parametrize("spacing", [{}, {"PixelSpacing": [0, 0]}, {"ImagerPixelSpacing": [0.2, 0.2]}])
def test_area_of_a_film_that_is_not(spacing: dict[str, Any], tmp_path: Path) -> None:
    found = area(MASK[4:5], one_film(tmp_path, **spacing))
    assert found.value == MASK[4].sum()
    assert found.unit.value == "{pixels}"


def test_measurements_come_in_the_order_asked_for(tmp_path: Path) -> None:
    found = measure(["area", "volume"], np.ones((1, 20, 16), bool), one_film(tmp_path))
    assert [m.name.meaning for m in found] == ["Area", "Volume"]
