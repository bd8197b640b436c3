"""The listener, the status pages and `wetread --help` must start at once and live where there is no torch."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from tests.architecture.test_imports import HOUSE, ROOT

_HEAVY = ("torch", "monai", "highdicom", "matplotlib")
_SHOW = f"import sys; print(sorted({{m.split('.')[0] for m in sys.modules}} & set({_HEAVY!r})))"


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the checkout."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_no_module_of_the_node_imports_torch() -> None:
    modules = ", ".join(name for name in HOUSE if name.startswith("node."))
    done = python("-c", f"import {modules}\n{_SHOW}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_supervisor_of_the_worker_imports_no_torch() -> None:
    done = python("-c", f"import workers.reader, workers.pipeline\n{_SHOW}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["read", "--help"], ["dead", "--help"], ["evaluate", "--help"]])
def test_help_is_quick_and_light(arguments: list[str]) -> None:
    light = f"import sys; from node import cli; cli.run({arguments!r}); {_SHOW}"
    done = python("-c", light)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr
    best = min(_seconds(arguments) for _ in range(3))
    assert best < 0.5, f"{best:.2f} s"


def _seconds(arguments: list[str]) -> float:
    """Of the processor: what else the machine does is not this command's fault."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert python("-m", "node.cli", *arguments).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
