"""The quick ways through a bundle's transforms give what MONAI's own give: same grid, same affine, same labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    CastToTyped,
    Compose,
    DivisiblePadd,
    EnsureChannelFirstd,
    Invertd,
    Lambdad,
    Orientationd,
    Spacingd,
)

from tests.unit.phantom import ORIENTATIONS
from workers.predict import grid, quick, resample

SHAPE, SPACING = (37, 41, 23), (0.8, 0.7, 2.5)
PIXDIMS = [(1.5, 1.5, 1.5), (0.8, 0.7, 2.5), (0.6, 1.0, 1.1)]


def image(cosines: Any, seed: int = 3) -> MetaTensor:
    """A volume as `to_image` hands it over: memory runs along columns, then rows, then slices."""
    affine = np.eye(4)
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    affine[:3, :3] = np.stack([row, column, np.cross(row, column)], 1) * SPACING
    affine[:3, 3] = (-30.0, 12.5, 7.0)
    pixels = np.random.default_rng(seed).normal(0, 500, SHAPE[::-1]).astype(np.float32).transpose(2, 1, 0)
    return MetaTensor(
        torch.from_numpy(pixels), affine=torch.from_numpy(affine), meta={"original_channel_dim": "no_channel"}
    )


def chains(pixdim: Any, *more: Any) -> tuple[Compose, Compose]:
    steps = [
        EnsureChannelFirstd(keys="image", channel_dim="no_channel"),
        *more,
        Orientationd(keys="image", axcodes="RAS"),
    ]
    before = Compose([*steps, Spacingd(keys="image", pixdim=pixdim, mode="bilinear"), DivisiblePadd(keys="image", k=8)])
    back = Invertd(keys="pred", transform=before, orig_keys="image", nearest_interp=False)
    after = [Activationsd(keys="pred", softmax=True), back, AsDiscreted(keys="pred", argmax=True)]
    return before, Compose([*after, CastToTyped(keys="pred", dtype=torch.uint8)])


def classes(image: MetaTensor, kind: str) -> MetaTensor:
    """Values of five classes on the grid of `image`: noise, blobs with borders between them, or all equal."""
    noise = torch.from_numpy(np.random.default_rng(9).normal(size=(5, *image.shape[1:])).astype(np.float32))
    if kind == "blobs":
        noise = 40 * torch.nn.functional.avg_pool3d(noise, 9, 1, 4)
    return MetaTensor(noise * (kind != "equal"))


@pytest.mark.parametrize("cosines", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
@pytest.mark.parametrize("pixdim", PIXDIMS)
def test_preparing_gives_what_monai_gives(pixdim: Any, cosines: Any) -> None:
    usual, ours = chains(pixdim)[0], chains(pixdim)
    quick.quicken(*ours)
    expected, found = usual({"image": image(cosines)})["image"], ours[0]({"image": image(cosines)})["image"]
    assert found.shape == expected.shape
    assert torch.allclose(found.affine, expected.affine, atol=1e-9)
    assert torch.allclose(found.as_tensor(), expected.as_tensor(), atol=2e-3)  # of values up to 2000
    assert [step["class"] for step in found.applied_operations[:1]] == [
        step["class"] for step in expected.applied_operations[:1]
    ]


@pytest.mark.parametrize("kind", ["noise", "blobs", "equal"])
@pytest.mark.parametrize("pixdim", PIXDIMS)
@pytest.mark.parametrize("cosines", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_labels_come_back_as_interpolation_and_argmax_bring_them(cosines: Any, pixdim: Any, kind: str) -> None:
    usual, ours = chains(pixdim), chains(pixdim)
    quick.quicken(*ours)
    answers = []
    for before, after in (usual, ours):
        case = before({"image": image(cosines)})
        case["pred"] = classes(case["image"], kind)
        answers.append(after(case)["pred"])
    assert isinstance(ours[1].transforms[1], quick.LabelsBackd)
    assert answers[0].shape == answers[1].shape == (1, *SHAPE)
    assert answers[1].dtype == torch.uint8
    assert torch.equal(answers[0].as_tensor(), answers[1].as_tensor())


def test_only_voxels_at_a_border_are_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = grid._interpolated

    def counted(*arguments: Any) -> Any:
        asked.append(len(arguments[3]))
        return original(*arguments)

    monkeypatch.setattr(grid, "_interpolated", counted)
    values = np.zeros((2, 20, 20, 20), np.float32)
    values[0], values[1, 5:15, 5:15, 5:15] = 0.5, 1.0
    axes = tuple(resample._axis(0.0, 0.5, 39, 20, "border") for _ in range(3))
    found = grid.labels_on_grid(values, axes, resample.in_parallel)  # type: ignore[arg-type]
    assert found.shape == (39, 39, 39)
    assert found[20, 20, 20] == 1
    assert 0 < sum(asked) < 0.3 * found.size


def test_a_chain_that_is_not_known_runs_as_monai_has_it() -> None:
    before, after = chains(PIXDIMS[0], Lambdad(keys="image", func=lambda x: x))
    quick.quicken(before, after)
    assert [type(step).__name__ for step in after.transforms] == [
        "Activationsd",
        "Invertd",
        "AsDiscreted",
        "CastToTyped",
    ]


def test_another_interpolation_is_left_to_monai() -> None:
    told = {"keys": "image", "pixdim": (1.5, 1.5, 1.5), "mode": "nearest"}
    usual, ours = Compose([Spacingd(**told)]), Compose([Spacingd(**told)])
    quick.quicken(ours, None)
    channel = image(ORIENTATIONS["oblique"])[None]
    assert torch.equal(usual({"image": channel})["image"], ours({"image": channel})["image"])
