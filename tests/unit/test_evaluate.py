"""`wetread evaluate` from the command line to the report, on sets whose figures are known."""

from __future__ import annotations

import csv
import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from node import bundles, cli, cli_child, trust
from node.errors import Permanent
from tests.unit.phantom import body, classifier, save, segmenter, stack
from workers.evaluate import manifest

_PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    config = tmp_path / "wetread.toml"
    config.write_text(f'[worker]\nmodels = "{tmp_path / "models"}"\ndevice = "cpu"\n')

    def command(name: str, manifest: str, *more: str) -> tuple[int, str, str]:
        (tmp_path / "manifest.csv").write_text(manifest)
        trust.pin(map(bundles.load, (tmp_path / "models").glob("*")), tmp_path / "trusted.toml")
        where = ["--data", tmp_path / "manifest.csv", "--out", tmp_path / "out", "--config", config]
        status = cli.run(["evaluate", name, *map(str, where), *more])
        out, err = capsys.readouterr()
        assert status == 0 or (out == "" and len(err.splitlines()) == 1), err
        return status, out, err

    return command


@pytest.fixture
def run_here(run: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As `run`, with the work of the child done here, where torch is loaded: what a child adds has tests of its own."""

    def follow(module: str, request: str, silence_s: float | None, tell: Any) -> None:
        import_module(f"{module}.__main__").work(request, lambda message: tell(json.loads(json.dumps(message))))

    monkeypatch.setattr(cli_child, "follow", follow)
    return run


def films(folder: Path, shares: dict[str, float]) -> None:
    """Write films of which a share is bright; `classifier` says sigmoid(10 · share - 5)."""
    for name, share in shares.items():
        pixels = np.zeros(1000, np.uint8)
        pixels[: round(share * 1000)] = 255
        Image.fromarray(pixels.reshape(20, 50)).save(folder / f"{name}.png")


def test_a_classification_is_measured_and_reported(tmp_path: Path, run: Any) -> None:
    classifier(tmp_path / "models" / "bright")
    films(tmp_path, {"a": 0.1, "b": 0.4, "c": 0.35, "d": 0.8, "e": 0.9, "blank": 0.0})
    rows = ["a,0,p1,north", "b,0,p2,north", "c,1,p3,north", "d,1,p4,north", "e,1,p5,south", "blank,0,p6,south"]
    manifest = "image,label,patient,cohort\n" + "".join(row.replace(",", ".png,", 1) + "\n" for row in rows)
    status, out, _ = run("bright", manifest)
    assert status == 0
    assert re.search(r"north +Bright +AUROC +0\.750", out)
    assert "1 images were not read" in out
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    north = found["cohorts"]["north"]
    assert (north["images"], north["patients"]) == (4, 4)
    assert {name: north[name]["Bright"]["value"] for name in ("auroc", "auprc", "accuracy", "sensitivity")} == {
        "auroc": 0.75,
        "auprc": 0.8333,
        "accuracy": 0.75,
        "sensitivity": 0.5,
    }
    counts = {"true_positive": 1, "false_negative": 1, "false_positive": 0, "true_negative": 2}
    assert north["confusion"]["Bright"] == counts
    assert found["cohorts"]["south"]["auroc"]["Bright"]["value"] is None
    assert found["cohorts"]["all"]["images"] == 5
    assert found["not_read"] == [
        {"image": "blank.png", "line": 7, "cohort": "south"} | {"reason": found["not_read"][0]["reason"]}
    ]
    cases = list(csv.DictReader((tmp_path / "out" / "cases.csv").open()))
    assert {case["image"]: float(case["probability"]) for case in cases} == pytest.approx(
        {
            f"{k}.png": 1 / (1 + np.exp(5 - 10 * s))
            for k, s in (("a", 0.1), ("b", 0.4), ("c", 0.35), ("d", 0.8), ("e", 0.9))
        },
        abs=1e-5,
    )


def test_the_report_stands_alone(tmp_path: Path, run_here: Any) -> None:
    classifier(tmp_path / "models" / "bright")
    films(tmp_path, {"a": 0.1, "<b>&": 0.9})
    assert run_here("bright", "image,label,cohort\na.png,1,<script>\n<b>&.png,0,y\n")[0] == 0
    out = tmp_path / "out"
    pictures = {"roc", "precision-recall", "calibration", "probabilities", "worst"}
    assert {path.stem for path in out.glob("*.png")} == pictures
    assert all(path.read_bytes().startswith(_PNG) for path in out.glob("*.png"))
    page = (out / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == len(pictures)
    assert not re.search(r"(?:src|href)=\"(?!data:)|https?://|url\(|<script", page)
    assert "&lt;script&gt;" in page
    assert "Worst cases" in page


def test_json_is_the_file(tmp_path: Path, run_here: Any) -> None:
    classifier(tmp_path / "models" / "bright")
    films(tmp_path, {"a": 0.1, "b": 0.9})
    status, out, err = run_here("bright", "image,label\na.png,0\nb.png,1\n", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert json.loads(out)["cohorts"]["all"]["auroc"]["Bright"]["value"] == 1.0


def test_masks_are_measured_on_dicom_and_nifti(tmp_path: Path, run_here: Any) -> None:
    segmenter(tmp_path / "models" / "phantom")
    save(stack(body(), spacing=(2.0, 1.0, 1.0)), tmp_path / "series")
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    affine[:3, 3] = 30.0, -12.5, 7.0
    truth = (body() > 500).astype(np.uint8).transpose(2, 1, 0)
    half = truth.copy()
    half[:, :, :5] = 0
    for name, voxels in (("whole", truth), ("half", half), ("image", body().astype(np.int16).transpose(2, 1, 0))):
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{name}.nii.gz")
    assert run_here("phantom", "image,label,cohort\nseries,whole.nii.gz,x\nimage.nii.gz,half.nii.gz,y\n")[0] == 0
    cohorts = json.loads((tmp_path / "out" / "metrics.json").read_text())["cohorts"]
    perfect = {
        name: cohorts["x"][name]["Part 1"]["value"] for name in ("dice", "hausdorff95_mm", "volume_error_percent")
    }
    assert perfect == {"dice": 1.0, "hausdorff95_mm": 0.0, "volume_error_percent": 0.0}
    kept, all_of_it = int(half.sum()), int(truth.sum())
    assert cohorts["y"]["dice"]["Part 1"]["value"] == pytest.approx(2 * kept / (kept + all_of_it), abs=1e-4)
    error = cohorts["y"]["volume_error_percent"]["Part 1"]["value"]
    assert error == pytest.approx((all_of_it - kept) / kept * 100, abs=1e-3)
    assert "Part 2" not in cohorts["x"]["dice"]
    assert cohorts["all"]["presence"]["Part 2"]["true_negative"] == 2
    assert (tmp_path / "out" / "worst.png").read_bytes().startswith(_PNG)


def test_an_image_that_cannot_be_read_does_not_end_the_others(
    tmp_path: Path, run_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier(tmp_path / "models" / "bright")
    films(tmp_path, {"a": 0.1, "b": 0.9})
    (tmp_path / "gone.dcm").touch()
    exists = manifest.load

    def went_away(*asked: Any) -> Any:
        cases = exists(*asked)
        (tmp_path / "gone.dcm").unlink()
        return cases

    monkeypatch.setattr(manifest, "load", went_away)
    assert run_here("bright", "image,label\na.png,0\ngone.dcm,1\nb.png,1\n")[0] == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [one["reason"] for one in found["not_read"]] == ["it cannot be read: No such file or directory"]
    assert found["cohorts"]["all"]["images"] == 2


def test_a_wrong_manifest_ends_with_2_and_the_line(tmp_path: Path, run: Any) -> None:
    classifier(tmp_path / "models" / "bright")
    films(tmp_path, {"a": 0.1})
    for rows, told in (
        ("image,label\na.png,0\nb.png,1\n", r'manifest\.csv:3: image "b\.png" does not exist'),
        ("image,label\na.png,fracture\n", r'manifest\.csv:2: label "fracture" is unknown to bright'),
        ("", r"manifest\.csv:1: it is empty"),
    ):
        status, _, err = run("bright", rows)
        assert status == 2
        assert re.search(told, err), err
    assert not (tmp_path / "out").exists()


def test_a_wrong_mask_ends_with_2_and_the_line(tmp_path: Path, run_here: Any) -> None:
    segmenter(tmp_path / "models" / "flat", dimensions=2)
    Image.fromarray(body()[5]).save(tmp_path / "a.png")
    Image.fromarray(np.full((3, 3), 1, np.uint8)).save(tmp_path / "m.png")
    status, _, err = run_here("flat", "image,label\na.png,m.png\n")
    assert (status, "manifest.csv:2: m.png has 1 × 3 × 3 voxels" in err) == (2, True)


def test_nothing_readable_is_3_and_an_unknown_model_1(tmp_path: Path, run_here: Any) -> None:
    classifier(tmp_path / "models" / "bright")
    films(tmp_path, {"blank": 0.0})
    status, _, err = run_here("bright", "image,label\nblank.png,0\n")
    assert (status, "None of 1 images was read" in err, "is blank" in err) == (3, True, True)
    assert run_here("absent", "image,label\n")[0] == 1
    assert not (tmp_path / "out").exists()


_SAY = """print('{"image": "x.dcm"}', flush=True)\n"""
CHILDREN = {
    "crashes": f"import os, signal\n{_SAY}os.kill(os.getpid(), signal.SIGSEGV)\n",
    "hangs": f"import time\n{_SAY}time.sleep(60)\n",
    "stops": "",
}


@pytest.mark.parametrize(
    ("child", "told"),
    [
        ("crashes", r"killed by signal 11 while reading x\.dcm"),
        ("hangs", r"x\.dcm took longer than worker\.job_timeout \(2 s\)"),
        ("stops", r"ended with exit status 0\. Nothing was written"),
    ],
)
def test_whatever_the_child_does_one_line_is_left(
    child: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{child}.py").write_text(CHILDREN[child])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    heard: list[dict[str, Any]] = []
    with pytest.raises(Permanent, match=told):
        cli_child.follow(child, "{}", 2.0, heard.append)
    assert heard == ([] if child == "stops" else [{"image": "x.dcm"}])


def test_the_shipped_models_reach_their_figures_on_a_slice_of_real_data(
    shared_data: Path, tmp_path: Path, run_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.evaluate.run.WORST", 1)  # each is read once more for its picture
    folder = shared_data / "train" / "mr_hippocampus_msd"
    if not folder.is_dir():
        pytest.skip("real DICOM studies are absent (no training sets among them)")
    names = sorted(path.name for path in (folder / "images").glob("*.nii.gz"))[:6]
    lines = "".join(f"{folder / 'images' / name},{folder / 'labels' / name}\n" for name in names)
    assert run_here("hippocampus", "image,label\n" + lines)[0] == 0
    table = json.loads((tmp_path / "out" / "metrics.json").read_text())["cohorts"]["all"]
    for part in ("Anterior hippocampus", "Posterior hippocampus"):
        assert table["dice"][part]["value"] > 0.82
        assert table["hausdorff95_mm"][part]["value"] < 3
