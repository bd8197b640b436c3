"""Macros of a MONAI configuration that lead into another file (`%configs/common.json::net`): inside the bundle, or not.

MONAI opens whatever file a macro names, from wherever the process runs. Only what lies under `configs/` is part of the
digest that was trusted, so that nothing else may say what a bundle runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from node.errors import BundleError

_FILE = re.compile(r"%(?P<file>.*\.(?:json|yaml|yml))(?P<id>(?:::|#).*|$)", re.IGNORECASE | re.DOTALL)


def texts(value: Any) -> Iterator[str]:
    """Yield every text in a value of a configuration, keys apart."""
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(item)


def files(config: Any, folder: Path) -> frozenset[Path]:
    """Return the files into which macros of `config` lead; raises `BundleError` for one outside `folder`/configs."""
    found = (_FILE.fullmatch(text) for text in texts(config))
    return frozenset(_inside(match["file"], folder) for match in found if match)


def in_place(config: Any, folder: Path) -> Any:
    """Return `config` with the files of its macros as full paths; raises `BundleError` as `files` does."""
    if isinstance(config, dict):
        return {key: in_place(value, folder) for key, value in config.items()}
    if isinstance(config, list):
        return [in_place(value, folder) for value in config]
    if isinstance(config, str) and (match := _FILE.fullmatch(config)):
        return f"%{_inside(match['file'], folder)}{match['id']}"
    return config


def _inside(name: str, folder: Path) -> Path:
    """Return the file that is meant: seen from the bundle's folder, where people run it, or from its configs."""
    configs = (folder / "configs").resolve()
    for parent in (folder, configs):
        path = (parent / name).resolve()
        if path.is_file() and path.parent == configs:
            return path
    raise BundleError(
        f'Bundle {folder.name}: the macro "%{name}" leads to no file in its configs folder. Others are not trusted and '
        "are not read. Copy the file to configs/, and name it %configs/…"
    )
