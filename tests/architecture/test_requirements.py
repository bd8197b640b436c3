"""Whatever the code imports is required by name in pyproject.toml, and pinned in constraints.txt."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest

from tests.architecture.test_imports import FILES, ROOT, imports

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_OPTIONAL = _PROJECT["optional-dependencies"]["dev"]
_BROUGHT_ALONG = {"kombu": "celery", "redis": "celery", "pytorch-ignite": "monai"}
"""Parts of a required library, which alone says the version that it needs."""


def names(requirements: list[str]) -> set[str]:
    """Return the names of requirements, without extras, versions and markers."""
    return {re.split(r"[\[<>=;~! ]", line)[0].lower().replace("_", "-") for line in requirements}


def imported(paths: list[object]) -> set[str]:
    """Return the distributions that files import."""
    known = packages_distributions()
    found = {name.split(".")[0] for path in paths for name in imports(path)}  # type: ignore[arg-type]
    ours = {"node", "workers", "tests"}
    libraries = found - ours - set(sys.stdlib_module_names)
    return {known[name][0].lower().replace("_", "-") for name in libraries if name in known}


@pytest.mark.parametrize(
    ("paths", "required"),
    [
        (FILES, _PROJECT["dependencies"] + _PROJECT["optional-dependencies"]["openvino"]),
        (sorted((ROOT / "tests").rglob("*.py")), _PROJECT["dependencies"] + _OPTIONAL),
    ],
    ids=["code", "tests"],
)
def test_every_import_is_required(paths: list[object], required: list[str]) -> None:
    needed = {_BROUGHT_ALONG.get(name, name) for name in imported(paths)} - {"pydantic-core"}
    assert needed - names(required) == set()


def test_every_requirement_is_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = names([line for line in pins if not line.startswith("#")])
    assert names(_PROJECT["dependencies"] + _OPTIONAL) - pinned == set()
    assert all("==" in line for line in pins if line and not line.startswith("#"))
