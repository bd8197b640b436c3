"""The best series for a bundle: which images of a study a Model Bundle reads, and why it leaves each other one.

Only images are candidates: other SOP classes, localizers and derived Secondary Captures (masks, screenshots,
our own key images) never are. A bundle with `dimensions = 2` reads every image that meets the conditions; one with
`dimensions = 3` reads one series of the study, the best by `prefer`; one with channels a series for each of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pydicom.uid import UID

from node.bundles import Bundle
from node.dicomconfig import ChannelEntry, Preferences
from node.route import matching
from node.settings import Route
from node.study import AttributeValue, Instance, Series

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(frozen=True)
class Choice:
    """One series: whether the bundle reads it, which of its instances, and the reasons in words.

    Of a bundle with channels the series of the first stands for all: `instances` are theirs, in the order of channels.
    """

    series: Series
    chosen: bool
    reasons: tuple[str, ...]
    instances: tuple[Instance, ...] = ()


@dataclass(frozen=True)
class _Rank:
    """One criterion of preference: smaller is better; `words` says what the series has."""

    value: float | str
    words: str


def select(series: Sequence[Series], bundle: Bundle, route: Route) -> list[Choice]:
    """Return every series of one study with the decision for `bundle`; raises `Permanent` on unknown keywords."""
    choices = [_candidate(one, bundle, route) for one in series]
    if bundle.dicom.channel:
        return _together(choices, bundle)
    if bundle.dicom.dimensions == 2:
        return choices
    return _best_only(choices, bundle)


def unreadable(instance: Instance) -> str:
    """Say why an instance can be no input of any network, or nothing when it can."""
    if not _is_image_class(instance.sop_class_uid):
        return f"{_class_name(instance.sop_class_uid)} is not an image that a network reads"
    image_type = [str(v).upper() for v in matching.values(instance.attributes.get("ImageType"))]
    if any("LOCALIZER" in v for v in image_type):
        return "it is a localizer"
    if instance.sop_class_uid.startswith(_SECONDARY_CAPTURE) and image_type[:1] == ["DERIVED"]:
        return "it is a derived Secondary Capture, not an acquired image"
    if "Rows" not in instance.attributes or "Columns" not in instance.attributes:
        return "it has no pixel matrix"
    return ""


def _candidate(series: Series, bundle: Bundle, route: Route) -> Choice:
    faults = [unreadable(instance) for instance in series.instances]
    images = tuple(i for i, fault in zip(series.instances, faults, strict=True) if not fault)
    if not images:
        return Choice(series, False, _unique(faults))
    if bundle.dicom.dimensions == 2:
        return _films(series, images, bundle, route)
    match = _meets(_of(series, images).attributes, bundle, route)
    return Choice(series, match.ok, match.reasons, images if match.ok else ())


def _films(series: Series, images: tuple[Instance, ...], bundle: Bundle, route: Route) -> Choice:
    """Decide film by film: one radiography series often holds a frontal and a lateral view."""
    count = {"NumberOfSeriesRelatedInstances": float(len(images))}
    results = [(image, _meets({**image.attributes, **count}, bundle, route)) for image in images]
    wanted = tuple(image for image, match in results if match.ok)
    reasons = _unique(reason for _, match in results if match.ok == bool(wanted) for reason in match.reasons)
    if wanted and len(wanted) < len(images):
        left = _unique(reason for _, match in results if not match.ok for reason in match.reasons)
        reasons += (f"{len(images) - len(wanted)} of {len(images)} images are left out: {'; '.join(left)}",)
    return Choice(series, bool(wanted), reasons, wanted)


def _of(series: Series, instances: tuple[Instance, ...]) -> Series:
    """Return the series as if it held these instances only."""
    return replace(series, instances=instances)


def _meets(attributes: Mapping[str, AttributeValue], bundle: Bundle, route: Route) -> matching.Match:
    """Match the bundle's conditions and the route's; a route narrows a bundle and never widens it."""
    by_bundle = matching.matches(attributes, bundle.dicom.series)
    by_route = matching.matches(attributes, route.series)
    both = [m for m in (by_bundle, by_route) if not m.ok] or [by_bundle, by_route]
    reasons = _unique(r for m in both for r in m.reasons)
    return matching.Match(by_bundle.ok and by_route.ok, reasons or ("no condition is made on its attributes",))


def _best_only(choices: list[Choice], bundle: Bundle) -> list[Choice]:
    ranked = sorted(
        (choice for choice in choices if choice.chosen),
        key=lambda c: [rank.value for rank in _ranks(c, bundle.dicom.prefer)],
    )
    if len(ranked) < 2:
        return choices
    best = ranked[0]
    return [c if c is best or not c.chosen else _runner_up(c, best, bundle) for c in choices]


def _together(choices: list[Choice], bundle: Bundle) -> list[Choice]:
    """Give each channel a series of its own; the channel that the fewest series fit chooses first."""
    entries = bundle.dicom.channel
    fitting = {entry.name: [choice for choice in choices if _fits(choice, entry)] for entry in entries}
    taken: dict[str, Choice] = {}
    for entry in sorted(entries, key=lambda entry: len(fitting[entry.name])):
        free = [choice for choice in fitting[entry.name] if choice not in taken.values()]
        if not free:
            reason = f"channel {entry.name} has no series that meets its conditions on {', '.join(entry.series)}"
            return [Choice(c.series, False, (reason,)) if c.chosen else c for c in choices]
        prefer = entry.prefer or bundle.dicom.prefer
        taken[entry.name] = min(free, key=lambda choice: [rank.value for rank in _ranks(choice, prefer)])
    channels = {entry.name: taken[entry.name] for entry in entries}
    return [_as_channel(choice, channels) if choice.chosen else choice for choice in choices]


def _fits(choice: Choice, entry: ChannelEntry) -> bool:
    attributes = _of(choice.series, choice.instances).attributes if choice.chosen else {}
    return choice.chosen and matching.matches(attributes, entry.series).ok


def _as_channel(choice: Choice, channels: Mapping[str, Choice]) -> Choice:
    names = [name for name, one in channels.items() if one is choice]
    first = next(iter(channels.values()))
    if choice is first:
        reasons = tuple(f"channel {name} is series {one.series.series_instance_uid}" for name, one in channels.items())
        return Choice(choice.series, True, reasons, tuple(i for one in channels.values() for i in one.instances))
    if names:
        return Choice(
            choice.series, False, (f"it is read as channel {names[0]} with {first.series.series_instance_uid}",)
        )
    return Choice(choice.series, False, ("no channel needs it",))


def _runner_up(choice: Choice, best: Choice, bundle: Bundle) -> Choice:
    """Turn a series that also matched into one left out, naming the criterion that decided."""
    prefer = bundle.dicom.prefer
    pairs = zip(_ranks(best, prefer), _ranks(choice, prefer), strict=True)
    better, worse = next(pair for pair in pairs if pair[0].value != pair[1].value)
    reason = f"series {best.series.series_instance_uid} is preferred: {better.words}, here {worse.words}"
    return Choice(choice.series, False, (reason,))


def _ranks(choice: Choice, prefer: Preferences) -> list[_Rank]:
    """Return the criteria in order: the bundle's `prefer`, most instances, thinnest slices, Series Instance UID."""
    attributes = _of(choice.series, choice.instances).attributes
    ranks = [_preference(attributes, keyword, wanted) for keyword, wanted in prefer.items()]
    count = len(choice.instances)
    thickness = next((v for v in matching.values(attributes.get("SliceThickness")) if isinstance(v, float)), math.inf)
    uid = choice.series.series_instance_uid
    return [*ranks, _Rank(-count, f"{count} images"), _Rank(thickness, f"slices of {thickness:g} mm"), _Rank(uid, uid)]


def _preference(attributes: Mapping[str, AttributeValue], keyword: str, wanted: str | list[str]) -> _Rank:
    present = matching.values(attributes.get(keyword))
    words = f"{keyword} {chr(92).join(matching.show(v) for v in present) or 'absent'}"
    if wanted in ("highest", "lowest"):
        numbers = [v for v in present if isinstance(v, float)]
        if not numbers:
            return _Rank(math.inf, words)
        return _Rank(-max(numbers) if wanted == "highest" else min(numbers), words)
    order = [wanted] if isinstance(wanted, str) else wanted
    places = [place for place, one in enumerate(order) if any(matching.equals(v, one) for v in present)]
    return _Rank(float(min(places, default=len(order))), words)


def _is_image_class(sop_class_uid: str) -> bool:
    """Say whether PS3.4 §B.5 names the class an image; RT images and video are no radiographs or volumes."""
    name = UID(sop_class_uid).name
    if "RT" in name.split() or name.startswith("Video"):
        return False
    return "Image Storage" in name or name == "Enhanced US Volume Storage"


def _class_name(sop_class_uid: str) -> str:
    name = UID(sop_class_uid).name
    return name.removesuffix(" Storage") if name != sop_class_uid else f"SOP class {sop_class_uid}"


def _unique(reasons: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(reasons))
