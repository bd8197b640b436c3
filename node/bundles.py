"""Model Bundles as the node sees them: identity, digest, and what `configs/dicom.toml` says in DICOM's words.

Nothing here runs a bundle: `$` expressions and weights belong to `workers/predict`. Bundles are found in the
folder that ships with wetread (`models/`) and in the one the admin names (`worker.models`).
"""

from __future__ import annotations

import hashlib
import json
import sys
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from node import uids
from node.codes import Code
from node.errors import BundleError

_Number = Annotated[float, Field(strict=True)]
Condition = str | _Number | list[str | _Number] | dict[str, Any]
"""`"text*"`, a number, a list of alternatives, or `{min=, max=, not=, absent=}`; see `node/route/matching.py`."""

_CHECKOUT = Path(__file__).resolve().parent.parent / "models"
SHIPPED = _CHECKOUT if _CHECKOUT.is_dir() else Path(sys.prefix) / "share" / "wetread" / "models"
"""The bundles that come with wetread: beside the code in a checkout, under the prefix where installed."""


_IMPORTABLE = (".py", ".pyc", ".so", ".pyd")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CodeEntry(_Strict):
    """A coded entry in dicom.toml."""

    code: str = Field(min_length=1)
    scheme: str = Field(min_length=1)
    meaning: str = Field(min_length=1, max_length=64)

    def to_code(self) -> Code:
        """Return the entry as a `Code`."""
        return Code(self.code, self.scheme, self.meaning)


class SegmentEntry(_Strict):
    """One label of a segmentation bundle and what it means (PS3.3 §C.8.20.2)."""

    value: int = Field(ge=1, le=255)
    label: str = Field(max_length=64)
    category: CodeEntry
    type: CodeEntry
    type_modifier: CodeEntry | None = None
    color: str = Field(pattern="^#[0-9a-fA-F]{6}$")
    measurements: list[Literal["volume", "area"]] = []


class FindingEntry(_Strict):
    """One output of a classification bundle and what it means (TID 1501)."""

    output: int = Field(ge=0)
    label: str = Field(max_length=64)
    type: CodeEntry
    site: CodeEntry | None = None
    threshold: float = Field(ge=0, le=1)
    calibrated: bool


class ExplainEntry(_Strict):
    """How a classification bundle is asked where it looked: Grad-CAM on one layer, or occlusion of any network."""

    method: Literal["grad-cam", "occlusion"] = "grad-cam"
    layer: str = ""

    @model_validator(mode="after")
    def _has_its_layer(self) -> ExplainEntry:
        if (self.method == "grad-cam") != bool(self.layer):
            raise ValueError('method "grad-cam" needs a layer of the network, and "occlusion" takes none')
        return self


class DicomConfig(_Strict):
    """`configs/dicom.toml`: which series the bundle reads and what its outputs mean."""

    label: str = Field(max_length=16)
    kind: Literal["classification", "segmentation"]
    dimensions: Literal[2, 3]
    manufacturer: str = Field(min_length=1, max_length=64)
    series: dict[str, Condition]
    prefer: dict[str, str | list[str]] = {}
    segment: list[SegmentEntry] = []
    finding: list[FindingEntry] = []
    explain: ExplainEntry | None = None

    @model_validator(mode="after")
    def _explains_findings(self) -> DicomConfig:
        if self.explain is not None and self.kind != "classification":
            raise ValueError("[explain] is for classifications; a segmentation shows what it found by itself")
        return self


class Bundle(_Strict):
    """One version of one model: a MONAI Bundle folder."""

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

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file alone, as it is written into every object."""
        return hashlib.sha256(weights_path(self.folder).read_bytes()).hexdigest()

    @property
    def device_uid(self) -> str:
        """The Device UID of this model: another digest, another UID (IHE AIR §6.5.3.1)."""
        return uids.derive_uid("device", self.name, self.version, self.digest)


def weights_path(folder: Path) -> Path:
    """Return the bundle's weights: TorchScript, state dict or safetensors under `models/`."""
    for name in ("model.pt", "model.safetensors", "model.ts"):
        if (folder / "models" / name).is_file():
            return folder / "models" / name
    raise BundleError(f"Bundle {folder.name} has no weights: models/model.pt or models/model.safetensors is missing.")


def load(folder: Path) -> Bundle:
    """Read one bundle folder; raises `BundleError` naming the file and key that is wrong."""
    metadata = read_metadata(folder)
    dicom = _parse(folder / "configs" / "dicom.toml", tomllib.loads)
    if not (folder / "configs" / "inference.json").is_file():
        raise BundleError(f"Bundle {folder.name} has no configs/inference.json.")
    try:
        config = DicomConfig.model_validate(dicom)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        place = f"{folder / 'configs' / 'dicom.toml'}: {key}".removesuffix(": ")
        raise BundleError(f"{place}: {first['msg']}") from None
    if "version" not in metadata:
        raise BundleError(f"{folder / 'configs' / 'metadata.json'}: version: missing")
    return Bundle(
        name=folder.name, version=str(metadata["version"]), folder=folder.resolve(), dicom=config, metadata=metadata
    )


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the bundle's metadata.json; raises `BundleError`."""
    return _parse(folder / "configs" / "metadata.json", json.loads)


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
    try:
        parsed = parser(path.read_text(encoding="utf-8"))
    except OSError:
        raise BundleError(f"{path}: cannot be read") from None
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from None
    if not isinstance(parsed, dict):
        raise BundleError(f"{path}: a table was expected")
    return parsed


def importable_files(folder: Path) -> list[Path]:
    """Return what Python could import from the bundle, wherever it lies, in a fixed order.

    `__pycache__` is left out because the child that runs bundles never looks there (`workers/predict/scripts.py`).
    """
    found = (path for path in folder.rglob("*") if path.suffix in _IMPORTABLE and path.is_file())
    return sorted(path for path in found if "__pycache__" not in path.relative_to(folder).parts)


def _digest(folder: Path) -> str:
    """Hash names and contents; raises `BundleError` for a linked folder, whose contents could change unseen."""
    for path in folder.rglob("*"):
        if path.is_symlink() and path.is_dir():
            raise BundleError(f"Bundle {folder.name}: {path} is a link to a folder; copy the folder into the bundle.")
    files = {path for part in ("configs", "scripts", "models") for path in (folder / part).rglob("*") if path.is_file()}
    files = {path for path in files if "__pycache__" not in path.relative_to(folder).parts}
    total = hashlib.sha256()
    for path in sorted(files | set(importable_files(folder))):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
