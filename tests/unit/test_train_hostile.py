"""`wetread train` on what happens in hospitals: full disks, losses that are no numbers, two at once, other data."""

from __future__ import annotations

import fcntl
import json
import resource
from pathlib import Path
from typing import Any

import pytest

from node import cli, cli_child, trust
from node.bundles import Bundle
from node.errors import BundleError, Permanent
from tests.unit.test_train import bundle, data, run
from workers.train import datalist
from workers.train.request import Request
from workers.train.run import train

__all__ = ["bundle", "data"]

_LARGE = (
    "$torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 5000), "
    "torch.nn.Linear(5000, 1))"
)


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    """A limit on the size of a file stands for the disk; the checkpoint has the network and twice as much beside it."""
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(Permanent, match=r"^\S+checkpoint\.pt cannot be written: File too large"):
            run(bundle, data, out, epochs=2, overrides={"network_def": _LARGE})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(out.glob(".*.part"))


def test_a_loss_that_is_no_number_ends_it(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    loss = "$lambda pred, label: (pred * float('nan')).sum()"
    with pytest.raises(Permanent, match=r"^The training ends: the loss of epoch 1 is no number"):
        run(bundle, data, tmp_path / "out", overrides={"train#trainer#loss_function": loss})


def test_a_checkpoint_of_other_labels_is_not_taken(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    """As many images as before were taken for the same ones, also where test patients had been learned from."""
    run(bundle, data, tmp_path / "out", epochs=1)
    table = (data / "manifest.csv").read_text()
    (data / "manifest.csv").write_text(table.replace("7.png,1", "7.png,0"))
    with pytest.raises(BundleError, match=r"checkpoint\.pt was made with other data\. Remove it, or name another"):
        run(bundle, data, tmp_path / "out", epochs=2)
    (data / "manifest.csv").write_text(table)
    assert run(bundle, data, tmp_path / "out", epochs=2)[0]["image"] == "epoch 2 of 2"


def test_two_trainings_do_not_write_into_one_folder(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (out / "training.log").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(Permanent, match=r"Another training runs in .*out; wait for it, or name another --out"):
            run(bundle, data, out, epochs=1)
    assert run(bundle, data, out, epochs=1)


def test_curves_are_json_also_where_a_figure_is_no_number(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    loss = "$lambda pred, label: 0 * pred.sum() + (float('nan') if label[0] else 1.0)"
    run(bundle, data, tmp_path / "out", epochs=1, overrides={"train#trainer#loss_function": loss})
    text = (tmp_path / "out" / "docs" / "curves.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)[0]["epoch"] == 1


def test_json_is_json_where_no_patient_is_tested(
    bundle: Bundle,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Standard output was empty, which no program takes for JSON."""
    lists = datalist.load(data, bundle) | {"test": []}
    (data / "bright.json").write_text(json.dumps(lists))
    (tmp_path / "wetread.toml").write_text(f'[worker]\nmodels = "{tmp_path / "models"}"\ndevice = "cpu"\n')
    trust.pin([bundle], tmp_path / "trusted.toml")

    def here(module: str, request: str, silence_s: float | None, tell: Any) -> None:
        asked = Request.from_json(request)
        train(asked, bundle, datalist.load(Path(asked.data), bundle), tell)

    monkeypatch.setattr(cli_child, "follow", here)
    where = ["--data", str(data), "--out", str(tmp_path / "out"), "--config", str(tmp_path / "wetread.toml")]
    assert cli.run(["train", "bright", *where, "--epochs", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {}
    assert "No patient fell into the test part" in err
    assert "The temperature" not in err  # this bundle has none
    assert "The threshold rests on" in err
