from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from node import bundles, cli
from node.bundles import DicomConfig
from node.errors import BundleError, Permanent
from node.skeleton import skeleton, write_skeleton

SPLEEN: dict[str, Any] = {
    "version": "0.5.3",
    "task": 'Segmentation of the "spleen"\nin CT',
    "image_classes": "single channel data, intensity scaled to [0, 1]",
    "network_data_format": {
        "inputs": {"image": {"modality": "CT", "num_channels": 1, "spatial_shape": [96, 96, 96]}},
        "outputs": {
            "pred": {
                "type": "image",
                "format": "segmentation",
                "num_channels": 3,
                "channel_def": {"0": "background", "1": "spleen", "2": "a lump, as yet unnamed"},
            }
        },
    },
}
FILM: dict[str, Any] = {
    "version": "1",
    "network_data_format": {
        "inputs": {"image": {"modality": "CR", "num_channels": 3, "spatial_shape": [224, 224]}},
        "outputs": {"pred": {"type": "probabilities", "format": "classes", "channel_def": {"0": "A", "1": "B"}}},
    },
}


def filled(text: str) -> DicomConfig:
    """The skeleton as a person would have filled it in."""
    for empty, value in (('code = ""', 'code = "1"'), ('meaning = ""', 'meaning = "M"'), ('rer = ""', 'rer = "X"')):
        text = text.replace(empty, value)
    return DicomConfig.model_validate(tomllib.loads(text))


def test_a_segmentation_has_its_segments_and_a_code_where_the_name_has_one() -> None:
    text, points = skeleton("spleen_ct_segmentation", SPLEEN)
    config = filled(text)
    assert (config.kind, config.dimensions, config.series) == ("segmentation", 3, {"Modality": "CT"})
    assert [(entry.value, entry.label) for entry in config.segment] == [(1, "spleen"), (2, "a lump, as yet unnamed")]
    assert (config.segment[0].type.code, config.segment[0].type.scheme) == ("78961009", "SCT")
    assert "suggested by the name alone: check it" in text
    assert config.segment[1].type.code == "1"
    assert len(config.label) <= 16
    assert any("[[segment]]" in point for point in points)


def test_a_classification_has_its_findings() -> None:
    text, points = skeleton("film", FILM)
    config = filled(text)
    assert (config.kind, config.dimensions) == ("classification", 2)
    assert [(entry.output, entry.label, entry.calibrated) for entry in config.finding] == [
        (0, "A", False),
        (1, "B", False),
    ]
    assert any("3 channels" in point for point in points)


@pytest.mark.parametrize("metadata", [{}, {"network_data_format": None}, {"network_data_format": {"outputs": {}}}])
def test_poor_metadata_still_gives_a_file_that_parses(metadata: dict[str, Any]) -> None:
    assert tomllib.loads(skeleton("x" * 99, metadata)[0])["dimensions"] == 3


def test_a_skeleton_does_not_load_until_it_is_filled_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configs = tmp_path / "spleen" / "configs"
    configs.mkdir(parents=True)
    (configs / "metadata.json").write_text(json.dumps(SPLEEN))
    (configs / "inference.json").write_text("{}")
    assert cli.run(["models", "new", str(tmp_path / "spleen")]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{configs / 'dicom.toml'}\n  to do: ")
    with pytest.raises(BundleError, match=r"dicom\.toml: manufacturer: "):
        bundles.load(tmp_path / "spleen")
    with pytest.raises(Permanent, match="exists already; nothing was written"):
        write_skeleton(tmp_path / "spleen")


def test_a_folder_without_metadata_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"metadata\.json: cannot be read"):
        write_skeleton(tmp_path)


def test_the_shipped_bundles_would_begin_like_that() -> None:
    for bundle in bundles.available():
        config = filled(skeleton(bundle.name, bundle.metadata)[0])
        assert (config.kind, config.dimensions) == (bundle.dicom.kind, bundle.dicom.dimensions)
        assert [one.value for one in config.segment] == [one.value for one in bundle.dicom.segment]
        assert [one.output for one in config.finding] == [one.output for one in bundle.dicom.finding]


def zoo_like(task: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Any]:
    formats = {"inputs": {"image": inputs}, "outputs": {"pred": outputs}}
    return {"version": "1", "task": task, "network_data_format": formats}


def test_several_series_are_channels_and_sigmoid_outputs_segments_by_channel() -> None:
    names = {"0": "T1c", "1": "T1", "2": "T2", "3": "FLAIR"}
    inputs = {"modality": "MR", "num_channels": 4, "spatial_shape": ["8*n", "8*n", "8*n"], "channel_def": names}
    outputs = {"type": "image", "format": "segmentation", "channel_def": {"0": "Tumor core", "1": "Whole tumor"}}
    after = '{"_target_": "Activationsd", "keys": "pred", "sigmoid": true}'
    config = filled(skeleton("brats", zoo_like("Tumors", inputs, outputs), after)[0])
    assert [entry.name for entry in config.channel] == list(names.values())
    assert [entry.channel for entry in config.segment] == [0, 1]
    text, points = skeleton("brats", zoo_like("Tumors", inputs, outputs), after + '{"_target_": "Lambdad"}')
    assert [entry.value for entry in filled(text).segment] == [1, 2]
    assert any("label map of its own" in point for point in points)


def test_a_detector_has_its_boxes_as_its_postprocessing_leaves_them() -> None:
    inputs = {"modality": "CT", "num_channels": 1, "spatial_shape": ["16*n", "16*n", "8*n"]}
    after = (
        '[{"_target_": "AffineBoxToWorldCoordinated", "affine_lps_to_ras": true}, '
        '{"_target_": "ConvertBoxModed", "src_mode": "xyzxyz", "dst_mode": "cccwhd"}]'
    )
    config = filled(
        skeleton("nodules", zoo_like("CT detection", inputs, {"type": "object", "format": "dict"}), after)[0]
    )
    assert config.boxes is not None
    assert (config.kind, config.boxes.space, config.boxes.mode) == ("detection", "lps", "cccwhd")
    assert [entry.value for entry in config.detection] == [0]


def test_a_flat_network_reads_slices_or_color() -> None:
    outputs = {"type": "image", "format": "segmentation", "channel_def": {"0": "background", "1": "tool"}}
    color = {"modality": "n/a", "num_channels": 3, "spatial_shape": [736, 480]}
    config = filled(skeleton("tools", zoo_like("Endoscopy", color, outputs))[0])
    assert (config.color, config.segment[0].measurements) == (True, ["area"])
    sliced = {"modality": "CT", "num_channels": 1, "spatial_shape": [96, 96]}
    config = filled(skeleton("flat", zoo_like("Slices", sliced, outputs))[0])
    assert (config.per_slice, config.dimensions, config.segment[0].measurements) == (True, 3, ["volume"])
    several = {"modality": "MR", "num_channels": 4, "spatial_shape": [128, 128]}
    config = filled(skeleton("flat", zoo_like("Slices", several, outputs))[0])
    assert (config.per_slice, config.dimensions, len(config.channel)) == (True, 3, 4)
    by_itself = skeleton("flat", zoo_like("Slices", sliced, outputs), inferer='{"_target_": "SliceInferer"}')[0]
    assert (filled(by_itself).per_slice, filled(by_itself).dimensions) == (False, 3)
