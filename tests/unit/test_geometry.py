"""From Image Planes to one regular stack, or the reason why not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from node.errors import Unsuitable
from tests.unit.phantom import AXIAL, ORIENTATIONS, SAGITTAL, positions
from workers.load.geometry import Plane, stack


def planes(where: Any, cosines: Any = AXIAL, spacing: Any = (1.0, 1.0), shape: Any = (20, 16)) -> list[Plane]:
    return [Plane(f"instance 1.{k}", tuple(p), tuple(cosines), spacing, shape, "1.9") for k, p in enumerate(where)]


def never(i: int, j: int) -> bool:
    raise AssertionError("no two slices share a place")


def refusal(some: Sequence[Plane], same: Any = never) -> str:
    with pytest.raises(Unsuitable) as caught:
        stack(some, same)
    return str(caught.value)


@pytest.mark.parametrize("cosines", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_order_follows_the_normal_whatever_the_order_of_files(cosines: Sequence[float]) -> None:
    some = planes(positions(30, cosines, 2.5), cosines)
    shuffled = np.random.default_rng(1).permutation(30)
    found = stack([some[k] for k in shuffled], never)
    assert [int(shuffled[i]) for i in found.order] == list(range(30))


@pytest.mark.parametrize("cosines", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_affine_is_the_equation_of_the_standard(cosines: Sequence[float]) -> None:
    where = positions(9, cosines, 2.5)
    found = stack(planes(where, cosines, (0.8, 0.7)), never)
    column, row, k = 3, 5, 7
    # PS3.3 §C.7.6.2.1.1: the row cosines run along a row, from column to column.
    expected = where[k] + np.array(cosines[:3]) * 0.7 * column + np.array(cosines[3:]) * 0.8 * row
    assert np.allclose((found.affine_mm @ [column, row, k, 1])[:3], expected, atol=1e-6)
    assert np.allclose(found.spacing_mm, (2.5, 0.8, 0.7))
    assert np.linalg.det(found.affine_mm[:3, :3]) > 0


def test_the_step_comes_from_positions_and_not_from_their_rounding() -> None:
    where = positions(40, AXIAL, 1.25).round(2)
    assert stack(planes(where), never).spacing_mm[0] == pytest.approx(1.25, abs=1e-3)


def test_tilt_is_named_with_its_angle() -> None:
    angle = np.radians(17)
    where = [(0.0, 3.0 * k * np.tan(angle), 3.0 * k) for k in range(20)]
    assert refusal(planes(where)) == "the slices are stacked at a slant (gantry tilt 17.0°)"


def test_a_tilt_that_shifts_less_than_half_a_millimeter_is_none() -> None:
    where = [(0.0, 0.02 * k, 3.0 * k) for k in range(20)]
    assert len(stack(planes(where), never).order) == 20


def test_one_slice_beside_the_line_is_no_tilt() -> None:
    where = positions(20)
    where[7, 0] += 4.0
    assert refusal(planes(where)) == "the slices lie up to 4.0 mm off the straight line through the first one"


def test_a_gap_names_how_many_and_where() -> None:
    where = np.delete(positions(20, first=(0, 0, -38)), [8, 9], axis=0)
    assert refusal(planes(where)) == "2 slices are missing between z = -31.0 mm and z = -28.0 mm"


def test_a_gap_in_a_sagittal_stack_is_named_along_x() -> None:
    where = np.delete(positions(20, SAGITTAL, first=(5, 0, 0)), 4, axis=0)
    assert refusal(planes(where, SAGITTAL)) == "1 slice is missing between x = 2.0 mm and x = 0.0 mm"


def test_several_gaps_are_counted() -> None:
    where = np.delete(positions(40), [8, 20, 31], axis=0)
    assert "(and at 2 more places)" in refusal(planes(where))


def test_one_slice_moved_is_irregular() -> None:
    where = positions(20, step=2.5)
    where[9, 2] += 0.7
    assert refusal(planes(where)) == "the distance between slices varies from 1.80 to 3.20 mm"


def test_a_spacing_that_changes_halfway_is_irregular_and_no_gap() -> None:
    z = np.concatenate([np.arange(14) * 4.0, 52 + 7.0 * np.arange(1, 14)])
    assert refusal(planes([(0.0, 0.0, v) for v in z])).startswith("the distance between slices varies from 4.00")


def test_a_slow_drift_is_irregular() -> None:
    z = np.cumsum(np.linspace(1.0, 1.04, 200))
    assert "varies" in refusal(planes([(0.0, 0.0, v) for v in z]))


def test_the_same_picture_twice_counts_once() -> None:
    some = planes(positions(10))
    doubled = [*some, dataclasses.replace(some[4], name="instance 1.99")]
    found = stack(doubled, lambda i, j: True)
    assert len(found.order) == 10
    assert 10 not in found.order


def test_different_pictures_of_one_place_are_refused() -> None:
    some = planes(positions(10))
    told = refusal([*some, dataclasses.replace(some[4], name="instance 1.99")], lambda i, j: False)
    assert told.startswith("instance 1.4 and instance 1.99 are different pictures of the same place, z = 11.0 mm")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"position_mm": None}, "instance 1.3 has no valid Image Position (Patient) (0020,0032)"),
        ({"cosines": None}, "instance 1.3 has no valid Image Orientation (Patient) (0020,0037)"),
        ({"spacing_mm": None}, "instance 1.3 has no valid Pixel Spacing (0028,0030)"),
        ({"cosines": (1.1, 0, 0, 0, 1, 0)}, "have lengths 1.100 and 1.000 instead of 1"),
        ({"cosines": (1, 0, 0, 0.6, 0.8, 0)}, "rows and columns of instance 1.3 meet at 53.1° instead of 90°"),
        ({"cosines": SAGITTAL}, "it mixes orientations: instance 1.3 is turned against the others"),
        ({"cosines": (1, 0, 0, 0, -1, 0)}, "it mixes orientations: instance 1.3 is turned against the others"),
        ({"shape": (512, 256)}, "it mixes image sizes: instance 1.3 has 512 × 256, the others 20 × 16"),
        ({"spacing_mm": (1.0, 0.5)}, "it mixes pixel spacings: instance 1.3 has 1 × 0.5, the others 1 × 1"),
        ({"frame_of_reference_uid": "1.8"}, "its 10 slices lie in 2 different frames of reference"),
    ],
)
def test_one_odd_slice_is_named(change: dict[str, Any], reason: str) -> None:
    some = planes(positions(10))
    some[3] = dataclasses.replace(some[3], **change)
    assert reason in refusal(some)


def test_cosines_a_little_off_are_made_orthonormal() -> None:
    found = stack(planes(positions(5), (1.0004, 0, 0, 0.0004, 0.9997, 0)), never)
    turn = found.affine_mm[:3, :3]
    assert np.allclose(turn.T @ turn, np.eye(3), atol=1e-9)


def test_the_first_slice_may_be_the_odd_one() -> None:
    some = planes(positions(10))
    some[0] = dataclasses.replace(some[0], shape=(512, 512))
    assert "instance 1.0 has 512 × 512" in refusal(some)


@pytest.mark.parametrize(("count", "reason"), [(0, "no image that can be part"), (1, "it has 1 slice")])
def test_less_than_two_slices_are_no_volume(count: int, reason: str) -> None:
    assert reason in refusal(planes(positions(count)))
