from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from node import bundles
from node.errors import BundleError
from node.scan import Code, scan
from tests.unit.phantom import segmenter
from workers.predict.network import Network


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
        ("$__import__('os').system('id')", ("other programs", "the inside of Python")),
        ("$os.system('id')", ("files and other programs", "other programs")),
        ("$subprocess.run(['id'])", ("other code", "other programs")),
        ("$import urllib.request", ("the network",)),
        ("$torch.hub.load('a/b', 'c')", ("code in files", "the network")),
        ("$eval('1')", ("other code",)),
        ("$().__class__.__bases__", ("the inside of Python",)),
        ("$1 +", ("cannot be parsed",)),
        ("$monai.utils.optional_import('os')[0].system('id')", ("other code", "other programs")),
        ("$vars(torch)['hub']", ("other code",)),
        ("$ｅｖａｌ('1')", ("other code",)),
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
        ("os.system", ("files and other programs", "other programs")),
        ("subprocess.run", ("other code", "other programs")),
        ("somewhere.Net", ("code outside MONAI and torch.nn",)),
        ("mоnai.networks.nets.UNet", ("code outside MONAI and torch.nn",)),
        ("monai.bundle.scripts.os.system", ("files and other programs", "other programs")),
        ("open", ("files",)),
        ("__import__", ("the inside of Python",)),
        ("download_url", ("the network",)),
        ("@network_def", ("a name that is computed",)),
    ],
)
def test_what_is_called(tmp_path: Path, target: str, reaches: tuple[str, ...]) -> None:
    assert found(tmp_path, extra={"_target_": target})[target].reaches == reaches


def test_modes_and_scripts(tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom", a={"_target_": "Identity", "_mode_": "debug"}, b="%network_def")
    (bundle.folder / "scripts").mkdir()
    (bundle.folder / "scripts" / "net.py").write_text("import torch\nimport socket\n")
    (bundle.folder / "fast.so").write_bytes(b"\x7fELF")
    code = {one.where: one for one in scan(bundle).code}
    assert code["configs/inference.json: a"].reaches in ((), ("a debugger",))
    assert (code["configs/inference.json: b"].kind, code["configs/inference.json: b"].reaches) == ("macro", ())
    assert (code["scripts/net.py"].what, code["scripts/net.py"].reaches) == ("2 lines of Python", ("the network",))
    assert code["fast.so"].reaches == ("cannot be looked into",)
    assert code["scripts/net.py"].in_reading


CONV = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3}
SIMPLE = {"_target_": "SimpleInferer"}


@pytest.mark.parametrize(
    "hidden",
    [
        {"inferer": SIMPLE | {"_requires_": "@far::away"}, "far": {"x": 1}, "far::away": "CODE"},
        {"network_def::kernel_size": "CODE", "network_def": CONV | {"kernel_size": 1}},
        {"network_def": CONV, "+network_def": {"kernel_size": "CODE"}},
        {"inferer": SIMPLE | {"_requires_": "@far#away"}, "far": {"away": "CODE"}},
        {"inferer": SIMPLE | {"_desc_": "CODE"}},
        {"inferer": SIMPLE | {"_disabled_": "$CODE == 0"}},
        {"inferer": SIMPLE | {"_requires_": ["@far"]}, "far": "CODE", "near": "@far"},
        {"inferer": "%near", "near": SIMPLE | {"_requires_": "@far"}, "far": "CODE"},
        {"::inferer": SIMPLE | {"_requires_": "CODE"}},
    ],
)
def test_what_runs_has_been_shown_wherever_it_hides(hidden: dict[str, Any], tmp_path: Path) -> None:
    """The code leaves a mark when the network is built; then the scan must have called it part of a reading."""
    marker = tmp_path / "marker"
    code = f"$len([open({str(marker)!r}, 'w').close()])"
    config = json.loads(json.dumps(hidden).replace("$CODE", code).replace("CODE", code))
    bundle = segmenter(tmp_path / "phantom", **config)
    shown = [one for one in scan(bundle).runs if str(marker) in one.what]
    with suppress(BundleError):  # not all of these are networks in the end
        Network(bundle, "cpu", bundle.digest)
    assert marker.exists()
    assert shown
    assert all("files" in one.reaches for one in shown)


def test_an_import_is_one_whatever_stands_before_it(tmp_path: Path) -> None:
    code = found(tmp_path, extra=["$# harmless\nimport glob", "$import os;a=1@x"])
    assert all(one.in_reading for what, one in code.items() if "import" in what)


def test_a_key_that_is_no_text_is_followed(tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom")
    path = bundle.folder / "configs" / "inference.json"
    config = json.loads(path.read_text())
    path.unlink()
    text = yaml.safe_dump({**config, "inferer": {**SIMPLE, "_requires_": "@True"}}) + "yes: $print(1)\n"
    path.with_suffix(".yaml").write_text(text)
    assert "$print(1)" in [one.what for one in scan(bundle).runs]


def test_code_in_the_folder_of_caches_is_shown_and_pinned(tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom", network_def={"_target_": "scripts.__pycache__.net.Net"})
    before = bundle.digest
    folder = bundle.folder / "scripts" / "__pycache__"
    folder.mkdir(parents=True)
    (folder / "old.cpython-311.pyc").write_bytes(b"cache")
    assert bundles.load(bundle.folder).digest == before
    (folder / "net.py").write_text("import torch\n\n\nclass Net(torch.nn.Conv3d):\n    pass\n")
    (folder / "other.pyc").write_bytes(b"code")
    shown = [one.where for one in scan(bundle).runs if one.kind == "script"]
    assert shown == ["scripts/__pycache__/net.py", "scripts/__pycache__/other.pyc"]
    assert bundles.load(bundle.folder).digest != before


def test_a_macro_leads_to_a_file_that_is_pinned_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where MONAI alone would look for the file
    conv = CONV | {"kernel_size": "$1"}
    for name in ("%configs/parts.json::net", "%parts.json#net"):
        bundle = segmenter(tmp_path / name[1:5], network_def=name)
        (bundle.folder / "configs" / "parts.json").write_text(json.dumps({"net": conv, "more": "$open('x')"}))
        Network(bundles.load(bundle.folder), "cpu", bundles.load(bundle.folder).digest)
        runs = {one.what: one.where for one in scan(bundle).runs}
        assert runs["$1"] == "configs/parts.json: net::kernel_size"
        assert "$open('x')" in runs


@pytest.mark.parametrize("name", ["../x.json", "docs/x.json", "configs/gone.json", "{tmp}/x.json", "configs/link.json"])
def test_a_macro_that_leads_out_of_the_configs_is_refused(name: str, tmp_path: Path) -> None:
    macro = f"%{name.replace('{tmp}', str(tmp_path))}::net"
    bundle = segmenter(tmp_path / "phantom", network_def=macro)
    (bundle.folder / "docs").mkdir()
    for path in (tmp_path, bundle.folder / "docs", bundle.folder):
        (path / "x.json").write_text(json.dumps({"net": CONV | {"kernel_size": 1}}))
    (bundle.folder / "configs" / "link.json").symlink_to(bundle.folder / "x.json")
    for look in (lambda: scan(bundle), lambda: Network(bundle, "cpu", bundle.digest)):
        with pytest.raises(BundleError, match="leads to no file in its configs folder"):
            look()


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "a0: &a0 [x, x]\n" + "".join(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]\n" for k in range(1, 40)),
        "a: " + "[" * 5000 + "]" * 5000,
        "a: !!python/object/apply:os.system ['true']",
    ],
)
def test_a_configuration_without_end_is_named(text: str, tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom")
    (bundle.folder / "configs" / "more.yaml").write_text(text)
    with pytest.raises(BundleError, match=r"more\.yaml: (more than|could not determine)"):
        scan(bundle)


def test_a_pipe_among_the_configurations_is_not_waited_for(tmp_path: Path) -> None:
    folder = segmenter(tmp_path / "phantom").folder
    os.mkfifo(folder / "configs" / "more.json")
    assert scan(bundles.load(folder)).runs
    (folder / "configs" / "dicom.toml").unlink()
    os.mkfifo(folder / "configs" / "dicom.toml")
    with pytest.raises(BundleError, match=r"dicom\.toml: cannot be read"):
        bundles.load(folder)


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
