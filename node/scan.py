"""What code a Model Bundle would run, read from its files as text; nothing of it is run, imported or unpickled.

A scan shows; it does not judge. What it cannot see into, it says. The digest that is pinned afterwards
(`node/trust.py`) is what keeps the bundle as it was shown.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from node import macros, weights
from node.bundles import Bundle, importable_files, inference_config, read_config, weights_path
from node.errors import BundleError
from node.weights import Weights

READING = ("network_def", "preprocessing", "inferer", "postprocessing")
"""The ids of `inference.json` that a reading resolves, with all that they refer to (`workers/predict/network.py`)."""

_KNOWN_TARGETS = ("monai.", "torch.nn.", "torch.optim.", "ignite.", "scripts.")
_REACHES: dict[str, str] = {
    name: where
    for where, names in {
        "files and other programs": "os posix nt",
        "files": "sys shutil pathlib tempfile glob io open mmap memmap fromfile tofile savez savetxt extractall "
        "read_text read_bytes write_text write_bytes unlink rmtree",
        "other programs": "subprocess multiprocessing pty signal ctypes ctypeslib cffi pdb system popen run_cmd "
        "breakpoint cpp_extension",
        "the network": "socket ssl http urllib requests httpx ftplib smtplib hub urlopen urlretrieve download "
        "download_url download_and_extract download_mmar",
        "other code": "eval exec compile importlib import_module runpy builtins getattr setattr vars globals locals "
        "pydoc locate optional_import load_submodules instantiate run run_workflow create_workflow ConfigParser "
        "ConfigExpression ConfigComponent ConfigWorkflow",
        "code in files": "pickle dill joblib marshal shelve load jit load_library load_module",
    }.items()
    for name in names.split()
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
    read = inference_config(bundle.folder)
    config = _read(read)
    parts = macros.files(config, bundle.folder)
    kinds = (".json", ".yaml", ".yml")
    configs = (path for path in (bundle.folder / "configs").iterdir() if path.suffix in kinds and path.is_file())
    for path in sorted({*configs, *parts}):
        name = str(path.relative_to(bundle.folder))
        if path == read:
            found += _code(config, name, _used(config, bundle, bool(parts)), is_read=True)
        elif path in parts or path.name != "metadata.json":
            found += _code(_read(path), name, None if path in parts else frozenset())
    return Scan(tuple(found), weights.look(weights_path(bundle.folder)))


def _read(path: Path) -> Any:
    try:
        return read_config(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: {error}") from None


def _code(config: Any, name: str, used: frozenset[str] | None, is_read: bool = False) -> Iterator[Code]:
    """Yield the code in the configuration `name`; `used`: the keys that a reading resolves, None for all of them.

    `is_read`: it is the one that a reading runs, and MONAI runs every import of that.
    """
    for key, value in config.items() if isinstance(config, dict) else ():
        for place, code in _walk(value, str(key)):
            kind, what, reaches = code
            runs = used is None or key in used or (is_read and kind == "import")
            yield Code(f"{name}: {place}", what, kind, runs, reaches)


def _used(config: Any, bundle: Bundle, has_parts: bool) -> frozenset[str]:
    """Return the top-level keys that a reading resolves; all of them where a reference cannot be followed.

    `has_parts`: macros lead into other files, and from there to anything. Of a detector what its evaluator requires is
    resolved too (`workers/predict/network.py`).
    """
    if not isinstance(config, dict):
        return frozenset()
    if has_parts or "" in map(_id, config):
        return frozenset(config)
    waiting, used = [key for key in config if _id(key) in READING], set[Any]()
    if bundle.dicom.kind == "detection":
        evaluator = config.get("evaluator")
        config = {**config, "evaluator": evaluator.get("_requires_") if isinstance(evaluator, dict) else evaluator}
        waiting += [key for key in config if _id(key) == "evaluator"]
    while waiting:
        key = waiting.pop()
        used.add(key)
        for text in macros.texts(config[key]):
            names = {_id(name) for name in _REFERENCE.findall(text)}
            if text.startswith("%"):
                names.add(_id(text[1:]))
            if "" in names:  # a relative reference, which may lead anywhere
                return frozenset(config)
            waiting += [other for other in config if _id(other) in names and other not in used]
    return frozenset(used)


def _id(name: Any) -> str:
    """Return the top-level id of a key or a reference: MONAI merges `a::b` into `a`, and what `+a` says into it."""
    return re.split("::|#", str(name).lstrip("+"))[0]


_Found = tuple[Literal["import", "expression", "call", "mode", "macro"], str, tuple[str, ...]]


def _walk(value: Any, place: str) -> Iterator[tuple[str, _Found]]:
    """Yield (place, what was found) for a value of a configuration and all below it."""
    if isinstance(value, str) and value.startswith("$"):
        reaches = _look_into(value[1:].strip(), is_expression=True)
        yield place, ("import" if _is_import(value[1:]) else "expression", value, reaches)
    elif isinstance(value, str) and value.startswith("%"):
        yield place, ("macro", value, ("another configuration",) if ".json" in value or ".y" in value else ())
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if key == "_target_":
            yield place, ("call", str(item), _target(str(item)))
        elif key == "_mode_" and item != "default":
            yield place, ("mode", f"_mode_ {item}", () if item in ("callable", "partial") else ("a debugger",))
        yield from _walk(item, f"{place}::{key}")


def _is_import(source: str) -> bool:
    """Say whether MONAI takes an expression for an import, which it runs wherever it stands."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return bool(body) and isinstance(body[0], ast.Import | ast.ImportFrom)


def _target(name: str) -> tuple[str, ...]:
    """A bare name is one of MONAI's components or Python's own; a dotted one may be anything that can be imported.

    Through a module of MONAI's whatever that module imports can be reached, too: `monai.bundle.scripts.os.system`.
    """
    if name.startswith(("$", "@", "%")):
        return ("a name that is computed",)
    if found := {reach for part in name.split(".") if (reach := _reach(part))}:
        return tuple(sorted(found))
    return () if "." not in name or name.startswith(_KNOWN_TARGETS) else ("code outside MONAI and torch.nn",)


def _look_into(source: str, is_expression: bool = False) -> tuple[str, ...]:
    try:
        tree = ast.parse(_REFERENCE.sub("_reference", source) if is_expression else source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ("cannot be parsed",)
    return tuple(sorted({reach for name in _names(tree) if (reach := _reach(name))}))


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
        reaches = _look_into(source)
        yield Code(name, f"{len(source.splitlines())} lines of Python", "script", True, reaches)
