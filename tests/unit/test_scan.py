from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from node import bundles
from node.errors import BundleError
from node.scan import Code, scan
from tests.unit.phantom import segmenter


def found(tmp_path: Path, **changes: Any) -> dict[str, Code]:
    return {code.what: code for code in scan(segmenter(tmp_path / "phantom", **changes)).code}


def test_what_a_reading_would_run_is_told_from_what_it_would_not(tmp_path: Path) -> None:
    code = found(
        tmp_path,
        imports=["$import glob"],
        depth="$2 + 1",
        inferer={"_target_": "SlidingWindowInferer", "roi_size": "@sizes", "mode": "$'constant'"},
        sizes="$[@depth] * 3",
        handlers=[{"_target_": "CheckpointLoader", "load_path": "$os.environ['X']"}],
    )
    runs = {what for what, one in code.items() if one.in_reading}
    assert {"$import glob", "$2 + 1", "$[@depth] * 3", "$'constant'", "SlidingWindowInferer", "Invertd"} <= runs
    assert {"CheckpointLoader", "$os.environ['X']"} <= code.keys() - runs
    assert code["$[@depth] * 3"].where == "configs/inference.json: sizes"


def test_a_relative_reference_may_lead_anywhere(tmp_path: Path) -> None:
    code = found(tmp_path, inferer={"_target_": "SimpleInferer", "x": "@##other"}, other={"y": "$1"})
    assert code["$1"].in_reading


@pytest.mark.parametrize(
    ("expression", "reaches"),
    [
        ("$torch.zeros(@n)", ()),
        ("$@bundle_root + '/x'", ()),
        ("$monai.handlers.from_engine(['pred'])", ()),
        ("$__import__('os').system('id')", ("the inside of Python",)),
        ("$os.system('id')", ("files and other programs",)),
        ("$subprocess.run(['id'])", ("other programs",)),
        ("$import urllib.request", ("the network",)),
        ("$torch.hub.load('a/b', 'c')", ("code in files", "the network")),
        ("$eval('1')", ("other code",)),
        ("$().__class__.__bases__", ("the inside of Python",)),
        ("$1 +", ("cannot be parsed",)),
    ],
)
def test_what_an_expression_reaches(tmp_path: Path, expression: str, reaches: tuple[str, ...]) -> None:
    assert found(tmp_path, extra=expression)[expression].reaches == reaches


@pytest.mark.parametrize(
    ("target", "reaches"),
    [
        ("UNet", ()),
        ("monai.networks.nets.UNet", ()),
        ("torch.nn.Conv3d", ()),
        ("scripts.net.Net", ()),
        ("os.system", ("files and other programs",)),
        ("subprocess.run", ("other programs",)),
        ("somewhere.Net", ("code outside MONAI and torch.nn",)),
    ],
)
def test_what_is_called(tmp_path: Path, target: str, reaches: tuple[str, ...]) -> None:
    assert found(tmp_path, extra={"_target_": target})[target].reaches == reaches


def test_modes_macros_and_scripts(tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom", a={"_target_": "Identity", "_mode_": "debug"}, b="%../x.json::net")
    (bundle.folder / "scripts").mkdir()
    (bundle.folder / "scripts" / "net.py").write_text("import torch\nimport socket\n")
    (bundle.folder / "fast.so").write_bytes(b"\x7fELF")
    code = {one.where: one for one in scan(bundle).code}
    assert code["configs/inference.json: a"].reaches in ((), ("a debugger",))
    assert code["configs/inference.json: b"].reaches == ("another configuration",)
    assert (code["scripts/net.py"].what, code["scripts/net.py"].reaches) == ("2 lines of Python", ("the network",))
    assert code["fast.so"].reaches == ("cannot be looked into",)
    assert code["scripts/net.py"].in_reading


def test_a_config_that_is_no_json_is_named(tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom")
    (bundle.folder / "configs" / "train.json").write_text("{")
    with pytest.raises(BundleError, match=r"train\.json: Expecting property name"):
        scan(bundle)


def test_nothing_is_imported_or_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    bundle = segmenter(tmp_path / "phantom", inferer=f"$open({str(marker)!r}, 'w')")
    (bundle.folder / "scripts").mkdir()
    (bundle.folder / "scripts" / "__init__.py").write_text(f"open({str(marker)!r}, 'w')\n")
    scan(bundle)
    assert not marker.exists()


def test_the_shipped_bundles_reach_no_further_than_files() -> None:
    for bundle in bundles.available():
        assert {reach for code in scan(bundle).runs for reach in code.reaches} <= {"files"}
