"""What a file of weights is, and what is declined, with the reason and the remedy."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from node import bundles, weights
from node.bundles import Bundle
from node.errors import BundleError, Permanent
from tests.unit.phantom import body, save, segmenter, stack
from workers.load.series import load
from workers.predict.network import Network

ONNX = b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x82\x01"


def network(bundle: Bundle) -> Network:
    fresh = bundles.load(bundle.folder)
    return Network(fresh, "cpu", fresh.digest)


def model(bundle: Bundle, name: str = "model.pt") -> Path:
    return bundle.folder / "models" / name


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return segmenter(tmp_path / "phantom")


def state(bundle: Bundle) -> dict[str, torch.Tensor]:
    return dict(torch.load(model(bundle), weights_only=True))


@pytest.mark.parametrize(
    ("data", "kind", "remedy"),
    [
        (ONNX, "ONNX", r"is an ONNX file; wetread runs PyTorch networks: export"),
        (b"\x89HDF\r\n\x1a\n" + bytes(90), "HDF5", "convert the network to PyTorch"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer", "git lfs pull"),
        (b"", "empty", "copy it again"),
        (b"hello, world, this is no network", "unknown", "is no file of weights"),
        (b"PK\x03\x04 but broken", "unknown", "is no file of weights"),
        (pickle.dumps({"a": 1}), "pickle", "save the tensors alone"),
    ],
)
def test_other_files_are_declined_with_the_remedy(bundle: Bundle, data: bytes, kind: str, remedy: str) -> None:
    model(bundle).write_bytes(data)
    assert weights.look(model(bundle)).kind == kind
    with pytest.raises(BundleError, match=rf"Bundle phantom 1\.0\.0: model\.pt .*{remedy}"):
        network(bundle)


def test_a_file_under_a_wrong_name_is_declined_with_the_right_one(bundle: Bundle) -> None:
    values = state(bundle)
    save_file(values, model(bundle))
    with pytest.raises(BundleError, match=r"a safetensors file under a wrong name; rename it to model\.safetensors"):
        network(bundle)
    model(bundle).unlink()
    torch.save(values, model(bundle, "model.safetensors"))
    with pytest.raises(BundleError, match=r"a state dict file under a wrong name; rename it to model\.pt"):
        network(bundle)


def test_old_pickles_of_tensors_load(bundle: Bundle) -> None:
    torch.save(state(bundle), model(bundle), _use_new_zipfile_serialization=False)
    assert weights.look(model(bundle)) == weights.Weights(model(bundle), "state dict", model(bundle).stat().st_size)
    network(bundle)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_trap_is_named_and_not_sprung(bundle: Bundle, tmp_path: Path, protocol: int, zipped: bool) -> None:
    content = {"weight": torch.zeros(1), "x": Trap(tmp_path / "sprung")}
    torch.save(content, model(bundle), pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert weights.look(model(bundle)).foreign == ("posix.mkdir",)
    with pytest.raises(
        BundleError, match=r"needs other code to be unpickled \(posix\.mkdir\), which could be anything"
    ):
        network(bundle)
    assert not (tmp_path / "sprung").exists()


def test_a_whole_network_is_declined(bundle: Bundle) -> None:
    torch.save(torch.nn.Conv3d(1, 3, 1), model(bundle))
    with pytest.raises(BundleError, match=r"torch\.nn\.modules\.conv\.Conv3d.* save the tensors alone"):
        network(bundle)


def test_tensors_of_every_kind_are_harmless(tmp_path: Path) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8)
    content: dict[str, Any] = {str(kind): torch.zeros(2, dtype=kind) for kind in kinds}
    content |= {"p": torch.nn.Parameter(torch.zeros(1)), "size": torch.Size([1]), "epoch": 3, "lr": 0.1, "d": kinds[0]}
    torch.save(content, tmp_path / "a.pt")
    assert weights.look(tmp_path / "a.pt").foreign == ()


def test_quantized_tensors_are_declined(bundle: Bundle) -> None:
    values = state(bundle)
    save_file({**values, "weight": values["weight"].to(torch.int8)}, model(bundle, "model.safetensors"))
    model(bundle).unlink()
    with pytest.raises(
        BundleError, match=r"holds quantized tensors \(weight is int8\), which the network has no place"
    ):
        network(bundle)


def test_half_precision_is_taken(bundle: Bundle) -> None:
    torch.save({name: value.half() for name, value in state(bundle).items()}, model(bundle))
    network(bundle)


def test_a_state_saved_from_data_parallel_is_explained(bundle: Bundle) -> None:
    torch.save({f"module.{name}": value for name, value in state(bundle).items()}, model(bundle))
    with pytest.raises(
        BundleError, match=r"2 parameters are missing and 2 unknown .* save network\.module\.state_dict"
    ):
        network(bundle)


def script(bundle: Bundle) -> None:
    """Replace the weights by the same network as TorchScript."""
    convolution = torch.nn.Conv3d(1, 3, 1)
    convolution.load_state_dict(state(bundle))
    model(bundle).unlink()
    torch.jit.script(convolution).save(str(model(bundle, "model.ts")))  # type: ignore[no-untyped-call]


def edit(bundle: Bundle, **changes: Any) -> None:
    path = bundle.folder / "configs" / "inference.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize("definition", ["none", "network", "jit"])
def test_torchscript_says_the_same(tmp_path: Path, bundle: Bundle, definition: str) -> None:
    [volume] = load(save(stack(body()), tmp_path / "in"), 3)
    expected = network(bundle).read(volume)
    script(bundle)
    if definition == "none":
        edit(bundle, network_def=None)
    elif definition == "jit":
        edit(bundle, imports=["$import torch"], network_def="$torch.jit.load(@bundle_root + '/models/model.ts')")
    assert np.array_equal(network(bundle).read(volume), expected)


def test_torchscript_under_a_wrong_name_is_declined(bundle: Bundle) -> None:
    script(bundle)
    model(bundle, "model.ts").rename(model(bundle))
    with pytest.raises(BundleError, match=r"a TorchScript file under a wrong name; rename it to model\.ts"):
        network(bundle)


def test_weights_without_a_network_are_declined(bundle: Bundle) -> None:
    edit(bundle, network_def=None)
    with pytest.raises(BundleError, match=r"no id network_def, and model\.pt is no network but its weights"):
        network(bundle)


def test_a_network_for_color_is_declined_on_gray_images(tmp_path: Path, bundle: Bundle) -> None:
    edit(bundle, network_def={"_target_": "torch.nn.Conv3d", "in_channels": 3, "out_channels": 3, "kernel_size": 1})
    torch.save({"weight": torch.zeros(3, 3, 1, 1, 1), "bias": torch.zeros(3)}, model(bundle))
    [volume] = load(save(stack(body()), tmp_path / "in"), 3)
    with pytest.raises(
        Permanent, match=r"a network of 3 input channels, and its preprocessing makes 1 of these images"
    ):
        network(bundle).read(volume)


def sharded(bundle: bundles.Bundle) -> bundles.Bundle:
    """The same bundle with its weights in two shards and an index."""
    state = torch.load(model(bundle), weights_only=True)
    placed = {name: f"model-0000{k}-of-00002.safetensors" for k, name in enumerate(sorted(state), 1)}
    for name, file in placed.items():
        save_file({name: state[name]}, bundle.folder / "models" / file)
    (bundle.folder / "models" / weights.INDEX).write_text(json.dumps({"weight_map": placed}))
    model(bundle).unlink()
    return bundles.load(bundle.folder)


def test_shards_of_safetensors_are_one_file_of_weights(tmp_path: Path) -> None:
    whole, shards = segmenter(tmp_path / "whole"), sharded(segmenter(tmp_path / "shards"))
    told = weights.look(bundles.weights_path(shards.folder))
    assert (told.kind, told.fault) == ("safetensors", "")
    assert told.size > 100
    assert shards.weights_sha256 != whole.weights_sha256
    ours, theirs = (Network(bundle, "cpu", bundle.digest)._network.state_dict() for bundle in (shards, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "is no index of safetensors"),
        ('{"weight_map": {"weight": "../model.pt"}}', 'names the file "../model.pt", which is not beside it'),
        ('{"weight_map": {"weight": "model-00001-of-00002.safetensors"}}', "does not say that bias is in"),
        (
            '{"weight_map": {"weight": "model-00001-of-00002.safetensors", "bias": "model-00001-of-00002.safetensors", '
            '"x": "model-00002-of-00002.safetensors"}}',
            "does not say that weight is in",
        ),
    ],
)
def test_an_index_that_lies_is_refused(index: str, message: str, tmp_path: Path) -> None:
    bundle = sharded(segmenter(tmp_path / "phantom"))
    (bundle.folder / "models" / weights.INDEX).write_text(index)
    with pytest.raises(BundleError, match=message):
        Network(bundles.load(bundle.folder), "cpu", bundles.load(bundle.folder).digest)


def test_a_shard_of_another_kind_is_named(tmp_path: Path) -> None:
    bundle = sharded(segmenter(tmp_path / "phantom"))
    torch.save({"weight": torch.zeros(1)}, bundle.folder / "models" / "model-00001-of-00002.safetensors")
    assert "is a state dict file under a wrong name" in weights.look(bundles.weights_path(bundle.folder)).fault
