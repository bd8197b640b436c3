"""What a file of weights is, by its bytes and never by its name; nothing in it is loaded or run.

A pickle is a program. Its opcodes are walked, not executed, to name what it would import; PyTorch's own
`weights_only` loader has the last word when the weights are loaded (`workers/predict/weights.py`).
"""

from __future__ import annotations

import json
import pickletools
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from node.errors import BundleError

Kind = Literal[
    "state dict", "safetensors", "TorchScript", "ONNX", "HDF5", "pickle", "Git LFS pointer", "empty", "unknown"
]

_NAMES: dict[Kind, str] = {"state dict": "model.pt", "safetensors": "model.safetensors", "TorchScript": "model.ts"}
"""What wetread loads, and the name it must have (MONAI Bundle Specification, `models/`)."""
INDEX = "model.safetensors.index.json"
"""Says in which file ("shard") of safetensors each tensor lies."""
_MAX_INDEX = 1 << 26

_LEGACY = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""The magic number, pickled, with which `torch.save` began its files before they were ZIP archives."""
_LEGACY_PARTS = 4
"""Magic number, protocol, system, and the object: the pickles of such a file, one after the other."""
_MAX_PICKLE = 1 << 26
_HARMLESS = re.compile(
    r"collections\.(OrderedDict|Counter|defaultdict)|(builtins|__builtin__)\.(set|dict|complex|bytearray)"
    r"|_codecs\.encode|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\.(cuda\.)?\w+(Storage|Tensor)|torch\.storage\.\w+Storage|torch\.nn\.parameter\.Parameter"
    r"|torch\.(Size|Tensor|device|bool|b?float\d\w*|u?int\d+|q\w+|bits\w+|complex\d+|per_\w+)"
    r"|torch\.serialization\._get_layout"
)
_TEXTS = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"})

_REMEDIES: dict[Kind, str] = {
    "ONNX": "wetread runs PyTorch networks: export the weights with torch.save(network.state_dict(), 'model.pt')",
    "HDF5": "Keras and TensorFlow weights are not read: convert the network to PyTorch",
    "pickle": "save the tensors alone with torch.save(network.state_dict(), 'model.pt')",
    "Git LFS pointer": "the weights themselves were not fetched: run `git lfs pull` where the bundle comes from",
    "empty": "copy it again",
    "unknown": "save the weights with torch.save(network.state_dict(), 'model.pt')",
}


@dataclass(frozen=True)
class Weights:
    """One file of weights: what it is, its size in bytes, and what its pickle would import beyond tensors."""

    path: Path
    kind: Kind
    size: int
    foreign: tuple[str, ...] = ()

    @property
    def fault(self) -> str:
        """Why it cannot be loaded and what to do, or nothing."""
        if self.kind not in _NAMES:
            article = "an" if self.kind in ("ONNX", "HDF5") else "a file of" if self.kind == "unknown" else "a"
            what = {"empty": "empty", "unknown": "no file of weights"}.get(self.kind, f"{article} {self.kind} file")
            return f"{self.path.name} is {what}; {_REMEDIES[self.kind]}."
        if self.path.name != INDEX and self.path.suffix != Path(_NAMES[self.kind]).suffix:
            what = "a safetensors" if self.kind == "safetensors" else f"a {self.kind}"
            return f"{self.path.name} is {what} file under a wrong name; rename it to {_NAMES[self.kind]}."
        if self.foreign:
            return (
                f"{self.path.name} needs other code to be unpickled ({', '.join(self.foreign[:3])}), which could be "
                "anything; save the tensors alone with torch.save(network.state_dict(), 'model.pt')."
            )
        return ""


def files(path: Path) -> tuple[Path, ...]:
    """Return the files that the weights at `path` consist of: itself, or the index and its shards.

    Raises `BundleError` where the index is none, or names a file that is not beside it.
    """
    if path.name != INDEX:
        return (path,)
    try:
        named = json.loads(path.read_bytes()[:_MAX_INDEX])["weight_map"].values()
        shards = sorted({str(name) for name in named})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BundleError(f"{path.name} is no index of safetensors: it needs weight_map, tensor name → file.") from None
    for name in shards:
        if Path(name).name != name or not (path.parent / name).is_file():
            raise BundleError(f'{path.name} names the file "{name}", which is not beside it in models/; copy it there.')
    return (path, *(path.parent / name for name in shards))


def look(path: Path) -> Weights:
    """Say what the file at `path` is, or the shards that it is the index of.

    Raises OSError where it cannot be read, `BundleError` for an index that is none.
    """
    if path.name == INDEX:
        shards = [look(shard) for shard in files(path)[1:]]
        wrong = [shard for shard in shards if shard.fault or shard.kind != "safetensors"]
        return wrong[0] if wrong else Weights(path, "safetensors", sum(shard.size for shard in shards))
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(128)
        file.seek(0)
        if head.startswith(b"PK\x03\x04"):
            return _archive(path, file, size)
        if head.startswith(b"\x80") and _LEGACY in head[:32]:
            return Weights(path, "state dict", size, tuple(sorted(_foreign(file, _LEGACY_PARTS))))
    return Weights(path, _kind(head, size), size)


def _kind(head: bytes, size: int) -> Kind:
    if not head:
        return "empty"
    if head.startswith(b"version https://git-lfs"):
        return "Git LFS pointer"
    if head.startswith(b"\x89HDF\r\n"):
        return "HDF5"
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"  # a JSON header behind its length
    if head[:1] == b"\x08" and head[1] < 32 and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42"):
        return "ONNX"  # ModelProto: field 1 is a small ir_version
    if head[:1] == b"\x80" and 2 <= head[1] <= 5:
        return "pickle"
    return "unknown"


def _archive(path: Path, file: IO[bytes], size: int) -> Weights:
    """A ZIP archive: TorchScript where it holds code (`code/`, `constants.pkl`), else a saved object."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
                return Weights(path, "TorchScript", size)
            pickles = [name for name in names if name.endswith("data.pkl")]
            if not pickles or archive.getinfo(pickles[0]).file_size > _MAX_PICKLE:
                return Weights(path, "unknown", size)
            with archive.open(pickles[0]) as data:
                return Weights(path, "state dict", size, tuple(sorted(_foreign(data, 1))))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return Weights(path, "unknown", size)


def _foreign(file: IO[bytes], pickles: int) -> set[str]:
    """Return what the next `pickles` in `file` would import, besides what tensors are made of."""
    found: set[str] = set()
    try:
        for _ in range(pickles):
            found |= set(_imports(file))
    except Exception:  # pickletools raises many kinds on bytes that are no pickle
        found.add("a pickle that is broken")
    return {name for name in found if not _HARMLESS.fullmatch(name)}


def _imports(file: IO[bytes]) -> Iterator[str]:
    """Walk one pickle's opcodes and yield each global that it names, as `module.name`."""
    texts: list[str] = []
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".", 1)
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:]) if len(texts) > 1 else "a name that is computed"
        elif opcode.name in _TEXTS:
            texts.append(str(argument))
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = texts[-1] if texts else ""
        elif opcode.name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(argument or 0)] = texts[-1] if texts else ""
        elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
            texts.append(memo.get(int(argument or 0), "?"))
        elif opcode.name.startswith("EXT"):
            yield "an extension registry"
