"""The bundles that ship: their parts agree with one another, their splits keep patients apart, their figures add up."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from scipy import ndimage

MODELS = Path(__file__).parents[2] / "models"
BUNDLES = ("chest_xray", "hippocampus", "lung_fields")
CHILDREN = ("IM-0117", "NORMAL2-IM-0117", "NORMAL2-IM-0117-0001-0002")


def script(name: str) -> ModuleType:
    """Import a script of `models/`, which is content and no package."""
    spec = importlib.util.spec_from_file_location(name, MODELS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


datalists = script("datalists")
figures = script("figures")


def config(bundle: str, name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((MODELS / bundle / "configs" / f"{name}.json").read_text())
    return parsed


class Loaded:
    """A bundle run on arrays in memory, as the worker runs it."""

    def __init__(self, bundle: str) -> None:
        parser = ConfigParser(config(bundle, "inference"))
        for key, file_step in (("preprocessing", "LoadImaged"), ("postprocessing", "SaveImaged")):
            steps = parser[key]["transforms"]
            parser[key]["transforms"] = [step for step in steps if step["_target_"] != file_step]
        self.network = parser.get_parsed_content("network_def").eval()
        self.network.load_state_dict(torch.load(MODELS / bundle / "models" / "model.pt", weights_only=True))
        self.inferer, self.before, self.after = (
            parser.get_parsed_content(key) for key in ("inferer", "preprocessing", "postprocessing")
        )

    def read(self, array: np.ndarray, affine: np.ndarray | None = None) -> torch.Tensor:
        image = MetaTensor(
            torch.as_tensor(array, dtype=torch.float32), affine=torch.as_tensor(np.eye(4) if affine is None else affine)
        )
        case = self.before({"image": image})
        with torch.inference_mode():
            case["pred"] = self.inferer(case["image"][None], self.network)[0]
        pred = self.after(case)["pred"]
        assert isinstance(pred, torch.Tensor)
        return pred


def test_one_child_is_one_patient_under_every_name() -> None:
    assert {datalists.kermany_patient(name) for name in CHILDREN} == {"IM-0117"}
    assert datalists.kermany_patient("person1251") == "person1251"
    with pytest.raises(ValueError, match="no patient number"):
        datalists.kermany_patient("mystery")


def test_the_parts_have_the_sizes_they_promise() -> None:
    parts = [datalists.part_of(f"patient-{number}") for number in range(5000)]
    assert parts.count("test") / 5000 == pytest.approx(0.20, abs=0.02)
    assert parts.count("validation") / 5000 == pytest.approx(0.12, abs=0.02)


def test_a_patient_is_in_one_part_of_all_lists(shared_data: Path) -> None:
    where: dict[str, set[str]] = {}
    for cases in datalists.LISTS.values():
        for part, found in datalists.datalist(cases(shared_data / "train")).items():
            for case in found:
                assert (shared_data / "train" / str(case["image"])).is_file()
                where.setdefault(str(case["patient"]), set()).add(part)
    assert len(where) > 3000
    assert {patient for patient, parts in where.items() if len(parts) > 1} == set()


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_configs_of_a_bundle_agree(bundle: str) -> None:
    train, inference, evaluate = (config(bundle, name) for name in ("train", "inference", "evaluate"))
    assert train["network_def"] == inference["network_def"] == evaluate["network_def"]
    assert inference["preprocessing"] == evaluate["preprocessing"]
    saved = [step for step in inference["postprocessing"]["transforms"] if step["_target_"] != "SaveImaged"]
    assert saved == evaluate["postprocessing"]["transforms"]
    assert inference.get("temperature") == evaluate.get("temperature")


@pytest.mark.parametrize(
    ("bundle", "size", "classes"),
    [("chest_xray", (224, 224), 1), ("hippocampus", (48, 64, 48), 3), ("lung_fields", (256, 256), 1)],
)
def test_a_training_learns_from_what_it_augments(bundle: str, size: tuple[int, ...], classes: int) -> None:
    """The parts of train.json fit each other, and one step down the gradient is a step down the loss."""
    torch.manual_seed(2)
    parser = ConfigParser(config(bundle, "train"))
    network, loss, augment = (parser.get_parsed_content(key) for key in ("network_def", "loss_function", "augment"))
    is_mask = len(size) == 3 or bundle == "lung_fields"
    label = torch.randint(0, max(classes, 2), (2, 1, *size) if is_mask else (2,), dtype=torch.uint8)
    image, target = augment({"image": torch.rand(2, 1, *size), "label": label}, torch.device("cpu"))
    assert target.shape == (2, classes, *image.shape[2:]) if is_mask else (2, 1)
    before = loss(network(image), target)
    before.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= 1e-3 * parameter.grad
    assert loss(network(image), target) < before


@pytest.mark.parametrize("bundle", BUNDLES)
def test_no_path_of_a_machine_is_shipped(bundle: str) -> None:
    texts = (path.read_text() for path in (MODELS / bundle).rglob("*") if path.suffix in {".json", ".toml", ".md"})
    assert not [text for text in texts if "/home/" in text or "/tmp/" in text]  # noqa: S108 - searched for, not written to


def test_the_threshold_is_the_one_that_was_chosen() -> None:
    chosen = json.loads((MODELS / "chest_xray" / "docs" / "metrics.json").read_text())["chosen_on_validation"]
    finding = tomllib.loads((MODELS / "chest_xray" / "configs" / "dicom.toml").read_text())["finding"][0]
    assert finding["threshold"] == chosen["threshold"]
    assert config("chest_xray", "inference")["temperature"] == chosen["temperature"]


@pytest.mark.parametrize(("bundle", "metric", "floor"), [("hippocampus", "dice", 0.87), ("lung_fields", "dice", 0.95)])
def test_segmentations_reach_their_floor_on_unseen_patients(bundle: str, metric: str, floor: float) -> None:
    cohorts = json.loads((MODELS / bundle / "docs" / "metrics.json").read_text())["cohorts"]
    whole = cohorts.get("all") or next(iter(cohorts.values()))
    assert min(part["value"] for part in whole[metric].values()) >= floor


def test_the_classifier_reaches_its_floor_on_unseen_children() -> None:
    cohorts = json.loads((MODELS / "chest_xray" / "docs" / "metrics.json").read_text())["cohorts"]
    assert cohorts["children"]["auc"]["value"] >= 0.975


@pytest.mark.parametrize("size", [(169, 211), (700, 500)])
def test_lung_fields_come_back_on_the_grid_of_the_film(size: tuple[int, int]) -> None:
    film = np.random.default_rng(0).normal(1000, 300, size)
    pred = Loaded("lung_fields").read(film)
    assert pred.shape == (1, *size)
    assert set(np.unique(pred.numpy())) <= {0, 1}


def test_a_probability_stays_one_whatever_the_film() -> None:
    loaded = Loaded("chest_xray")
    for film in (np.zeros((64, 64)), np.random.default_rng(0).normal(0, 1e4, (300, 200))):
        pred = loaded.read(film)
        assert pred.shape == (1,)
        assert 0 <= float(pred[0]) <= 1


def hippocampus_case(shared_data: Path) -> Iterator[np.ndarray]:
    nibabel = pytest.importorskip("nibabel")
    case = datalists.datalist(datalists.hippocampus(shared_data / "train"))["test"][0]
    for key in ("image", "label"):
        yield np.asarray(nibabel.load(shared_data / "train" / str(case[key])).dataobj, dtype=np.float32)


def test_a_hippocampus_is_found_whatever_its_orientation_and_spacing(shared_data: Path) -> None:
    image, label = hippocampus_case(shared_data)
    loaded = Loaded("hippocampus")
    for axes, affine in (((), np.eye(4)), ((0, 1), np.diag([-1.0, -1, 1, 1])), ((2,), np.diag([1.0, 1, 1.1, 1]))):
        pred = np.flip(loaded.read(np.flip(image, axes).copy(), affine)[0].numpy(), axes)
        assert pred.shape == image.shape
        for part in (1, 2):
            found, truth = pred == part, label == part
            assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.75


def test_temperature_and_calibration_error_of_a_known_case() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, 20_000)
    truth = (random.random(20_000) < 1 / (1 + np.exp(-logits))).astype(float)
    assert figures.temperature_of(truth, logits * 3) == pytest.approx(3, rel=0.05)
    honest = np.column_stack([truth, 1 / (1 + np.exp(-logits))])
    boastful = np.column_stack([truth, 1 / (1 + np.exp(-3 * logits))])
    assert figures.calibration_error(honest) < 0.02 < 0.1 < figures.calibration_error(boastful)


def test_auc_counts_pairs_in_the_right_order() -> None:
    pairs = np.array([[0, 0.1], [0, 0.4], [1, 0.4], [1, 0.9]])
    assert figures.auc(pairs) == pytest.approx(3.5 / 4)
    assert np.isnan(figures.auc(pairs[:2]))


def test_the_threshold_finds_as_many_as_it_promises() -> None:
    probability = np.array([0.1, 0.2, 0.3, 0.8, 0.9])
    assert figures.threshold_of(np.array([0, 0, 0, 1, 1]), probability) == pytest.approx(0.55)
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, 999)
    probability = np.round(np.clip(0.3 * truth + random.random(999) * 0.7, 0, 1), 4)
    threshold = figures.threshold_of(truth, probability, 0.9)
    assert 0.9 <= np.mean(probability[truth == 1] >= threshold) < 0.91
    assert np.mean(probability[truth == 1] >= threshold + 0.005) < 0.9
    with pytest.raises(ValueError, match="needs images with the finding"):
        figures.threshold_of(np.zeros(5), probability[:5])


@pytest.mark.parametrize("bundle", BUNDLES)
def test_precision_is_mixed_on_cuda_and_a_training_stops_early(bundle: str) -> None:
    for device, mixed in (("cpu", False), ("cuda", True)):
        parser = ConfigParser(config(bundle, "train"))
        parser["device"] = torch.device(device)
        assert parser.get_parsed_content("amp") is mixed
    train = config(bundle, "train")
    assert train["train"]["trainer"]["amp"] == "@amp"
    assert "@validate#early_stop" in train["validate"]["handlers"]
    assert train["initialize"][-1] == config(bundle, "multi_gpu_train")["initialize"][-1]


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_configuration_for_several_processes_names_what_is_there(bundle: str) -> None:
    several = config(bundle, "multi_gpu_train")
    parser = ConfigParser(config(bundle, "train"))
    assert all(key.rpartition("#")[0] in parser for key in several if "#" in key)
    parser.update(several)
    references = [word for value in several.values() for word in re.findall(r"@([\w#]+)", json.dumps(value))]
    assert all(name in parser for name in references)


def test_lung_fields_are_at_most_two_and_have_no_holes() -> None:
    """Whatever the network says, also confetti with holes; each film is one that a network could make."""
    after = ConfigParser(config("lung_fields", "inference")).get_parsed_content("postprocessing")
    steps = [s for s in after.transforms if type(s).__name__ in ("KeepLargestConnectedComponentd", "FillHolesd")]
    assert [type(s).__name__ for s in steps] == ["KeepLargestConnectedComponentd", "FillHolesd"]
    random = np.random.default_rng(3)
    for density in (0.02, 0.2, 0.5, 0.9):
        mask: dict[str, Any] = {"pred": torch.as_tensor(random.random((1, 60, 80)) < density).float()}
        for step in steps:
            mask = step(mask)
        pred = np.asarray(mask["pred"])[0] > 0
        assert ndimage.label(pred, np.ones((3, 3)))[1] <= 2
        assert np.array_equal(ndimage.binary_fill_holes(pred), pred)


def test_each_part_of_the_hippocampus_is_one_piece() -> None:
    after = ConfigParser(config("hippocampus", "inference")).get_parsed_content("postprocessing")
    steps = [s for s in after.transforms if type(s).__name__ == "KeepLargestConnectedComponentd"]
    mask: dict[str, Any] = {"pred": torch.as_tensor(np.random.default_rng(4).integers(0, 3, (1, 20, 20, 20))).float()}
    for step in steps:
        mask = step(mask)
    for part in (1, 2):
        assert ndimage.label(np.asarray(mask["pred"])[0] == part, np.ones((3, 3, 3)))[1] == 1


def test_the_interval_counts_patients_not_images() -> None:
    values = np.random.default_rng(0).normal(0, 1, 50)

    def width(patients: list[str], rows: np.ndarray) -> float:
        low, high = figures.interval(rows, patients, lambda v: float(np.mean(v)))["ci95"]
        return float(high - low)

    names = [str(number) for number in range(50)]
    alone, tenfold = width(names, values), width(names * 10, np.tile(values, 10))
    assert tenfold == pytest.approx(alone, rel=0.01)
