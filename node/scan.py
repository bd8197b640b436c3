"""What code a Model Bundle would run, read from its files as text; nothing of it is run, imported or unpickled.

A scan shows; it does not judge. What it cannot see into, it says. The digest that is pinned afterwards
(`node/trust.py`) is what keeps the bundle as it was shown.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from node import weights
from node.bundles import Bundle, importable_files, inference_config, read_config, weights_path
from node.errors import BundleError
from node.weights import Weights

READING = ("network_def", "preprocessing", "inferer", "postprocessing")
"""The ids of `inference.json` that a reading resolves, with all that they refer to (`workers/predict/network.py`)."""

_KNOWN_TARGETS = ("monai.", "torch.nn.", "torch.optim.", "ignite.", "scripts.")
_REACHES: dict[str, str] = {
    **dict.fromkeys(("os", "posix", "nt"), "files and other programs"),
    **dict.fromkeys(("sys", "shutil", "pathlib", "tempfile", "glob", "io", "open", "mmap"), "files"),
    **dict.fromkeys(("subprocess", "multiprocessing", "pty", "signal", "ctypes", "cffi", "pdb"), "other programs"),
    **dict.fromkeys(
        ("socket", "ssl", "http", "urllib", "requests", "httpx", "ftplib", "smtplib", "hub"), "the network"
    ),
    **dict.fromkeys(("eval", "exec", "compile", "importlib", "runpy", "builtins", "getattr", "setattr"), "other code"),
    **dict.fromkeys(("pickle", "dill", "joblib", "marshal", "shelve", "load", "jit"), "code in files"),
}
"""Names that reach beyond numbers in memory, and where to."""
_REFERENCE = re.compile(r"@([\w:#]*)")


@dataclass(frozen=True)
class Code:
    """One piece of code that a bundle names: an expression, something called, a macro, or a script.

    `in_reading`: wetread would run it. `reaches`: what it could touch beyond numbers in memory, as far as seen.
    """

    where: str
    what: str
    kind: Literal["import", "expression", "call", "mode", "macro", "script"]
    in_reading: bool
    reaches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scan:
    """All code that one bundle names, and what its weights are."""

    code: tuple[Code, ...]
    weights: Weights

    @property
    def runs(self) -> tuple[Code, ...]:
        """What wetread would run in a reading."""
        return tuple(code for code in self.code if code.in_reading)


def scan(bundle: Bundle) -> Scan:
    """Read every configuration and script of `bundle` as text; raises `BundleError` where one cannot be parsed."""
    found = list(_scripts(bundle.folder))
    configs = (path for path in (bundle.folder / "configs").iterdir() if path.suffix in (".json", ".yaml", ".yml"))
    for path in sorted(configs):
        found += _config(path, bundle)
    return Scan(tuple(found), weights.look(weights_path(bundle.folder)))


def _config(path: Path, bundle: Bundle) -> Iterator[Code]:
    try:
        config = read_config(path)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: {error}") from None
    if path.name == "metadata.json" or not isinstance(config, dict):
        return
    is_read = path == inference_config(bundle.folder)
    used = _used(config, bundle) if is_read else frozenset[str]()
    for key, value in config.items():
        for place, code in _walk(value, key):
            kind, what, reaches = code
            runs = key in used or (is_read and kind == "import")  # MONAI runs every import
            yield Code(f"{path.relative_to(bundle.folder)}: {place}", what, kind, runs, reaches)


def _used(config: Mapping[str, Any], bundle: Bundle) -> frozenset[str]:
    """Return the top-level ids that a reading resolves; all of them where a reference cannot be followed.

    Of a detector what its evaluator requires is resolved too (`workers/predict/network.py`).
    """
    waiting, used = [key for key in READING if key in config], set[str]()
    evaluator = config.get("evaluator")
    if bundle.dicom.kind == "detection" and isinstance(evaluator, dict) and "_requires_" in evaluator:
        waiting.append("evaluator")
        config = {**config, "evaluator": evaluator["_requires_"]}
    while waiting:
        key = waiting.pop()
        used.add(key)
        for text in _texts(config[key]):
            names = {re.split("::|#", name)[0] for name in _REFERENCE.findall(text)}
            if text.startswith("%"):
                names.add(re.split("::|#", text[1:])[0])
            if "" in names:  # a relative reference, which may lead anywhere
                return frozenset(config)
            waiting += [name for name in names if name in config and name not in used]
    return frozenset(used)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(item)


_Found = tuple[Literal["import", "expression", "call", "mode", "macro"], str, tuple[str, ...]]


def _walk(value: Any, place: str) -> Iterator[tuple[str, _Found]]:
    """Yield (place, what was found) for a value of a configuration and all below it."""
    if isinstance(value, str) and value.startswith("$"):
        tree, reaches = _look_into(value[1:].strip(), is_expression=True)
        is_import = isinstance(tree, ast.Module) and any(isinstance(n, ast.Import | ast.ImportFrom) for n in tree.body)
        yield place, ("import" if is_import else "expression", value, reaches)
    elif isinstance(value, str) and value.startswith("%"):
        yield place, ("macro", value, ("another configuration",) if ".json" in value or ".y" in value else ())
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if key == "_target_":
            yield place, ("call", str(item), _target(str(item)))
        elif key == "_mode_" and item != "default":
            yield place, ("mode", f"_mode_ {item}", ("a debugger",) if item == "debug" else ())
        yield from _walk(item, f"{place}::{key}")


def _target(name: str) -> tuple[str, ...]:
    """A bare name is one of MONAI's components; a dotted one may be anything that Python can import."""
    if "." not in name or name.startswith(_KNOWN_TARGETS):
        return ()
    return (_REACHES.get(name.split(".")[0], "code outside MONAI and torch.nn"),)


def _look_into(source: str, is_expression: bool = False) -> tuple[ast.AST | None, tuple[str, ...]]:
    try:
        tree = ast.parse(_REFERENCE.sub("_reference", source) if is_expression else source)
    except (SyntaxError, ValueError, RecursionError):
        return None, ("cannot be parsed",)
    return tree, tuple(sorted({reach for name in _names(tree) if (reach := _reach(name))}))


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def _reach(name: str) -> str:
    if name.startswith("__") and name not in ("__init__", "__name__", "__len__", "__getitem__", "__call__"):
        return "the inside of Python"
    return _REACHES.get(name, "")


def _scripts(folder: Path) -> Iterator[Code]:
    """One entry per file that Python could import from the bundle."""
    for path in importable_files(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix != ".py":
            yield Code(name, "compiled code", "script", True, ("cannot be looked into",))
            continue
        source = path.read_text(encoding="utf-8", errors="replace")
        _, reaches = _look_into(source)
        yield Code(name, f"{len(source.splitlines())} lines of Python", "script", True, reaches)
