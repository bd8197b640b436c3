"""`wetread train`: the bundle's own train.json, the same weights as `monai.bundle run`, and going on after an end."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from node import bundles, cli, cli_model, trust
from node.bundles import Bundle
from node.errors import BundleError, ConfigError, Permanent
from tests.unit.phantom import classifier
from workers.evaluate import manifest
from workers.train import card, datalist
from workers.train.request import Request
from workers.train.run import train

_NETWORK = "$torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 1))"
_LIST = {"_target_": "load_decathlon_datalist", "data_list_file_path": "@datalist", "is_segmentation": False} | {
    "base_dir": "@dataset_dir"
}
_METRIC = {"_target_": "ROCAUC", "output_transform": "$monai.handlers.from_engine(['pred', 'label'])"}


def _loading(part: str, key: str, shuffle: bool) -> dict[str, Any]:
    return {
        "dataset": {"_target_": "Dataset", "data": {**_LIST, "data_list_key": part}, "transform": "@transforms"},
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": f"@{key}#dataset",
            "batch_size": "@batch_size",
            "shuffle": shuffle,
            "drop_last": shuffle,
        },
    }


TRAIN: dict[str, Any] = {
    "imports": ["$import torch", "$import monai"],
    "bundle_root": ".",
    "dataset_dir": ".",
    "datalist": "x",
    "output_dir": "x",
    "seed": 7,
    "max_epochs": 4,
    "batch_size": 4,
    "device": "$torch.device('cpu')",
    "network_def": _NETWORK,
    "network": "$@network_def.to(@device)",
    "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.1},
    "transforms": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "ScaleIntensityd", "keys": "image"},
            {"_target_": "RandGaussianNoised", "keys": "image", "prob": 0.5},
            {"_target_": "EnsureTyped", "keys": "image", "track_meta": False},
        ],
    },
    "train": {
        **_loading("training", "train", True),
        "trainer": {
            "_target_": "SupervisedTrainer",
            "max_epochs": "@max_epochs",
            "device": "@device",
            "train_data_loader": "@train#dataloader",
            "network": "@network",
            "loss_function": "$lambda pred, label: torch.nn.BCEWithLogitsLoss()(pred, label.float().view(-1, 1))",
            "optimizer": "@optimizer",
            "train_handlers": [
                {
                    "_target_": "ValidationHandler",
                    "validator": "@validate#evaluator",
                    "epoch_level": True,
                    "interval": 1,
                }
            ],
        },
    },
    "validate": {
        **_loading("validation", "validate", False),
        "early_stop": {
            "_target_": "EarlyStopHandler",
            "patience": 3,
            "score_function": "$monai.handlers.stopping_fn_from_metric('val_auc')",
        },
        "handlers": [
            {"_target_": "CheckpointSaver", "save_dir": "@output_dir", "save_dict": {"model": "@network"}}
            | {"save_key_metric": True, "key_metric_filename": "model.pt"}
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@validate#dataloader",
            "network": "@network",
            "key_val_metric": {"val_auc": _METRIC},
            "val_handlers": "@validate#handlers",
        },
    },
    "initialize": ["$monai.utils.set_determinism(@seed)"],
    "run": ["$@train#trainer.run()"],
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = classifier(tmp_path / "models" / "bright")
    (made.folder / "configs" / "train.json").write_text(json.dumps(TRAIN))
    (made.folder / "docs").mkdir()
    (made.folder / "docs" / "README.md").write_text("# bright\n\nSees light.\n")
    return bundles.load(made.folder)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Films of thirty people, two each; those with more light are bright."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = ["image,label,patient"]
    for number in range(60):
        pixels = np.zeros(400, np.uint8)
        pixels[: 40 + 320 * (number % 2) + number] = 255
        Image.fromarray(pixels.reshape(20, 20)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{number % 2},p{number // 2}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def run(bundle: Bundle, data: Path, out: Path, **how: Any) -> list[dict[str, Any]]:
    heard: list[dict[str, Any]] = []
    request = Request(str(bundle.folder), bundle.digest, str(data), str(out), 1_700_000_000.0, **how)
    train(request, bundle, datalist.load(data, bundle), heard.append)
    return [message for message in heard if message["image"].startswith("epoch")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "model.pt", weights_only=True)
    return found.get("model", found)  # type: ignore[return-value]


def test_patients_stay_in_one_part(bundle: Bundle, data: Path) -> None:
    lists = datalist.load(data, bundle)
    people = {part: {case["patient"] for case in cases} for part, cases in lists.items()}
    assert sum(map(len, people.values())) == 30
    assert all(people[part] for part in datalist.PARTS)
    assert sum(len(cases) for cases in lists.values()) == 60


def test_every_finding_of_a_manifest_is_in_lists_and_test(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    first = bundle.dicom.finding[0]
    second = first.model_copy(update={"output": 1, "label": "Round"})
    both = bundle.model_copy(update={"dicom": bundle.dicom.model_copy(update={"finding": [first, second]})})
    lines = [f"{number}.png,{label}" for number, label in enumerate(("Bright", "Round", "Bright;Round", "0") * 15)]
    (data / "manifest.csv").write_text("image,label\n" + "\n".join(lines) + "\n")
    lists = datalist.load(data, both)
    cases = [case for part in datalist.PARTS for case in lists[part]]
    expected = {0: [1, 0], 1: [0, 1], 2: [1, 1], 3: [0, 0]}
    assert all(case["label"] == expected[int(case["image"].removesuffix(".png")) % 4] for case in cases)
    datalist.write_manifest(tmp_path / "test.csv", cases, data, both)
    read = manifest.load(tmp_path / "test.csv", both)
    assert [list(case.truth) for case in read] == [[bool(there) for there in case["label"]] for case in cases]


def test_lists_that_are_wrong(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match=r"it has neither bright\.json nor manifest\.csv"):
        datalist.load(tmp_path / "none", bundle)


_A, _B = {"image": "a", "label": 1}, {"image": "b", "label": 0}


@pytest.mark.parametrize(
    ("lists", "told"),
    [
        ([1], "is no data list"),
        ({"training": 7}, "is no data list"),
        ({"training": [_A]}, "the part validation is empty"),
        (
            {"training": [_A, _B], "validation": [{"image": "c", "label": 1}]},
            "all images of the part validation have the label 1: nothing can be learned",
        ),
        ({"training": [{"image": "a"}]}, "case 1 of the part training is no table with image and label; label it, or"),
        ({"training": [_A], "test": ["b"]}, "case 1 of the part test is no table with image and label"),
        ({"training": [_A, {"image": "z", "label": 1}]}, r'case 2 of the part training: image "z" does not exist'),
        (
            {"training": [_A | {"patient": "p"}], "test": [_B | {"patient": "p"}]},
            "patient p is in the part training and in the part test: the figures would flatter",
        ),
        ({"training": [_A], "validation": [{"image": "./a", "label": 1}]}, "image a is in the part training and in"),
    ],
)
def test_a_data_list_that_is_wrong(lists: Any, told: str, bundle: Bundle, tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).touch()
    (tmp_path / "bright.json").write_text(json.dumps(lists))
    with pytest.raises(ConfigError, match=rf"bright\.json: .*{told}"):
        datalist.load(tmp_path, bundle)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_what_is_wrong_in_the_part_that_is_read_last_is_told_first(
    part: str, bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    """The whole training was run, and then ended without temperature, card or figures."""
    lists = datalist.load(data, bundle)
    (data / "manifest.csv").unlink()
    lists[part][0]["label"] = "PNEUMONIA"
    (data / "bright.json").write_text(json.dumps(lists))
    with pytest.raises(ConfigError, match=rf'{part}\.csv:2: label "PNEUMONIA" is unknown'):
        run(bundle, data, tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_the_weights_are_those_of_monai_bundle_run(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    heard = run(bundle, data, tmp_path / "out")
    (tmp_path / "theirs").mkdir()
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(bundle.folder / "configs/train.json")]
    places = {"bundle_root": bundle.folder, "dataset_dir": data, "datalist": tmp_path / "out" / "datalist.json"}
    places["output_dir"] = tmp_path / "theirs"
    options = [word for name, path in places.items() for word in (f"--{name}", str(path))]
    subprocess.run([*command, *options], check=True, capture_output=True, timeout=200)
    ours, theirs = weights(tmp_path / "out" / "models"), weights(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert heard[-1]["done"] == heard[-1]["total"]
    assert heard[-1]["image"] == "epoch 4 of 4"


def test_a_training_goes_on_and_keeps_its_best(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(bundle, data, out, epochs=2)
    best = (out / "models" / "model.pt").read_bytes()
    (out / "docs" / "README.md").unlink()
    heard = run(bundle, data, out, epochs=5)
    assert heard[0]["image"] == "epoch 3 of 5"
    points = json.loads((out / "docs" / "curves.json").read_text())
    assert [point["epoch"] for point in points] == [1, 2, 3, 4, 5]
    if max(point["val_auc"] for point in points[:2]) >= max(point["val_auc"] for point in points[2:]):
        assert (out / "models" / "model.pt").read_bytes() == best
    assert points[-1]["loss"] < points[0]["loss"]
    assert run(bundle, data, out, epochs=5) == []


def test_a_checkpoint_of_other_data_is_not_taken(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    run(bundle, data, tmp_path / "out", epochs=1)
    lists = datalist.load(data, bundle)
    lists["training"] = lists["training"][:8]
    request = Request(str(bundle.folder), bundle.digest, str(data), str(tmp_path / "out"), 1.0, 2)
    with pytest.raises(BundleError, match="was made with other data"):
        train(request, bundle, lists, lambda message: None)


def test_fine_tuning_begins_with_the_weights(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    config = TRAIN | {"optimizer": TRAIN["optimizer"] | {"lr": 0.0}}
    (bundle.folder / "configs" / "train.json").write_text(json.dumps(config))
    bundle = bundles.load(bundle.folder)
    run(bundle, data, tmp_path / "out", epochs=1, fine_tune=True)
    before, after = weights(bundle.folder / "models"), weights(tmp_path / "out" / "models")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_cannot_be_trained(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(Permanent, match="is not empty and no training began there"):
        run(bundle, data, tmp_path / "full")
    with pytest.raises(Permanent, match="is the bundle itself"):
        run(bundle, data, bundle.folder)
    (bundle.folder / "configs" / "train.json").write_text('{"train": {}}')
    with pytest.raises(BundleError, match=r"train\.json has no id train#trainer"):
        run(bundles.load(bundle.folder), data, tmp_path / "a")
    (bundle.folder / "configs" / "train.json").write_text('{"network": "$no_such_thing()"}')
    with pytest.raises(BundleError, match=r"train\.json does not build: NameError"):
        run(bundles.load(bundle.folder), data, tmp_path / "b")


@pytest.mark.parametrize("name", ["learning_rte", "train#trainer#max_epoch"])
def test_a_mistyped_override_is_refused(name: str, bundle: Bundle, data: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=f"has no id {name} that could get another value"):
        run(bundle, data, tmp_path / "out", overrides={"optimizer#lr": 0.2, name: 1})


def test_a_training_that_fails_says_why(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        Permanent, match=r"The training of bright 1\.0\.0 failed: ZeroDivisionError.*training\.log says"
    ):
        run(bundle, data, tmp_path / "out", overrides={"train#trainer#loss_function": "$lambda pred, label: 1 / 0"})


def test_another_schedule_is_not_gone_on_with(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    schedule = {"_target_": "torch.optim.lr_scheduler.StepLR", "optimizer": "@optimizer", "step_size": 1}
    (bundle.folder / "configs" / "train.json").write_text(json.dumps(TRAIN | {"lr_scheduler": schedule}))
    bundle = bundles.load(bundle.folder)
    run(bundle, data, tmp_path / "out", epochs=1)
    with pytest.raises(BundleError, match="was made with a schedule of 1 epochs"):
        run(bundle, data, tmp_path / "out", epochs=3)


def test_the_command_leaves_a_measured_bundle_with_a_card(
    bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wetread.toml").write_text(f'[worker]\nmodels = "{tmp_path / "models"}"\ndevice = "cpu"\n')
    trust.pin([bundle], tmp_path / "trusted.toml")
    out = tmp_path / "trained"
    where = ["--data", str(data), "--out", str(out), "--config", str(tmp_path / "wetread.toml")]
    assert cli.run(["train", "bright", *where]) == 0
    assert "AUROC" in capsys.readouterr().out
    trained = bundles.load(out)
    assert trained.version == f"{bundle.version}+{trained.version.partition('+')[2]}"
    assert trained.digest != bundle.digest
    assert bundles.load(bundle.folder).digest == bundle.digest
    tested = list(csv.DictReader((out / "test.csv").open()))
    assert json.loads((out / "docs" / "metrics.json").read_text())["images"] == len(tested) > 0
    said = (out / "docs" / "README.md").read_text()
    assert "its figures are not of these weights" in said
    assert "## bright" in said
    assert (out / "docs" / "curves.png").read_bytes().startswith(b"\x89PNG")


def stopping(bundle: Bundle) -> Bundle:
    """The same bundle with a training that ends when three validations bring nothing better."""
    handlers = ["@validate#early_stop", *TRAIN["validate"]["handlers"]]
    ready = ["$monai.utils.set_determinism(@seed)", "$@validate#early_stop.set_trainer(@train#trainer)"]
    config = TRAIN | {"validate": TRAIN["validate"] | {"handlers": handlers}, "initialize": ready}
    (bundle.folder / "configs" / "train.json").write_text(json.dumps(config))
    return bundles.load(bundle.folder)


def test_a_training_stops_where_nothing_gets_better_and_stays_stopped(
    bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    bundle = stopping(bundle)
    run(bundle, data, tmp_path / "out", epochs=30)
    points = json.loads((tmp_path / "out" / "docs" / "curves.json").read_text())
    best = max(point["val_auc"] for point in points)
    first = next(point["epoch"] for point in points if point["val_auc"] == best)
    assert len(points) == first + 3 < 30
    assert run(bundle, data, tmp_path / "out", epochs=30) == []


def test_temperature_and_threshold_are_chosen_again(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    """Every fifth film is labelled wrongly, so that certainty has an end."""
    names = [f"{folder}/{number}.png" for folder in range(6) for number in range(60)]
    for folder in range(6):
        shutil.copytree(data, data / str(folder), ignore=shutil.ignore_patterns("[0-9]", "*.csv"))
    rows = [f"{name},{(number + (number % 5 == 0)) % 2}" for number, name in enumerate(names)]
    (data / "manifest.csv").write_text("image,label\n" + "\n".join(rows) + "\n")
    steps = [
        {"_target_": "Lambdad", "keys": "pred", "func": "$lambda logit: logit / @temperature"},
        {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
    ]
    inference = json.loads((bundle.folder / "configs" / "inference.json").read_text())
    inference |= {"temperature": 9.5, "postprocessing": {"_target_": "Compose", "transforms": steps}}
    (bundle.folder / "configs" / "inference.json").write_text(json.dumps(inference))
    out = tmp_path / "out"
    run(bundles.load(bundle.folder), data, out)
    chosen = json.loads((out / "docs" / "calibration.json").read_text())
    assert json.loads((out / "configs" / "inference.json").read_text())["temperature"] == chosen["temperature"] != 9.5
    finding = bundles.load(out).dicom.finding[0]
    assert (finding.threshold, finding.sensitivity) == (chosen["threshold"], 0.95)
    assert chosen["sensitivity"] >= 0.95
    assert (chosen["temperature_is"], finding.calibrated) == ("chosen", True)
    assert f"threshold {chosen['threshold']:g} were chosen again" in (out / "docs" / "README.md").read_text()
    assert json.loads((bundle.folder / "configs" / "inference.json").read_text())["temperature"] == 9.5


def test_two_processes_train_one_network(
    bundle: Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a file has the name of a module that they import: it was run."""
    (tmp_path / "ignite.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    shared = bundles.SHIPPED / "lung_fields" / "configs" / "multi_gpu_train.json"
    bundle = stopping(bundle)
    (bundle.folder / "configs" / "multi_gpu_train.json").write_text(shared.read_text())
    bundle, out = bundles.load(bundle.folder), tmp_path / "out"
    heard = run(bundle, data, out, epochs=2, processes=2)
    iterations = len(datalist.load(data, bundle)["training"]) // 2 // 4
    assert heard[0]["total"] == 2 * iterations
    assert [p["epoch"] for p in json.loads((out / "docs" / "curves.json").read_text())] == [1, 2]
    assert not any(name.startswith("module.") for name in weights(out / "models"))


def test_several_processes_need_their_configuration(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no configs/multi_gpu_train\.json; nothing was trained"):
        run(bundle, data, tmp_path / "out", processes=2)


def test_what_a_training_cost() -> None:
    assert card.cost(3600, 0, 2) == (
        "It took 60 minutes on 2 CPU threads: about 0.02 kWh and 8 g of CO₂, reckoned with 10 W each and 400 g/kWh."
    )
    assert "120 minutes on 4 GPUs: about 2.4 kWh" in card.cost(7200, 4, 8)


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("teachers=['a/model.pt', 'b/model.pt']", ["a/model.pt", "b/model.pt"]),
        ('teachers=["a/model.pt"]', ["a/model.pt"]),
        ("bfloat16=False", False),
        ("bfloat16=false", False),
        ("device=$torch.device('cpu')", "$torch.device('cpu')"),
    ],
)
def test_an_override_is_json_python_or_text(said: str, value: object) -> None:
    """As `monai.bundle run` takes them; a list in single quotes was text, whose letters were taken for files."""
    assert cli_model._override(said) == (said.partition("=")[0], value)


def test_a_training_that_keeps_no_weights_says_so(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    """Its only validation would have been in epoch 9."""
    with pytest.raises(
        Permanent, match=r"no validation of bright 1\.0\.0 found weights .* how often train\.json validates"
    ):
        run(bundle, data, tmp_path / "out", overrides={"train#trainer#train_handlers#0#interval": 9})


def test_an_override_that_is_none(capsys: pytest.CaptureFixture[str], bundle: Bundle, tmp_path: Path) -> None:
    assert cli.run(["train", "bright", "--data", str(tmp_path), "--out", str(tmp_path), "--set", "speed"]) == 2
    assert '"speed" is not ID=VALUE' in capsys.readouterr().err
