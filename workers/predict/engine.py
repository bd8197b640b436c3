"""What a bundle's evaluator would do beyond what a reading does: the reading would say something else, and is none.

A reading is `preprocessing`, `inferer` with `network_def`, and `postprocessing`. Looked at as text; nothing is run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from node.errors import BundleError

_SAME_NETWORK = frozenset(
    {"to", "cuda", "cpu", "eval", "float", "half", "bfloat16", "compile", "requires_grad_", "get_rank", "is_available"}
    | {"DataParallel", "DistributedDataParallel", "convert_sync_batchnorm", "device", "int", "str", "getenv", "get"}
)
"""What may be called around `network_def` without making another network of it."""


def require_plain(config: Mapping[str, Any], title: str) -> None:
    """Raise `BundleError` with the remedy where what `config` runs is more than a reading would run of it."""
    for fault in _faults(config):
        raise BundleError(f"Bundle {title}: {fault} It was not run.")


def _faults(config: Mapping[str, Any]) -> Iterator[str]:
    evaluator = config.get("evaluator")
    told = evaluator if isinstance(evaluator, dict) else {}
    if str(told.get("_target_", "")).rsplit(".", 1)[-1] == "EnsembleEvaluator":
        yield (
            "its evaluator is an ensemble of several networks, and a reading runs one. Make one network_def of them in "
            "scripts/, whose weights are those of all, and ship those as models/model.pt."
        )
    for key in ("prepare_batch", "iteration_update"):
        if told.get(key) is not None:
            yield (
                f"its evaluator has {key} of its own, and a reading has none. Do what it does in preprocessing, "
                "inferer or postprocessing."
            )
    for key in ("inferer", "postprocessing"):
        named = re.fullmatch(r"@(\w+)", str(told.get(key, "")))
        if named and named[1] != key and f"@{named[1]}" != config.get(key) and f"@{key}" != config.get(named[1]):
            yield f"its evaluator uses {named[1]}, and a reading runs {key}. Give that the id {key}."
    if not _is_same(config.get("network")):
        yield (
            "its network is more than network_def, which is all that a reading runs. Make what stands around it a part "
            "of network_def, or of postprocessing."
        )


def _is_same(network: Any) -> bool:
    """Whether `network` only moves or spreads `network_def`; true where it has nothing to do with it."""
    if isinstance(network, dict):
        uses = any("@network_def" in str(value) for value in network.values())
        return not uses or str(network.get("_target_", "")).rsplit(".", 1)[-1] in _SAME_NETWORK
    if not isinstance(network, str) or not network.startswith("$") or "@network_def" not in network:
        return True
    try:
        tree = ast.parse(re.sub(r"@[\w:#]*", "_reference", network[1:]).strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True  # MONAI says what is wrong with it
    return all(_called(node) in _SAME_NETWORK for node in ast.walk(tree) if isinstance(node, ast.Call))


def _called(call: ast.Call) -> str:
    function = call.func
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )
