"""A bundle's own Python (`scripts/`) is importable while that bundle works, and for no other bundle.

Bundles share one process and all call their package `scripts`; each finds its own. Bytecode caches are never read:
they are not part of the digest, and could hold other code than the source beside them.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType, TracebackType

from node.bundles import importable_files

_NO_CACHE = os.path.join(os.devnull, "wetread")  # noqa: PTH118 - a path that cannot exist


class Scripts:
    """A context in which the bundle in `folder` can import its own modules; does nothing where it has none."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder.resolve())
        self._exist = bool(importable_files(folder))
        self._modules: dict[str, ModuleType] = {}
        self._before: tuple[str | None, bool] = (None, False)

    def __enter__(self) -> None:
        if not self._exist:
            return
        self._before = (sys.pycache_prefix, sys.dont_write_bytecode)
        sys.pycache_prefix, sys.dont_write_bytecode = _NO_CACHE, True
        sys.path.insert(0, self._folder)
        sys.modules.update(self._modules)
        importlib.invalidate_caches()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._exist:
            return
        sys.pycache_prefix, sys.dont_write_bytecode = self._before
        sys.path.remove(self._folder)
        for name, module in list(sys.modules.items()):
            if self._is_ours(module):
                self._modules[name] = sys.modules.pop(name)

    def _is_ours(self, module: ModuleType) -> bool:
        said = vars(module)  # torch.classes answers to every name that it is asked for
        places = [said.get("__file__"), *said.get("__path__", ())]
        return any(isinstance(place, str) and place.startswith(self._folder + os.sep) for place in places)
