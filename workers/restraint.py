"""Between loading and predicting: may the bundle read these images, or are they not what it was made for?

Headers, grid, values and looks are compared with the `[guard]` of the bundle's dicom.toml. It never changes an image,
and never sees what the bundle would say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from node.bundles import Bounds, Bundle, GuardEntry
from node.errors import BundleError, Unsuitable
from node.findings import Declined, Volume
from node.route import matching
from node.study import AttributeValue, read_instance

if TYPE_CHECKING:
    from workers.predict.guard import Guard

Decline = Literal["silent", "report", "never"]
"""What a route does with an image that a bundle declines: say so in the job, in a report too, or read it anyway."""
UNLIKE = "it is unlike the images that the model was trained on, most of all in {}"
_WARM_GUARDS = 4


@dataclass(frozen=True)
class Verdict:
    """`read`: what the bundle reads; `declined`: the others, where a report tells of them; `remarks` for it."""

    read: tuple[Volume, ...]
    declined: tuple[Declined, ...] = ()
    remarks: tuple[str, ...] = ()


def judge(files: Sequence[Path], volumes: Sequence[Volume], bundle: Bundle, decline: Decline) -> Verdict:
    """Return which of `volumes` (read from `files`) the bundle reads, and what is to be said of the others.

    Raises `Unsuitable` where it reads none and no report is to say so, `BundleError` where its guard does not load.
    """
    found = declined(files, volumes, bundle)
    if not found:
        return Verdict(tuple(volumes))
    if decline == "never":
        return Verdict(tuple(volumes), (), (f"Read all the same, as the route says, although {told(found)}",))
    gone = {one.source for one in found}
    read = tuple(volume for volume in volumes if volume.sources[middle(volume)] not in gone)
    if not read and decline == "silent":
        raise Unsuitable(told(found))
    which = f": {len(found)} of {len(volumes)} images" if read else ""
    remark = f"Not analyzed by {bundle.title}{which}, because {told(found)}"
    return Verdict(read, found if decline == "report" else (), (remark,))


def declined(files: Sequence[Path], volumes: Sequence[Volume], bundle: Bundle) -> tuple[Declined, ...]:
    """Return which of `volumes` the bundle must not read, each named by its middle image; none without `[guard]`."""
    entry = bundle.dicom.guard
    if entry is None:
        return ()
    headers = {i.sop_instance_uid: i.attributes for i in map(read_instance, files)} if entry.header else {}
    guard = _warm(bundle) if entry.file else None
    found = (_judge(volume, entry, headers, guard) for volume in volumes)
    return tuple(one for one in found if one is not None)


def told(found: Sequence[Declined]) -> str:
    """Return the reasons of what was declined in words, each once."""
    return "; ".join(dict.fromkeys(map(reason, found)))


def reason(one: Declined) -> str:
    """Return the reason with the score, for people."""
    score = "" if one.score is None else f" (unlikeness {one.score:.2f}, limit 1)"
    return f"{one.reason}{score}"


def middle(volume: Volume) -> int:
    """Return the slice that stands for a volume."""
    return len(volume.sources) // 2


@lru_cache(maxsize=_WARM_GUARDS)
def _load(bundle_folder: str, digest: str) -> Guard:
    from node.bundles import load
    from workers.predict.guard import Guard

    found = load(Path(bundle_folder))
    if found.digest != digest:  # a network that is warm already says nothing of the guard's file
        raise BundleError(
            f"Bundle {found.title} has changed while it was in use. Its guard was not loaded; restore it."
        )
    return Guard(found)


def _warm(bundle: Bundle) -> Guard:
    return _load(str(bundle.folder), bundle.digest)


def _judge(
    volume: Volume, entry: GuardEntry, headers: Mapping[str, Mapping[str, AttributeValue]], guard: Guard | None
) -> Declined | None:
    reasons = list(_header(volume, entry, headers))
    reasons += outside(volume, entry)
    look = guard.look(volume) if guard else None
    if look is not None and not look.score <= 1:
        reasons.append(UNLIKE.format(look.unusual))
    if not reasons:
        return None
    return Declined(volume.sources[middle(volume)], "; ".join(reasons), look.score if look else None)


def _header(volume: Volume, entry: GuardEntry, headers: Mapping[str, Mapping[str, AttributeValue]]) -> Iterator[str]:
    attributes = headers.get(volume.sources[middle(volume)].sop_instance_uid, {})
    match = matching.matches(attributes, entry.header)
    if not match.ok:
        yield from match.reasons


def outside(volume: Volume, entry: GuardEntry) -> list[str]:
    """Return how the grid and the values of `volume` break the bounds of `entry`, in words."""
    return [*_bounds(volume, entry)]


def _bounds(volume: Volume, entry: GuardEntry) -> Iterator[str]:
    if volume.spacing_mm is not None:
        axes = volume.spacing_mm[1:] if len(volume.pixels) == 1 else volume.spacing_mm
        extents = [n * mm for n, mm in zip(volume.pixels.shape[-len(axes) :], axes, strict=True)]
        yield from _outside("its spacing", axes, entry.spacing_mm, " mm")
        yield from _outside("its extent", extents, entry.extent_mm, " mm")
    samples = volume.pixels.reshape(-1)[:: max(volume.pixels.size >> 18, 1)]
    yield from _outside("its intensity", np.percentile(samples, [1, 99]).tolist(), entry.intensity, "")
    for limit, name in ((volume.pixels.min(), "lower"), (volume.pixels.max(), "upper")):
        share = float((samples == limit).mean())
        if share > entry.clipped:
            yield f"{share:.0%} of its pixels lie at the {name} limit: it is empty or clipped"


def _outside(what: str, values: Sequence[float], bounds: Bounds, unit: str) -> Iterator[str]:
    low, high = min(values), max(values)
    if low < bounds.min:
        yield f"{what} of {low:.3g}{unit} is below {bounds.min:g}{unit}"
    if high > bounds.max:
        yield f"{what} of {high:.3g}{unit} is above {bounds.max:g}{unit}"
