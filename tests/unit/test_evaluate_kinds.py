"""Masks that overlap, several series and color in an evaluation; a detector is declined in words."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from node.clock import to_datetime
from node.errors import Permanent, Unsuitable
from tests.unit import zoo
from tests.unit.phantom import body, save, stack
from tests.unit.test_slices import photograph
from workers.evaluate import images, manifest, plots
from workers.evaluate.overlap import flat
from workers.evaluate.scoring import Score, compare, score
from workers.predict.network import Network


def test_masks_that_overlap_are_compared_one_by_one(tmp_path: Path) -> None:
    bundle = zoo.multi_label(tmp_path / "zoo")
    save(stack(np.maximum(body(), 100)), tmp_path / "series")
    truth = np.stack([body() > 300, body() > 800]).astype(np.uint8)
    truth[1, 3] = 0  # one slice of the inner one is not drawn
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ images.volume(tmp_path / "series", 3).affine_mm
    nib.save(nib.Nifti1Image(truth.transpose(3, 2, 1, 0), ras), tmp_path / "masks.nii.gz")
    (tmp_path / "manifest.csv").write_text("image,label\nseries,masks.nii.gz\n")
    [case] = manifest.load(tmp_path / "manifest.csv", bundle)
    network = Network(bundle, "cpu", bundle.digest)
    found = score(case, network, bundle, to_datetime(0), "manifest.csv")
    assert found.overlaps[0].dice == 1.0
    assert 0.5 < found.overlaps[1].dice < 1.0
    seen = compare(case, network, bundle, to_datetime(0), "manifest.csv")
    assert flat(seen.predicted).shape == flat(seen.truth).shape == body().shape
    volume = images.volume_for(tmp_path / "series", bundle)
    nib.save(nib.Nifti1Image(truth[0].transpose(2, 1, 0), ras), tmp_path / "one.nii.gz")
    with pytest.raises(images.MaskError, match="four dimensions whose last has 2 masks"):
        images.masks(tmp_path / "one.nii.gz", volume, bundle)


def test_color_pictures_are_read_in_color_and_channels_from_one_folder(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "tool.png")
    found = images.volume_for(tmp_path / "tool.png", zoo.colored(tmp_path / "color"))
    assert np.array_equal(np.stack(found.channels, axis=-1)[0], pixels)
    more = "".join(f'[[channel]]\nname = "{n}"\n[channel.series]\nSeriesDescription = "{n}"\n' for n in ("T1", "T2"))
    bundle = zoo.multi_label(tmp_path / "zoo", inputs=2, more=more)
    for number, name in enumerate(("T1", "T2"), 1):
        save(stack(body(), SeriesInstanceUID=f"1.2.{number}", SeriesDescription=name), tmp_path / "study" / name)
    assert len(images.volume_for(tmp_path / "study", bundle).channels) == 2
    with pytest.raises(Unsuitable, match=r"holds 0 studies that zoo 1\.0\.0 reads: channel"):
        images.volume_for(tmp_path / "study" / "T1", bundle)


def test_the_worst_cases_of_color_are_shown(tmp_path: Path) -> None:
    bundle = zoo.colored(tmp_path / "color")
    red = np.random.default_rng(1).integers(0, 9, (6, 8, 3)).astype(np.uint8)
    red[..., 0] = 250
    [file] = save([photograph(red)], tmp_path)
    wrong = Score(manifest.Case(1, "red", file, (False,), "p", "all"), probabilities=(0.9,))
    shown = plots.classification([wrong], bundle, 1)["worst.png"]
    assert shown != plots._films([replace(wrong, case=replace(wrong.case, image=tmp_path / "gone"))], 0, bundle)
    assert np.asarray(Image.open(io.BytesIO(shown)).convert("L")).std() > 10


def test_a_detector_is_not_measured(tmp_path: Path) -> None:
    bundle = zoo.finder(tmp_path / "zoo", '[boxes]\nmode = "xyzxyz"\n')
    (tmp_path / "manifest.csv").write_text("image,label\nx,1\n")
    with pytest.raises(Permanent, match="is a detector; wetread measures findings and masks, not boxes"):
        manifest.load(tmp_path / "manifest.csv", bundle)
