"""Augmentation of batches: what is bent stays together, what is not asked for stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from workers.train.augment import Augment, Geometry, Look, blurred, smooth_field
from workers.train.teachers import teacher

CPU = torch.device("cpu")
SIZE = (12, 10, 8)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(5)


def _sampled(image: Tensor, geometry: Geometry) -> Tensor:
    return functional.grid_sample(image, geometry.grid(len(image), image.shape[2:], CPU), align_corners=False)


def _augment(geometry: Geometry, **how: object) -> Augment:
    return Augment(geometry, Look(), **how)  # type: ignore[arg-type]


def test_nothing_asked_changes_nothing() -> None:
    batch = {"image": torch.rand(3, 1, *SIZE), "label": torch.randint(0, 3, (3, 1, *SIZE), dtype=torch.uint8)}
    image, target = _augment(Geometry(SIZE), classes=3)(batch, CPU)
    torch.testing.assert_close(image, batch["image"], atol=1e-5, rtol=0)
    one_hot = functional.one_hot(batch["label"][:, 0].long(), 3).movedim(-1, 1).float()
    torch.testing.assert_close(target, one_hot, atol=1e-5, rtol=0)


def test_a_smaller_size_is_the_middle() -> None:
    image = torch.rand(2, 1, *SIZE)
    torch.testing.assert_close(_sampled(image, Geometry((8, 6, 4))), image[:, :, 2:10, 2:8, 2:6], atol=1e-5, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_half_of_the_images_are_flipped_along_the_axis(axis: int) -> None:
    image = torch.rand(64, 1, *SIZE)
    found = _sampled(image, Geometry(SIZE, flips=(axis,)))
    flipped = [torch.allclose(one, other.flip(axis + 1), atol=1e-5) for one, other in zip(found, image, strict=True)]
    kept = [torch.allclose(one, other, atol=1e-5) for one, other in zip(found, image, strict=True)]
    assert all(one != other for one, other in zip(flipped, kept, strict=True))
    assert 12 < sum(flipped) < 52


def test_turning_keeps_lengths_and_moving_is_in_voxels() -> None:
    """A ball stays as large when it is turned and moved; its middle moves no further than asked."""
    places = np.indices((48, 48, 48)) - 23.5
    ball = torch.tensor((places**2).sum(0) < 8**2).float()[None, None].expand(20, -1, -1, -1, -1)
    found = _sampled(ball, Geometry((48, 48, 48), rotate=0.5, translate=4.0))
    torch.testing.assert_close(found.sum((1, 2, 3, 4)), ball.sum((1, 2, 3, 4)), rtol=0.02, atol=0)
    middles = np.array([ndimage.center_of_mass(one[0].numpy()) for one in found]) - 23.5
    assert np.abs(middles).max() < 4 * 3**0.5 + 0.1
    assert np.abs(middles).max() > 1


def test_scale_is_the_size_of_a_voxel() -> None:
    square = torch.zeros(50, 1, 64, 64)
    square[:, :, 24:40, 24:40] = 1
    area = _sampled(square, Geometry((64, 64), scale=(0.5, 2.0))).sum((1, 2, 3))
    assert 16 * 16 / 4 - 40 < area.min() < 16 * 16 < area.max() < 16 * 16 * 4 + 100


def test_image_and_mask_are_bent_alike() -> None:
    label = torch.zeros(8, 1, 64, 64, dtype=torch.uint8)
    label[:, :, 16:44, 20:50] = 1
    geometry = Geometry((48, 48), flips=(0, 1), rotate=0.4, scale=(0.8, 1.25), shear=0.1, translate=5.0)
    bent = Geometry((48, 48), deformed=1.0, deform=4.0)
    for one in (geometry, bent):
        image, target = _augment(one)({"image": label.float(), "label": label}, CPU)
        torch.testing.assert_close(image, target, atol=1e-5, rtol=0)
    assert (target - label[:, :, 8:56, 8:56]).abs().sum() > 50, "nothing was deformed"


def test_targets_of_several_labels_sum_to_one_also_beyond_the_edge() -> None:
    label = torch.randint(0, 3, (4, 1, 16, 16), dtype=torch.uint8)
    _, target = _augment(Geometry((32, 32), rotate=0.5), classes=3)({"image": label.float(), "label": label}, CPU)
    torch.testing.assert_close(target.sum(1), torch.ones(4, 32, 32))
    assert target[:, 0, 0, 0].min() == 1, "beyond the edge is background"


def test_blur_is_that_of_scipy_and_each_image_has_its_own() -> None:
    image, sigma = torch.rand(2, 1, 32, 32, 32), torch.tensor([0.6, 1.2])
    found = blurred(image, sigma)[:, 0, 6:-6, 6:-6, 6:-6]
    for one, other, s in zip(found, image, sigma, strict=True):
        expected = ndimage.gaussian_filter(other[0].numpy(), float(s), truncate=4 / float(s))[6:-6, 6:-6, 6:-6]
        np.testing.assert_allclose(one.numpy(), expected, atol=1e-3)


def test_gamma_keeps_the_range_and_an_empty_image_stays_finite() -> None:
    image = torch.rand(16, 1, 20, 20) * 300 - 100
    found = Look(often=1.0, gamma=(0.5, 2.0)).change(image)
    for edge in (torch.amin, torch.amax):
        torch.testing.assert_close(edge(found, (1, 2, 3)), edge(image, (1, 2, 3)), atol=1e-3, rtol=0)
    assert not torch.allclose(found, image)
    look = Look(1.0, (0.5, 2.0), 0.2, 0.2, 0.3, (0.3, 1.5), 0.2, 2, (3, 6))
    assert look.change(torch.zeros(2, 1, 20, 20)).isfinite().all()


def test_a_look_that_never_happens_changes_nothing() -> None:
    image = torch.rand(4, 1, 20, 20)
    look = Look(0.0, (0.5, 2.0), 0.2, 0.2, 0.3, (0.3, 1.5), 0.2, 2, (3, 6))
    torch.testing.assert_close(look.change(image), image)


def test_holes_are_as_large_as_asked() -> None:
    found = Look(often=1.0, holes=1, hole=(4, 4)).change(torch.full((40, 1, 32, 32), 0.5))
    empty = (found == 0).sum((1, 2, 3))
    assert empty.max() <= 25
    assert empty.float().median() >= 12


def test_smooth_fields_are_smooth() -> None:
    field = smooth_field(4, 2, (64, 64), CPU)
    assert field.diff(dim=-1).abs().max() < 0.3
    assert field.std() > 0.4


def test_classes_are_mixed_with_their_images() -> None:
    """Images that are all 0 or all 1, as their class is: after mixup the one still tells the other."""
    label = torch.tensor([0, 1] * 16)
    image = label.float().view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    found, target = _augment(Geometry((8, 8)), mixup=1.0)({"image": image, "label": label}, CPU)
    assert target.shape == (32, 1)
    torch.testing.assert_close(found.mean((1, 2, 3)), target[:, 0], atol=1e-5, rtol=0)
    assert ((target > 0.05) & (target < 0.95)).any()


_MULTI_HOT = torch.tensor([[0, 0, 1], [1, 1, 0], [0, 0, 0], [1, 0, 1]])


@pytest.mark.parametrize(
    ("label", "classes", "expected"),
    [
        (torch.tensor([0, 1, 1, 0]), 1, [[0], [1], [1], [0]]),
        (torch.tensor([[0], [1], [1], [0]]), 1, [[0], [1], [1], [0]]),
        (torch.tensor([0, 2, 1, 0]), 3, [[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]),
        (_MULTI_HOT, 3, _MULTI_HOT.tolist()),
        (_MULTI_HOT, 1, _MULTI_HOT.tolist()),
        (_MULTI_HOT * 0.5, 3, (_MULTI_HOT * 0.5).tolist()),
        (list(_MULTI_HOT.T), 3, _MULTI_HOT.tolist()),  # as PyTorch collates lists of numbers
    ],
)
def test_labels_of_whole_images_keep_their_classes(label: Any, classes: int, expected: list[list[float]]) -> None:
    """Those of several classes became one column, four times as long as the batch."""
    batch = {"image": torch.rand(4, 1, 8, 8), "label": label}
    _, target = _augment(Geometry((8, 8)), classes=classes)(batch, CPU)
    torch.testing.assert_close(target, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("label", [torch.zeros(3), torch.zeros(4, 2), torch.zeros(2, 3)])
def test_labels_of_other_shapes_are_refused(label: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"4 images and 3 classes have labels of the shape .* expected \(4,\) or \(4, 3"
    ):
        _augment(Geometry((8, 8)), classes=3)({"image": torch.rand(4, 1, 8, 8), "label": label}, CPU)


def test_several_classes_are_mixed_with_their_images() -> None:
    label = torch.eye(2).repeat(16, 1)
    image = label[:, :, None, None].expand(-1, -1, 8, 8)
    found, target = _augment(Geometry((8, 8)), classes=2, mixup=1.0)({"image": image, "label": label}, CPU)
    torch.testing.assert_close(found.mean((2, 3)), target, atol=1e-5, rtol=0)
    assert ((target > 0.05) & (target < 0.95)).any()


def test_normalized_images_have_mean_0_and_deviation_1() -> None:
    batch = {"image": torch.rand(3, 1, 16, 16) * 50, "label": torch.tensor([0, 1, 1])}
    image, _ = _augment(Geometry((16, 16)), normalize=True)(batch, CPU)
    torch.testing.assert_close(image.mean((1, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(image.std((1, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)


def test_teachers_say_their_share_of_the_target(tmp_path: object) -> None:
    """Two networks whose logits are constant, so that what they say together is known."""
    files = []
    for number, logit in enumerate((0.0, 2.0)):
        network = torch.nn.Conv2d(1, 1, 1)
        torch.nn.init.zeros_(network.weight)
        torch.nn.init.constant_(network.bias, logit)  # type: ignore[arg-type]
        files.append(f"{tmp_path}/{number}.pt")
        torch.save(network.state_dict(), files[-1])
    taught = teacher(torch.nn.Conv2d(1, 1, 1), files, CPU)
    label = torch.ones(2, 1, 8, 8, dtype=torch.uint8)
    augment = _augment(Geometry((8, 8)), teacher=taught, teach=0.25)
    _, target = augment({"image": label.float(), "label": label}, CPU)
    said = (0.5 + torch.tensor(2.0).sigmoid()) / 2
    torch.testing.assert_close(target, torch.full_like(target, 0.75) + 0.25 * said, atol=1e-5, rtol=0)
    assert teacher(torch.nn.Conv2d(1, 1, 1), [], CPU) is None


def test_a_teacher_of_another_network_is_named(tmp_path: object) -> None:
    torch.save(torch.nn.Conv2d(1, 2, 1).state_dict(), f"{tmp_path}/other.pt")
    with pytest.raises(ValueError, match=r"other\.pt has the weights of another network"):
        teacher(torch.nn.Conv2d(1, 1, 1), [f"{tmp_path}/other.pt"], CPU)
