from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node import cli, dryrun, trust
from node.bundles import Bundle
from node.errors import Permanent
from node.settings import Settings
from tests.unit import zoo
from tests.unit.phantom import LAYER, bright_spot, classifier, save, segmenter
from workers.load.inputs import load_for
from workers.predict.network import Network
from workers.reader import Reader

SETTINGS = Settings.model_validate({"worker": {"device": "cpu"}})


@pytest.fixture(scope="module")
def warm() -> Iterator[Reader]:
    """A child that has loaded torch; a new one takes ten seconds of a core to do so."""
    reader = Reader()
    yield reader
    reader.stop()


@pytest.fixture
def warm_child(warm: Reader, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dry runs in one child, which lives on from reading to reading as that of a worker does; each wants to end it."""
    told: list[str] = []

    def start() -> SimpleNamespace:
        told.append("start")
        return SimpleNamespace(read=warm.read, stop=lambda: told.append("stop"))

    monkeypatch.setattr("workers.reader.Reader", start)
    yield
    assert told == ["start", "stop"] * (len(told) // 2)


@pytest.mark.usefixtures("warm_child")  # the first of them: it waits for the child to load torch
def test_a_volume_is_read_and_the_figures_are_said(tmp_path: Path) -> None:
    said = dryrun.dry_run(segmenter(tmp_path / "phantom"), SETTINGS)
    assert said["phantom"] == "CT, 64×128×128"
    assert said["network_input"] == "1×1×128×128×64" or said["network_input"].startswith("1×1×")
    assert said["network_output"].startswith("1×3×")
    assert said["answer"] == "1×128×128×64"
    assert said["would_write"] == "SC, SEG, SR" or "SR" in said["would_write"]
    assert 0 < said["predict_s"] < said["read_s"] < said["ready_s"]
    assert 50 < said["peak_memory_mb"] < 20_000


@pytest.mark.usefixtures("warm_child")
def test_a_film_is_read(tmp_path: Path) -> None:
    said = dryrun.dry_run(classifier(tmp_path / "phantom"), SETTINGS)
    assert (said["phantom"], said["network_output"], said["answer"]) == ("DX, 1×512×512", "1×1", "1")
    assert said["says"].startswith("Bright: ")


@pytest.mark.usefixtures("warm_child")
def test_what_explains_itself_does_so(tmp_path: Path) -> None:
    said = dryrun.dry_run(bright_spot(tmp_path / "phantom", LAYER), SETTINGS)
    assert said["would_write"] == "SALIENCY, SC, SR"
    assert said["explain_s"] > 0


def conditioned(bundle: Bundle, **series: Any) -> Bundle:
    return bundle.model_copy(update={"dicom": bundle.dicom.model_copy(update={"series": series})})


def test_the_phantom_has_the_shape_that_the_bundle_asks_for(tmp_path: Path) -> None:
    three, two = segmenter(tmp_path / "three"), segmenter(tmp_path / "two", dimensions=2)
    bounds = {"Rows": {"max": 48}, "Columns": {"min": 200}, "NumberOfSeriesRelatedInstances": {"min": 16, "max": 24}}
    found = dryrun.phantom(conditioned(three, Modality=["PT", "MR"], **bounds))
    assert (len(found), found[0].Rows, found[0].Columns, found[0].Modality) == (19, 48, 200, "MR")
    assert [ds.Modality for ds in dryrun.phantom(conditioned(two, Modality="CT"))] == ["CT"]
    assert [ds.Modality for ds in dryrun.phantom(conditioned(two, Modality=["CR", "DX"]))] == ["DX"]


@pytest.mark.usefixtures("warm_child")
def test_a_bundle_that_fails_says_how(tmp_path: Path) -> None:
    broken = {"_target_": "Compose", "transforms": [{"_target_": "EnsureChannelFirstd", "keys": "picture"}]}
    with pytest.raises(Permanent, match=r"could not read a phantom: phantom 1\.0\.0 failed on an input"):
        dryrun.dry_run(segmenter(tmp_path / "phantom", preprocessing=broken), SETTINGS)


@pytest.mark.usefixtures("warm_child")
def test_check_runs_what_is_trusted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = classifier(tmp_path / "models" / "bright")
    config = tmp_path / "wetread.toml"
    config.write_text('[worker]\nmodels = "models"\ndevice = "cpu"\n')
    trust.pin([bundle], tmp_path / "trusted.toml")
    assert cli.run(["models", "check", "bright", "--json", "--config", str(config)]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["ok"], row["trust"], row["dry_run"]["network_output"]) == (True, "trusted", "1×1")
    assert cli.run(["models", "check", "bright", "--config", str(config)]) == 0
    assert "network_output" in capsys.readouterr().out.replace(" ", "_")


@pytest.mark.usefixtures("warm_child")
def test_several_series_and_a_detector_are_read(tmp_path: Path) -> None:
    channels = "".join(f'[[channel]]\nname = "{name}"\n[channel.series]\nModality = "MR"\n' for name in ("T1", "T2"))
    small = 'Modality = "MR"\nRows = {max = 32}\nColumns = {max = 32}\nNumberOfSeriesRelatedInstances = {max = 8}\n'
    series = zoo.multi_label(tmp_path / "series", inputs=2, more=small + channels)
    said = dryrun.dry_run(series, SETTINGS)
    assert said["phantom"] == "2 series of MR, 8×32×32"
    assert said["network_input"] == "1×2×32×32×8"
    said = dryrun.dry_run(zoo.finder(tmp_path / "finder", '[boxes]\nmode = "xyzxyz"\n'), SETTINGS)
    assert said["answer"] == "2×6"
    assert said["would_write"] == "SC, SR"


def test_the_phantom_of_a_color_bundle_is_in_color(tmp_path: Path) -> None:
    bundle = zoo.colored(tmp_path / "color")
    [photograph] = dryrun.phantom(bundle)
    assert (photograph.PhotometricInterpretation, photograph.SamplesPerPixel) == ("RGB", 3)
    [volume] = load_for(save([photograph], tmp_path / "in"), bundle.dicom)
    assert Network(bundle, "cpu", bundle.digest).read(volume).shape == (1,)
