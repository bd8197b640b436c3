"""Which Model Bundles may run here: those whose digest a person has pinned, by name, after seeing what they run.

`worker.trusted` names the file of pins, beside `wetread.toml`: where the configuration is, and not where the node
writes, so that a node that was taken over cannot trust something by itself. The shipped bundles have their pins in
`models/trusted.toml`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, RootModel, StringConstraints

from node import bundles
from node.bundles import SHIPPED, Bundle
from node.configfile import read_model
from node.errors import BundleError
from node.settings import Settings

Standing = Literal["trusted", "not trusted", "changed"]

SHIPPED_PINS = SHIPPED / "trusted.toml"
_HEAD = (
    "# The Model Bundles that may run here, by name, version and the digest of their files.\n"
    "# Written by `wetread models trust`; a bundle whose files have changed since is refused.\n"
)


class Pin(BaseModel):
    """One bundle as it was when it was trusted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    digest: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class Pins(RootModel[dict[str, Pin]]):
    """A file of pins: one table per bundle."""


def read_pins(file: Path) -> dict[str, Pin]:
    """Return the pins in `file`, none where there is no file; raises `ConfigError` where it is not one of pins."""
    return dict(read_model(file, Pins)[0].root) if file.exists() else {}


def pinned(settings: Settings) -> frozenset[str]:
    """Return the names that have a pin: such a bundle was here once, and any other name is a typing error."""
    return frozenset(name for file in (settings.worker.trusted, SHIPPED_PINS) for name in read_pins(file))


def standing(bundle: Bundle, settings: Settings) -> Standing:
    """Say whether `bundle`, as it is on disk now, is the one that was pinned."""
    pins = [read_pins(file).get(bundle.name) for file in (settings.worker.trusted, SHIPPED_PINS)]
    known = [pin.digest for pin in pins if pin is not None]
    if bundle.digest in known:
        return "trusted"
    return "changed" if known else "not trusted"


def require(bundle: Bundle, settings: Settings) -> Bundle:
    """Return `bundle` where it is trusted; raises `BundleError` with the remedy where it is not, or has changed."""
    found = standing(bundle, settings)
    if found == "changed":
        raise BundleError(
            f"Bundle {bundle.title} in {bundle.folder} has changed since it was trusted: its digest is now "
            f"{bundle.digest[:12]}. It is not run. Restore its files, or look at what they run now and trust them: "
            f"wetread models trust {bundle.name}"
        )
    if found == "not trusted":
        raise BundleError(
            f"Bundle {bundle.title} in {bundle.folder} is not trusted, and a bundle is code. It is not run. "
            f"See what it would run, and trust it: wetread models trust {bundle.name}"
        )
    return bundle


def find(name: str, settings: Settings) -> Bundle:
    """Return the trusted bundle called `name`, the admin's own before the shipped one; raises `BundleError`."""
    return require(bundles.find(name, *settings.worker.folders), settings)


def pin(found: Iterable[Bundle], file: Path) -> None:
    """Write the digests of `found` into `file`, whole or not at all, beside the pins that are there."""
    pins = read_pins(file) | {bundle.name: Pin(version=bundle.version, digest=bundle.digest) for bundle in found}
    _write(file, pins)


def pin_shipped() -> tuple[Bundle, ...]:
    """Write the pins of all shipped bundles anew and return them; for those who make a release."""
    found = bundles.available()
    _write(SHIPPED_PINS, {bundle.name: Pin(version=bundle.version, digest=bundle.digest) for bundle in found})
    return found


def _write(file: Path, pins: dict[str, Pin]) -> None:
    tables = [
        f"\n[{json.dumps(name)}]\nversion = {json.dumps(pin.version)}\ndigest = {json.dumps(pin.digest)}\n"
        for name, pin in sorted(pins.items())
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(_HEAD + "".join(tables))
            out.flush()
            os.fchmod(out.fileno(), 0o644)  # the node's account reads what the admin's has written
            os.fsync(out.fileno())
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
