"""Two bundles that both have a package `scripts`, in one process."""

from __future__ import annotations

import os
import py_compile
import sys
from pathlib import Path

import numpy as np

from node import bundles
from node.bundles import Bundle
from node.findings import Volume
from tests.unit.phantom import body, save, segmenter, stack
from workers.load.series import load
from workers.predict.network import Network

SCRIPT = """
import torch

class Net(torch.nn.Conv3d):
    def __init__(self):
        super().__init__(1, 3, 1)

    def forward(self, x):
        from scripts.more import SHIFT  # found when the network runs, long after it was made
        return super().forward(x) + SHIFT
"""


def scripted(folder: Path, shift: float) -> Bundle:
    bundle = segmenter(folder, network_def={"_target_": "scripts.net.Net"})
    (folder / "scripts").mkdir()
    (folder / "scripts" / "__init__.py").write_text("")
    (folder / "scripts" / "net.py").write_text(SCRIPT)
    more = f"import torch\nSHIFT = torch.tensor([0.0, {shift}, 0.0]).reshape(1, 3, 1, 1, 1)\n"
    (folder / "scripts" / "more.py").write_text(more)
    return bundles.load(bundle.folder)


def network(bundle: Bundle) -> Network:
    return Network(bundle, "cpu", bundle.digest)


def volume(tmp_path: Path) -> Volume:
    return load(save(stack(body()), tmp_path / "in"), 3)[0]


def test_each_bundle_finds_its_own_scripts_and_leaves_none_behind(tmp_path: Path) -> None:
    found = volume(tmp_path)
    one, two = network(scripted(tmp_path / "one", 0.0)), network(scripted(tmp_path / "two", 1000.0))
    before = list(sys.path)
    first, second, again = one.read(found), two.read(found), one.read(found)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    assert second.all()  # the other shift makes everything part 1
    assert sys.path == before
    assert not [name for name in sys.modules if name.split(".")[0] == "scripts"]
    assert not list((tmp_path / "one").rglob("__pycache__"))


def test_a_bytecode_cache_is_never_read(tmp_path: Path) -> None:
    """It is not in the digest, so it must not be what runs: here it holds other code under the source's own stamp."""
    bundle = scripted(tmp_path / "one", 0.0)
    source = bundle.folder / "scripts" / "more.py"
    stamp, text = source.stat(), source.read_text()
    source.write_text(text.replace("[0.0, 0.0, 0.0]", "[0.0, 9e9, 0.0]"))
    py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    source.write_text(text)
    os.utime(source, (stamp.st_atime, stamp.st_mtime))
    assert list(source.parent.glob("__pycache__/more*.pyc"))
    answer = network(bundle).read(volume(tmp_path))
    assert answer.any()
    assert not answer.all()
