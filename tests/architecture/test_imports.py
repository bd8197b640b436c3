"""Who imports whom: the map of the house, and its guard. A file imports only from its own row or from rows above it.

Rows go from the bottom of the house to its top; where a row names several folders, those never import each other.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ROWS: tuple[tuple[str, ...], ...] = (
    ("node.errors", "node.clock", "node.uids", "node.codes"),
    ("node.crashpoints", "node.commitment"),
    (
        "node.configfile",
        "node.configvalues",
        "node.states",
        "node.leash",
        "node.weights",
        "node.macros",
        "node.dicomconfig",
    ),
    ("node.bundles", "node.study", "node.findings"),
    ("node.conditions",),
    ("node.settings", "node.settings_rules", "node.cards"),
    ("node.trust", "node.scan", "node.skeleton", "node.reload"),
    ("node.log", "node.metrics", "node.audit"),
    ("node.tls",),
    ("node.calling",),
    ("node.store",),
    ("node.embedded", "node.broker", "node.simulate"),
    ("node.accept", "node.assemble", "node.route"),
    ("node.web",),
    ("node.loop",),
    ("workers.child", "workers.imports", "workers.room"),
    ("workers.load", "workers.predict", "workers.report", "workers.send"),
    ("workers.restraint",),
    ("workers.pipeline",),
    ("workers.evaluate",),
    ("workers.train",),
    ("workers.conversation",),
    ("workers.reader",),
    ("workers.messages", "workers.tasks"),
    ("workers.app",),
    ("node.routing", "node.helper", "node.daemon"),
    (
        "node.cli_output",
        "node.cli_bundle",
        "node.cli_child",
        "node.cli_model",
        "node.cli_content",
        "node.cli_dicom",
        "node.cli_queue",
        "node.cli_read",
        "node.cli_spool",
        "node.check",
        "node.demo",
        "node.dryrun",
    ),
    ("node.cli_node",),
    ("node.cli",),
)
SIBLINGS = {
    "node.accept",
    "node.assemble",
    "node.route",
    "workers.load",
    "workers.predict",
    "workers.report",
    "workers.send",
}
"""Stages meet in the database or in `pipeline`, never in a call."""

ONLY_IN = {
    "torch": ("workers.predict", "workers.evaluate", "workers.train"),
    "openvino": ("workers.predict",),
    "monai": ("workers.predict", "workers.evaluate", "workers.train"),
    "ignite": ("workers.train",),
    "sklearn": ("workers.evaluate", "workers.train"),
    "matplotlib": ("workers.evaluate", "workers.train"),
    "nibabel": ("workers.evaluate",),
    "highdicom": ("workers.report",),
    "celery": ("node.broker", "workers.app", "workers.messages", "workers.tasks"),
    "starlette": ("node.web",),
    "markdown_it": ("node.web",),
    "click": ("node.cli",),
}
NEVER = {
    "workers.predict": ("pydicom", "pynetdicom", "highdicom"),
    "workers.report": ("torch", "monai"),
    "node": ("workers", "torch", "monai", "highdicom"),
}
FORBIDDEN = ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve")

FILES = sorted(p for top in ("node", "workers") for p in (ROOT / top).rglob("*.py"))
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, anywhere in it; `from a import b` gives `a.b` where that is one."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names}
    return found


def place(module: str) -> tuple[int, str]:
    """Return the row of a module and the entry it belongs to."""
    for row, entries in enumerate(ROWS):
        for entry in entries:
            if module == entry or module.startswith(entry + "."):
                return row, entry
    raise AssertionError(f"{module} has no place in ROWS: add it where it belongs")


HOUSE = [name for name in MODULES if name not in ("node", "workers")]


@pytest.mark.parametrize("module", HOUSE)
def test_a_file_imports_only_from_its_row_or_below(module: str) -> None:
    row, entry = place(module)
    for imported in imports(MODULES[module]):
        if not imported.startswith(("node.", "workers.")):
            continue
        other_row, other = place(imported)
        assert other_row <= row, f"{module} imports {imported}, which stands above it"
        assert not (entry in SIBLINGS and other in SIBLINGS and entry != other), (
            f"{module} imports its sibling {imported}"
        )


@pytest.mark.parametrize("module", HOUSE)
def test_libraries_stay_in_their_rooms(module: str) -> None:
    for imported in imports(MODULES[module]):
        library = imported.split(".")[0]
        rooms = ONLY_IN.get(library, ("",))
        assert module.startswith(rooms), f"{module} imports {library}, which belongs to {', '.join(rooms)}"
        assert library not in FORBIDDEN, f"{module} imports {library}"
        for room, never in NEVER.items():
            assert not (module.startswith(room) and library in never), f"{module} imports {library}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_shell_no_eval_and_small_files(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("eval", "exec", "os.system", "os.popen"), f"{path.name} calls {name}"
            for keyword in node.keywords:
                shell = keyword.arg == "shell" and getattr(keyword.value, "value", None) is not False
                assert not shell, f"{path.name} starts a shell"
    assert len(text.splitlines()) <= 320, f"{path.name} has {len(text.splitlines())} lines; split it by what it does"
