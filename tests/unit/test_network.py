"""A bundle made ready: digest, weights, transforms, and the axes that MONAI's own readers would give."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import LoadImage
from PIL import Image
from safetensors.torch import save_file

from node import bundles
from node.errors import BundleError, Permanent
from node.findings import Volume
from node.scan import scan
from tests.unit.phantom import ORIENTATIONS, body, classifier, film, save, segmenter, stack
from workers.load.series import load
from workers.predict import device
from workers.predict.loaded import to_image
from workers.predict.network import Network


def volume(tmp_path: Path, **how: Any) -> Volume:
    return load(save(stack(body(), **how), tmp_path / "in"), 3)[0]


def network(bundle: bundles.Bundle) -> Network:
    return Network(bundle, "cpu", bundle.digest)


@pytest.mark.parametrize("cosines", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_a_volume_looks_as_if_it_came_from_a_nifti_file(cosines: Any, tmp_path: Path) -> None:
    found = volume(tmp_path, cosines=cosines, spacing=(2.5, 0.8, 0.7))
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ found.affine_mm
    nib.save(nib.Nifti1Image(body().transpose(2, 1, 0).astype(np.float32), ras), tmp_path / "same.nii.gz")
    expected = LoadImage(image_only=True)(tmp_path / "same.nii.gz")
    ours = to_image(found)
    assert torch.equal(ours.as_tensor(), expected.as_tensor())
    assert torch.allclose(ours.affine, expected.affine, atol=1e-4)
    assert ours.dtype == expected.dtype == torch.float32


def test_a_film_looks_as_if_it_came_from_a_picture_file(tmp_path: Path) -> None:
    picture = (body()[5] // 4).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "same.png")
    expected = LoadImage(image_only=True, reader="PILReader")(tmp_path / "same.png")
    [found] = load(save([film(picture)], tmp_path / "in"), 2)
    assert torch.equal(to_image(found).as_tensor(), expected.as_tensor().float())
    assert torch.equal(to_image(found).affine, expected.affine)


def test_transforms_may_be_put_together_by_expressions(tmp_path: Path) -> None:
    plain = segmenter(tmp_path / "plain")
    config = json.loads((plain.folder / "configs/inference.json").read_text())
    before, after = config["preprocessing"]["transforms"], config["postprocessing"]["transforms"]
    composed = segmenter(
        tmp_path / "composed",
        before=before,
        after=after,
        preprocessing={"_target_": "Compose", "transforms": "$@before[:2] + @before[2:]"},
        postprocessing="$monai.transforms.Compose([monai.transforms.Compose(@after)])",
    )
    found = volume(tmp_path)
    assert np.array_equal(network(plain).read(found), network(composed).read(found))


def test_only_the_network_computes_within_a_turn(tmp_path: Path) -> None:
    said: list[str] = []

    @contextmanager
    def turn() -> Iterator[None]:
        said.append("turn")
        yield
        said.append("over")

    made = network(segmenter(tmp_path / "phantom"))
    made.turn = turn
    for name in ("_before", "_inferer", "_after"):
        part = getattr(made, name)
        setattr(made, name, lambda *given, name=name, part=part: said.append(name) or part(*given))
    made.read(volume(tmp_path))
    assert said == ["_before", "turn", "_inferer", "over", "_after"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"reader": "NibabelReader", "as_closest_canonical": True}, "as_closest_canonical = True"),
        ({"affine_lps_to_ras": False}, "affine_lps_to_ras = False"),
        ({"reader": "ITKReader", "reverse_indexing": True}, "reverse_indexing = True"),
        ({"reader": "PydicomReader", "swap_ij": False}, "swap_ij = False"),
    ],
)
def test_a_reader_that_would_turn_images_is_declined(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    reader: dict[str, Any] = {"_target_": "LoadImaged", "keys": "image"} | options
    steps = [reader, {"_target_": "EnsureChannelFirstd", "keys": "image"}]
    bundle = segmenter(tmp_path / "zoo", preprocessing={"_target_": "Compose", "transforms": steps})
    with pytest.raises(BundleError, match=rf"LoadImaged has {told}, which turns an image .* let an Orientationd"):
        network(bundle)


def test_a_reader_that_an_expression_made_is_looked_at_too(tmp_path: Path) -> None:
    made = "monai.transforms.LoadImaged('image', reader='NibabelReader', as_closest_canonical=True)"
    before = f"$monai.transforms.Compose([{made}])"
    bundle = segmenter(tmp_path / "zoo", imports=["$import monai"], preprocessing=before)
    with pytest.raises(BundleError, match="LoadImaged has as_closest_canonical = True"):
        network(bundle)


@pytest.mark.parametrize(
    "options", [{"affine_lps_to_ras": True}, {"reader": "PILReader", "reverse_indexing": True}, {"image_only": True}]
)
def test_options_of_a_reader_that_turn_nothing_are_passed_over(options: dict[str, Any], tmp_path: Path) -> None:
    reader: dict[str, Any] = {"_target_": "LoadImaged", "keys": "image"} | options
    steps = [reader, {"_target_": "EnsureChannelFirstd", "keys": "image"}]
    network(segmenter(tmp_path / "zoo", preprocessing={"_target_": "Compose", "transforms": steps}))


def test_another_digest_is_not_run(tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom")
    digest = bundle.digest
    (bundle.folder / "configs" / "inference.json").write_text('{"network_def": "$__import__(\'os\').abort()"}')
    with pytest.raises(BundleError, match=r"Bundle phantom 1\.0\.0 has changed"):
        Network(bundles.load(bundle.folder), "cpu", digest)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom")
    torch.save({"weight": torch.zeros(3, 1, 1, 1, 1), "head.bias": torch.zeros(1)}, bundle.folder / "models/model.pt")
    with pytest.raises(BundleError, match=r"1 parameters are missing and 1 unknown \(bias, head.bias …\)"):
        network(bundles.load(bundle.folder))


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom")
    torch.save({"weight": torch.zeros(2, 1, 1, 1, 1), "bias": torch.zeros(2)}, bundle.folder / "models/model.pt")
    with pytest.raises(BundleError, match=r"model\.pt cannot be loaded: RuntimeError"):
        network(bundles.load(bundle.folder))


def test_weights_are_never_unpickled_into_code(tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom")
    torch.save({"weight": Trap(tmp_path / "sprung")}, bundle.folder / "models/model.pt")
    with pytest.raises(BundleError, match=r"model\.pt needs other code to be unpickled \(.*pathlib\.Path"):
        network(bundles.load(bundle.folder))
    assert not (tmp_path / "sprung").exists()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_safetensors_give_the_same_answer(tmp_path: Path) -> None:
    one, two = segmenter(tmp_path / "one"), segmenter(tmp_path / "two")
    save_file(torch.load(two.folder / "models/model.pt", weights_only=True), two.folder / "models/model.safetensors")
    (two.folder / "models/model.pt").unlink()
    found = volume(tmp_path)
    assert np.array_equal(network(one).read(found), network(bundles.load(two.folder)).read(found))


def test_a_config_without_an_id_is_named(tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom")
    (bundle.folder / "configs" / "inference.json").write_text('{"network_def": 1, "preprocessing": {}}')
    with pytest.raises(BundleError, match=r"inference\.json has no id inferer, postprocessing"):
        network(bundles.load(bundle.folder))


def test_a_config_that_does_not_build_is_named(tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom", inferer={"_target_": "NoSuchInferer"})
    with pytest.raises(BundleError, match=r"Bundle phantom 1\.0\.0: configs/inference\.json does not build"):
        network(bundle)


def test_nan_is_no_answer_even_where_argmax_would_hide_it(tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom")
    state = torch.load(bundle.folder / "models/model.pt", weights_only=True)
    torch.save({**state, "bias": torch.tensor([torch.nan, 0.0, 0.0])}, bundle.folder / "models/model.pt")
    with pytest.raises(Permanent, match="values that are not finite numbers; nothing was reported"):
        network(bundles.load(bundle.folder)).read(volume(tmp_path))


def test_a_transform_that_fails_is_named(tmp_path: Path) -> None:
    broken = {"_target_": "Compose", "transforms": [{"_target_": "EnsureChannelFirstd", "keys": "picture"}]}
    with pytest.raises(Permanent, match=r"phantom 1\.0\.0 failed on an input of \(12, 20, 16\)"):
        network(segmenter(tmp_path / "phantom", preprocessing=broken)).read(volume(tmp_path))


@pytest.mark.parametrize("name", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    bundle = classifier(tmp_path / "phantom")
    with pytest.raises(Permanent, match=f'worker.device is "{name}"'):
        Network(bundle, name, bundle.digest)


def test_half_of_the_processors_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(device, "cores", lambda: 6)
    try:
        device.choose("cpu")
        assert torch.get_num_threads() == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setattr(device, "cores", lambda: 2)
        device.choose("cpu")
        assert torch.get_num_threads() == 3  # the admin has said how many; torch read it at start
    finally:
        torch.set_num_threads(before)


def test_a_configuration_may_be_written_in_yaml(tmp_path: Path) -> None:
    import yaml

    plain = segmenter(tmp_path / "plain")
    config = plain.folder / "configs" / "inference.json"
    said = network(plain).read(volume(tmp_path))
    config.with_suffix(".yaml").write_text(yaml.safe_dump(json.loads(config.read_text())))
    config.unlink()
    written = bundles.load(plain.folder)
    assert written.digest != plain.digest
    assert np.array_equal(network(written).read(volume(tmp_path)), said)
    assert {code.where.partition(":")[0] for code in scan(written).runs} == {"configs/inference.yaml"}
    (plain.folder / "configs" / "inference.yaml").write_text("a: [")
    with pytest.raises(BundleError, match=r"inference\.yaml: while parsing"):
        scan(bundles.load(plain.folder))
    (plain.folder / "configs" / "inference.yaml").unlink()
    with pytest.raises(BundleError, match=r"has no configs/inference\.json, and no inference\.yaml"):
        bundles.load(plain.folder)


def test_what_went_wrong_first_is_told_and_not_that_monai_wrapped_it(tmp_path: Path) -> None:
    fails = {"_target_": "Lambdad", "keys": "image", "func": "$lambda image: image.no_such_part"}
    steps = [{"_target_": "LoadImaged", "keys": "image"}, fails]
    bundle = classifier(tmp_path / "fails", preprocessing={"_target_": "Compose", "transforms": steps})
    [found] = load(save([film(body()[5])], tmp_path / "in"), 2)
    with pytest.raises(Permanent, match=r"failed on an input of \(1, 20, 16\): AttributeError: .*no_such_part"):
        network(bundle).read(found)
    missing = classifier(tmp_path / "missing", network_def={"_target_": "torch.nn.Linear", "in_features": "$1 / 0"})
    with pytest.raises(BundleError, match=r"inference\.json does not build: ZeroDivisionError"):
        network(missing)
