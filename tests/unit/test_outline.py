import numpy as np
import pytest

from workers.report import outline


def test_a_rectangle_measures_its_diagonal_and_the_chord_across_it() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:16, 5:45] = True  # 6 rows of 2 mm, 40 columns of 0.5 mm: 12 by 20 mm
    axes = outline.axes(mask, row_spacing_mm=2.0, column_spacing_mm=0.5)
    assert axes.long_mm == pytest.approx(np.hypot(12, 20), abs=1.0)
    assert axes.short_mm <= axes.long_mm
    along, across = (np.diff(line, axis=0)[0] * [0.5, 2.0] for line in (axes.long, axes.short))
    assert np.dot(along, across) == pytest.approx(0, abs=1e-6), "at a right angle in millimeters"
    assert np.linalg.norm(along) == pytest.approx(axes.long_mm)
    assert np.linalg.norm(across) == pytest.approx(axes.short_mm)


def test_both_axes_lie_on_an_object_of_oblong_pixels() -> None:
    y, x = np.mgrid[:60, :90]
    mask = ((x - 30) / 22) ** 2 + ((y - 40) / 9) ** 2 < 1
    axes = outline.axes(mask, row_spacing_mm=2.0, column_spacing_mm=0.7)
    for line in (axes.long, axes.short):
        inside = np.linspace(line[0], line[1], 40)[2:-2]
        assert all(mask[int(row), int(column)] for column, row in inside)


def test_a_disk_measures_its_diameter_both_ways() -> None:
    y, x = np.mgrid[:80, :80]
    axes = outline.axes(np.hypot(x - 41.3, y - 37.8) < 25, 0.8, 0.8)
    assert axes.long_mm == pytest.approx(40, abs=1.2)
    assert axes.short_mm == pytest.approx(40, abs=1.6)


def test_the_short_axis_does_not_leave_a_crescent() -> None:
    y, x = np.mgrid[:100, :100]
    crescent = (np.hypot(x - 50, y - 50) < 40) & (np.hypot(x - 50, y - 30) > 40)
    axes = outline.axes(crescent, 1, 1)
    inside = np.linspace(axes.short[0], axes.short[1], 50)[2:-2]
    assert all(crescent[int(row), int(column)] for column, row in inside)


def test_only_the_largest_part_is_measured() -> None:
    mask = np.zeros((50, 50), bool)
    mask[5:25, 5:8] = True
    mask[40, 48] = True
    assert outline.axes(mask, 1, 1).long_mm < 22


def test_one_pixel_can_be_measured() -> None:
    mask = np.zeros((5, 5), bool)
    mask[2, 3] = True
    axes = outline.axes(mask, 0.5, 0.5)
    assert 0 < axes.short_mm <= axes.long_mm <= 0.75
    assert np.allclose(axes.long.mean(axis=0), [3.5, 2.5]), "the center of a pixel is at its index plus one half"


def test_outlines_run_along_the_pixels_borders() -> None:
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:9] = True
    (points,) = outline.outlines(mask)
    assert points.min(axis=0) == pytest.approx([3, 2])
    assert points.max(axis=0) == pytest.approx([9, 5])
    assert (points[0] == points[-1]).all(), "closed"
