"""Model Bundles as the node sees them: identity, digest, and what `configs/dicom.toml` says in DICOM's words.

Nothing here runs a bundle: `$` expressions and weights belong to `workers/predict`. Bundles are found in the
folder that ships with wetread (`models/`) and in the one the admin names (`worker.models`).
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from node import uids, weights
from node.dicomconfig import Bounds as Bounds
from node.dicomconfig import Condition as Condition
from node.dicomconfig import DicomConfig as DicomConfig
from node.dicomconfig import ExplainEntry as ExplainEntry
from node.dicomconfig import FindingEntry as FindingEntry
from node.dicomconfig import GuardEntry as GuardEntry
from node.dicomconfig import SegmentEntry as SegmentEntry
from node.errors import BundleError

_CHECKOUT = Path(__file__).resolve().parent.parent / "models"
SHIPPED = _CHECKOUT if _CHECKOUT.is_dir() else Path(sys.prefix) / "share" / "wetread" / "models"
"""The bundles that come with wetread: beside the code in a checkout, under the prefix where installed."""


_VERSION = re.compile(
    r"v?([0-9]{1,9}!)?[0-9]{1,9}(\.[0-9]{1,9}){0,9}([-_.]?(alpha|a|beta|b|preview|pre|c|rc)[-_.]?[0-9]{0,9})?"
    r"(-[0-9]{1,9}|[-_.]?(post|rev|r)[-_.]?[0-9]{0,9})?([-_.]?dev[-_.]?[0-9]{0,9})?(\+[a-z0-9]{1,20}([-_.][a-z0-9]{1,20}){0,5})?",
    re.IGNORECASE | re.ASCII,
)
"""A version as PEP 440 has it; it goes into UIDs, logs and Evidence Documents."""
_IMPORTABLE = (".py", ".pyc", ".so", ".pyd")
_MOST_VALUES, _MOST_NESTED = 200_000, 100
_TOO_LARGE = f"more than {_MOST_VALUES} values, or more than {_MOST_NESTED} one within the other"
"""Of one configuration; those of public bundles have some hundreds, ten deep."""


class Bundle(BaseModel):
    """One version of one model: a MONAI Bundle folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: str
    folder: Path
    dicom: DicomConfig
    metadata: Mapping[str, Any]

    @property
    def title(self) -> str:
        """`name version`, as messages and listings show it."""
        return f"{self.name} {self.version}"

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every file that decides what the bundle says: configs, scripts, weights, and any other code."""
        return _digest(self.folder)

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights alone, as it is written into every object; of shards, over the index and each.

        Read once: a file that is exchanged afterwards is not what a warm network says.
        """
        total = hashlib.sha256()
        for path in weights.files(weights_path(self.folder)):
            total.update(path.read_bytes())
        return total.hexdigest()

    @property
    def device_uid(self) -> str:
        """The Device UID of this model: another digest, another UID (IHE AIR §6.5.3.1)."""
        return uids.derive_uid("device", self.name, self.version, self.digest)


def weights_path(folder: Path) -> Path:
    """Return the bundle's weights under `models/`: state dict, safetensors, the index of its shards, or TorchScript."""
    for name in ("model.pt", "model.safetensors", weights.INDEX, "model.ts"):
        if (folder / "models" / name).is_file():
            return folder / "models" / name
    raise BundleError(f"Bundle {folder.name} has no weights: models/model.pt or models/model.safetensors is missing.")


def load(folder: Path) -> Bundle:
    """Read one bundle folder; raises `BundleError` naming the file and key that is wrong."""
    _refuse_links(folder)
    metadata = read_metadata(folder)
    dicom = _parse(folder / "configs" / "dicom.toml", tomllib.loads)
    inference_config(folder)
    try:
        config = DicomConfig.model_validate(dicom)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        place = f"{folder / 'configs' / 'dicom.toml'}: {key}".removesuffix(": ")
        raise BundleError(f"{place}: {first['msg']}") from None
    if "version" not in metadata:
        raise BundleError(f"{folder / 'configs' / 'metadata.json'}: version: missing")
    if not _VERSION.fullmatch(version := str(metadata["version"])):
        expected = 'a version as in PEP 440 was expected, such as "1.2.0" or "2.0rc1"'
        raise BundleError(f"{folder / 'configs' / 'metadata.json'}: version: {version[:40]!r}: {expected}")
    return Bundle(name=folder.name, version=version, folder=folder.resolve(), dicom=config, metadata=metadata)


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the bundle's metadata.json; raises `BundleError`."""
    return _parse(folder / "configs" / "metadata.json", json.loads)


def inference_config(folder: Path) -> Path:
    """Return `configs/inference.json` of a bundle, or `inference.yaml` where it is written so; raises `BundleError`."""
    for name in ("inference.json", "inference.yaml", "inference.yml"):
        if (folder / "configs" / name).is_file():
            return folder / "configs" / name
    raise BundleError(
        f"Bundle {folder.name} has no configs/inference.json, and no inference.yaml. Write one from the configuration "
        "that its author runs: network_def, preprocessing, inferer, postprocessing."
    )


def read_config(path: Path) -> Any:
    """Return what a configuration of MONAI, JSON or YAML, says; nothing of it is run. Raises OSError, ValueError."""
    text = path.read_text(encoding="utf-8")
    try:
        found = json.loads(text) if path.suffix == ".json" else _from_yaml(text)
    except RecursionError:
        raise ValueError(_TOO_LARGE) from None
    _require_bounds(found)
    return found


def _from_yaml(text: str) -> Any:
    import yaml  # only some public bundles are written in it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _require_bounds(value: Any) -> None:
    """Raise ValueError for what would never be walked to its end: YAML may contain itself, or a billion of it."""
    waiting, seen = [(value, 0)], 0
    while waiting:
        item, depth = waiting.pop()
        seen += 1
        if seen > _MOST_VALUES or depth > _MOST_NESTED:
            raise ValueError(_TOO_LARGE)
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        waiting += [(one, depth + 1) for one in inner]


def find(name: str, *folders: Path) -> Bundle:
    """Return the bundle called `name` from the first of `folders` (then the shipped ones) that has it."""
    for parent in (*folders, SHIPPED):
        if (parent / name / "configs" / "metadata.json").is_file():
            return load(parent / name)
    known = ", ".join(names(*folders)) or "none"
    raise BundleError(f'There is no Model Bundle "{name}". Known bundles: {known}.')


def available(*folders: Path) -> tuple[Bundle, ...]:
    """Return every bundle that loads, of `folders` and of the shipped ones, by name; the first of a name wins.

    One that does not load is left out, so that it never keeps the others from reading; `find` says why.
    """
    found = []
    for folder in _places(*folders).values():
        with suppress(BundleError):
            found.append(load(folder))
    return tuple(found)


def names(*folders: Path) -> tuple[str, ...]:
    """Return the names of all bundles, those that do not load among them."""
    return tuple(_places(*folders))


def _places(*folders: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for parent in (*folders, SHIPPED):
        for dicom in parent.glob("*/configs/dicom.toml"):
            if (dicom.parent / "metadata.json").is_file():
                found.setdefault(dicom.parent.parent.name, dicom.parent.parent)
    return {name: found[name] for name in sorted(found)}


def _parse(path: Path, parser: Any) -> dict[str, Any]:
    if not path.is_file():  # a pipe would be waited for
        raise BundleError(f"{path}: cannot be read")
    try:
        parsed = parser(path.read_text(encoding="utf-8"))
    except OSError:
        raise BundleError(f"{path}: cannot be read") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: {error}") from None
    if not isinstance(parsed, dict):
        raise BundleError(f"{path}: a table was expected")
    return parsed


def importable_files(folder: Path) -> list[Path]:
    """Return what Python could import from the bundle, wherever it lies, in a fixed order.

    Bytecode caches are left out because the child that runs bundles never looks there (`workers/predict/scripts.py`).
    Other code in a folder `__pycache__` can be imported like that of any folder.
    """
    found = (path for path in folder.rglob("*") if path.suffix in _IMPORTABLE and path.is_file())
    return sorted(path for path in found if not _is_cache(path))


def _is_cache(path: Path) -> bool:
    """Python caches `net.py` as `__pycache__/net.cpython-311.pyc`: a name with a dot, which no module can have."""
    return path.parent.name == "__pycache__" and path.suffix == ".pyc" and "." in path.stem


def _refuse_links(folder: Path) -> None:
    """Raise `BundleError` for a linked folder, whose contents could change unseen."""
    for path in folder.rglob("*"):
        if path.is_symlink() and path.is_dir():
            raise BundleError(f"Bundle {folder.name}: {path} is a link to a folder; copy the folder into the bundle.")


def _digest(folder: Path) -> str:
    """Hash names and contents; raises `BundleError` for a linked folder or a file that cannot be read."""
    _refuse_links(folder)
    files = {path for part in ("configs", "scripts", "models") for path in (folder / part).rglob("*") if path.is_file()}
    files = {path for path in files if not _is_cache(path)}
    total = hashlib.sha256()
    for path in sorted(files | set(importable_files(folder))):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0")
        try:
            total.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise BundleError(f"Bundle {folder.name}: {path} cannot be read: {error.strerror}.") from None
    return total.hexdigest()
