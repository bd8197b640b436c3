"""The skeleton of `configs/dicom.toml`, from what a bundle's `metadata.json` says of its inputs and outputs.

What a person must decide is left empty, and an empty code does not load: a skeleton cannot be used by mistake.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node.bundles import inference_config, read_config, read_metadata
from node.errors import BundleError, Permanent

_COLORS = ("#e6604d", "#4d9de6", "#5cb85c", "#e6b84d", "#9b6fd0", "#4dc4c4", "#d06f9b", "#8a8a4d")
_MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR", "PT": "PT", "PET": "PT", "US": "US", "CR": "CR", "DX": "DX"}
_CATEGORY = '{code = "91723000", scheme = "SCT", meaning = "Anatomical Structure"}'
_NO_CODE = '{code = "", scheme = "SCT", meaning = ""}'
_SLICED = ("CT", "MR", "PT")
_BACKGROUND = ("background", "bg", "other")


def write_skeleton(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Write `configs/dicom.toml` below `folder`; return its path and what a person still has to fill in.

    Raises `Permanent` where there is one already, `BundleError` where metadata.json cannot be read.
    """
    path = folder / "configs" / "dicom.toml"
    metadata = read_metadata(folder)
    text, open_points = skeleton(
        folder.resolve().name, metadata, *(_part(folder, i) for i in ("postprocessing", "inferer"))
    )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise Permanent(f"{path} exists already; nothing was written. Remove it, or edit it.") from None
    return path, open_points


def skeleton(name: str, metadata: Mapping[str, Any], after: str = "", inferer: str = "") -> tuple[str, tuple[str, ...]]:
    """Return the text of dicom.toml and the open points; `after` and `inferer` are what inference.json has, as text."""
    formats = _mapping(metadata.get("network_data_format"))
    inputs, outputs = (_first(formats.get(key)) for key in ("inputs", "outputs"))
    kind = _kind(outputs, metadata)
    table = {"segmentation": "segment", "classification": "finding", "detection": "detection"}[kind]
    head, points = _head(name, metadata, inputs, kind, takes_volumes="SliceInferer" in inferer)
    parts = [*_inputs(inputs, points), *_outputs(kind, _channels(outputs), inputs, after, points)]
    points.append(f"the code and meaning of each [[{table}]], from SNOMED CT or DCM")
    if kind != "segmentation":
        points.append(f"the threshold of each [[{table}]], chosen on validation patients, and whether it is calibrated")
    return head + "".join(parts), tuple(points)


def _part(folder: Path, name: str) -> str:
    """Return a part of inference.json as JSON text; nothing where there is none."""
    try:
        config = read_config(inference_config(folder))
        return json.dumps(config.get(name, ""), default=str)
    except (OSError, ValueError, AttributeError, BundleError):
        return ""


def _outputs(
    kind: str, channels: list[tuple[int, str]], inputs: Mapping[str, Any], after: str, points: list[str]
) -> list[str]:
    if kind == "classification":
        return [_finding(output, label) for output, label in channels]
    if kind == "detection":
        mode = '"xyxy"' if _is_flat(inputs) else '"xyzxyz"'
        space = "ras" if "AffineBoxToWorldCoordinate" in after else "image"
        if space == "ras" and '"affine_lps_to_ras": true' in after:
            space = "lps"
        if "dst_mode" in after:
            mode = (re.findall(r'"dst_mode": ("\w+")', after) or [mode])[-1]
        boxes = f'\n[boxes]  # as the postprocessing leaves them\nspace = "{space}"\nmode = {mode}\n'
        points.append("[boxes]: space and mode of the boxes after postprocessing, and the keys that hold them")
        return [*(_detection(value, label) for value, label in channels), boxes]
    if '"sigmoid": true' in after and '"argmax": true' not in after and "Lambda" not in after:
        return [_segment(channel, label, inputs, "channel") for channel, label in channels]
    if "Lambda" in after:
        points.append("the value of each [[segment]]: the postprocessing makes a label map of its own")
    return [_segment(value, label, inputs) for value, label in _labels(channels)]


def _inputs(inputs: Mapping[str, Any], points: list[str]) -> list[str]:
    """The series of each channel, where the network takes several and they are no colors."""
    count = inputs.get("num_channels", 1)
    if count == 1 or _is_color(inputs):
        return []
    points.append(f"[[channel]]: which series is which of the {count} channels, in the network's order")
    names = _channels(inputs)
    return [
        f'\n[[channel]]\nname = {_text(name[:32])}\n[channel.series]\nSeriesDescription = ""\n' for _, name in names
    ]


def _is_flat(inputs: Mapping[str, Any]) -> bool:
    shape = inputs.get("spatial_shape")
    return isinstance(shape, list) and len(shape) == 2


def _is_color(inputs: Mapping[str, Any]) -> bool:
    return _is_flat(inputs) and inputs.get("num_channels") == 3


def _modality(inputs: Mapping[str, Any]) -> str:
    return _MODALITIES.get(str(inputs.get("modality", "")).upper(), "")


def _dimensions(inputs: Mapping[str, Any]) -> int:
    """3 also for a flat network that reads a volume slice by slice."""
    is_sliced = _modality(inputs) in _SLICED and not _is_color(inputs)
    return 2 if _is_flat(inputs) and not is_sliced else 3


def _head(
    name: str, metadata: Mapping[str, Any], inputs: Mapping[str, Any], kind: str, takes_volumes: bool
) -> tuple[str, list[str]]:
    modality, dimensions = _modality(inputs), _dimensions(inputs)
    label = re.sub(r"[_-]+", " ", name).strip()[:16].strip().capitalize()
    points = ["manufacturer: who answers for this model", "[series]: which series it may read; be narrow"]
    per_slice = _is_flat(inputs) and dimensions == 3 and not takes_volumes
    if per_slice:
        points.append(
            "per_slice: this 2D network would read a series slice by slice; dimensions = 2 reads each by itself"
        )
    if _is_color(inputs):
        points.append("color: the network takes 3 channels, taken for red, green and blue")
    says = _line(metadata.get("image_classes", "")) or "nothing of them"
    lines = [
        f"# What the bundle reads, and what its outputs mean in DICOM. {_line(metadata.get('task', ''))}".rstrip(),
        "# A skeleton from metadata.json: fill in what is empty; docs/bundles.md explains the keys.",
        "",
        f"label = {_text(label)}",
        f"kind = {_text(kind)}",
        f"dimensions = {dimensions}",
        *(["per_slice = true"] if per_slice else []),
        *(["color = true"] if _is_color(inputs) else []),
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


def _segment(number: int, label: str, inputs: Mapping[str, Any], by: str = "value") -> str:
    color = _COLORS[(number - 1) % len(_COLORS)]
    measured = "area" if _dimensions(inputs) == 2 else "volume"
    threshold = "threshold = 0.5\n" if by == "channel" else ""
    return (
        f"\n[[segment]]\n{by} = {number}\n{threshold}label = {_text(label[:64])}\ncategory = {_CATEGORY}\n"
        f'type = {_suggest(label)}\ncolor = "{color}"\nmeasurements = ["{measured}"]\n'
    )


def _finding(output: int, label: str) -> str:
    return (
        f"\n[[finding]]\noutput = {output}\nlabel = {_text(label[:64])}\ntype = {_suggest(label)}\n"
        "threshold = 0.5\ncalibrated = false\n"
    )


def _detection(value: int, label: str) -> str:
    return (
        f"\n[[detection]]\nvalue = {value}\nlabel = {_text(label[:58])}\ntype = {_suggest(label)}\n"
        f'threshold = 0.5\ncalibrated = false\ncolor = "{_COLORS[value % len(_COLORS)]}"\n'
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


def _kind(output: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    told = f"{output.get('type', '')} {output.get('format', '')}".lower()
    if "object" in told or ("dict" in told and "detect" in str(metadata.get("task", "")).lower()):
        return "detection"
    segments = "segmentation" in told or ("image" in told and "classification" not in told)
    return "segmentation" if segments else "classification"


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
