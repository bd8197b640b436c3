"""The skeleton of `configs/dicom.toml`, from what a bundle's `metadata.json` says of its inputs and outputs.

What a person must decide is left empty, and an empty code does not load: a skeleton cannot be used by mistake.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node.bundles import read_metadata
from node.errors import Permanent

_COLORS = ("#e6604d", "#4d9de6", "#5cb85c", "#e6b84d", "#9b6fd0", "#4dc4c4", "#d06f9b", "#8a8a4d")
_MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR", "PT": "PT", "PET": "PT", "US": "US", "CR": "CR", "DX": "DX"}
_CATEGORY = '{code = "91723000", scheme = "SCT", meaning = "Anatomical Structure"}'
_NO_CODE = '{code = "", scheme = "SCT", meaning = ""}'
_BACKGROUND = ("background", "bg", "other")


def write_skeleton(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Write `configs/dicom.toml` below `folder`; return its path and what a person still has to fill in.

    Raises `Permanent` where there is one already, `BundleError` where metadata.json cannot be read.
    """
    path = folder / "configs" / "dicom.toml"
    metadata = read_metadata(folder)
    text, open_points = skeleton(folder.resolve().name, metadata)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise Permanent(f"{path} exists already; nothing was written. Remove it, or edit it.") from None
    return path, open_points


def skeleton(name: str, metadata: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return the text of dicom.toml and the open points."""
    formats = _mapping(metadata.get("network_data_format"))
    inputs, outputs = (_first(formats.get(key)) for key in ("inputs", "outputs"))
    segments = _is_segmentation(outputs)
    channels = _channels(outputs)
    head, points = _head(name, metadata, inputs, segments)
    if segments:
        parts = [_segment(value, label) for value, label in _labels(channels)]
    else:
        parts = [_finding(output, label) for output, label in channels]
    points.append(f"the code and meaning of each [[{'segment' if segments else 'finding'}]], from SNOMED CT or DCM")
    if not segments:
        points.append("the threshold of each [[finding]], chosen on validation patients, and whether it is calibrated")
    return head + "".join(parts), tuple(points)


def _head(name: str, metadata: Mapping[str, Any], inputs: Mapping[str, Any], segments: bool) -> tuple[str, list[str]]:
    shape = inputs.get("spatial_shape")
    dimensions = 2 if isinstance(shape, list) and len(shape) == 2 else 3
    modality = _MODALITIES.get(str(inputs.get("modality", "")).upper(), "")
    label = re.sub(r"[_-]+", " ", name).strip()[:16].strip().capitalize()
    points = ["manufacturer: who answers for this model", "[series]: which series it may read; be narrow"]
    if inputs.get("num_channels", 1) != 1:
        points.append(f"the network takes {inputs['num_channels']} channels; wetread hands over one gray channel")
    says = _line(metadata.get("image_classes", "")) or "nothing of them"
    lines = [
        f"# What the bundle reads, and what its outputs mean in DICOM. {_line(metadata.get('task', ''))}".rstrip(),
        "# A skeleton from metadata.json: fill in what is empty; docs/bundles.md explains the keys.",
        "",
        f"label = {_text(label)}",
        f"kind = {_text('segmentation' if segments else 'classification')}",
        f"dimensions = {dimensions}",
        'manufacturer = ""',
        "",
        f"# Conditions on the series; all must be met. The bundle says: {says}",
        "[series]",
        f"Modality = {_text(modality)}",
        '# BodyPartExamined = ["..."]' if dimensions == 2 else "# NumberOfSeriesRelatedInstances = {min = 20}",
        "",
    ]
    return "\n".join(lines), points


def _labels(channels: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Return (value in the label map, name): 0 is background, also where the network has no channel for it."""
    shift = 0 if channels[0][1].lower() in _BACKGROUND else 1
    return [(number + shift, label) for number, label in channels if number + shift > 0]


def _segment(value: int, label: str) -> str:
    color = _COLORS[(value - 1) % len(_COLORS)]
    return (
        f"\n[[segment]]\nvalue = {value}\nlabel = {_text(label[:64])}\ncategory = {_CATEGORY}\n"
        f'type = {_suggest(label)}\ncolor = "{color}"\nmeasurements = ["volume"]\n'
    )


def _finding(output: int, label: str) -> str:
    return (
        f"\n[[finding]]\noutput = {output}\nlabel = {_text(label[:64])}\ntype = {_suggest(label)}\n"
        "threshold = 0.5\ncalibrated = false\n"
    )


def _suggest(label: str) -> str:
    """Return the code that pydicom's dictionary of SNOMED CT has for the very name, else an empty one."""
    from pydicom.sr.codedict import codes

    try:
        found = getattr(codes.SCT, "".join(word.capitalize() for word in re.findall(r"[A-Za-z]+", label)))
    except AttributeError:
        return _NO_CODE
    code = f"code = {_text(found.value)}, scheme = {_text(found.scheme_designator)}, meaning = {_text(found.meaning)}"
    return f"{{{code}}}  # suggested by the name alone: check it"


def _is_segmentation(output: Mapping[str, Any]) -> bool:
    told = f"{output.get('type', '')} {output.get('format', '')}".lower()
    return "segmentation" in told or ("image" in told and "classification" not in told)


def _channels(output: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Return (channel, name), by number; names of a missing `channel_def` are the numbers."""
    named = _mapping(output.get("channel_def"))
    found = [(int(key), _line(value)) for key, value in named.items() if str(key).isdigit()]
    count = output.get("num_channels", 1)
    counted = range(count if isinstance(count, int) and 0 < count < 256 else 1)
    return sorted(found) or [(number, f"Output {number}") for number in counted]


def _first(value: Any) -> Mapping[str, Any]:
    return _mapping(next(iter(_mapping(value).values()), {}))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _line(value: Any) -> str:
    return " ".join(str(value).split())


def _text(value: str) -> str:
    """Return `value` as a TOML basic string; JSON's escapes are among TOML's."""
    return json.dumps(value, ensure_ascii=False)
