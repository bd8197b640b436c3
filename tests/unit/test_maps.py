"""Parametric Maps of volumes: what the network said at each voxel, on the source grid, for routes that ask."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest

from node.clock import to_datetime
from node.errors import Permanent
from node.findings import Volume
from tests import readings
from tests.unit import zoo
from tests.unit.phantom import OBLIQUE, body, film, save, segmenter, stack
from tests.unit.test_pipeline import request
from workers.load.series import load
from workers.pipeline import read
from workers.predict.maps import explain_volumes
from workers.predict.network import Network
from workers.predict.reading import read as predict
from workers.report import evidence, gate


@pytest.mark.parametrize(("cosines", "pixdim"), [((1, 0, 0, 0, 1, 0), 1.0), (OBLIQUE, 1.0)])
def test_a_route_gets_how_strongly_each_segment_was_spoken_for(
    cosines: tuple[float, ...], pixdim: float, tmp_path: Path
) -> None:
    files = save(stack(body(), cosines=cosines), tmp_path / "in")
    asked = request(
        segmenter(tmp_path / "phantom", pixdim=pixdim), files, tmp_path / "out", results=("SR", "SEG", "PM")
    )
    outcome = read(asked)
    assert (outcome.kind, outcome.reason) == ("reported", "")
    assert [document["kind"] for document in outcome.documents] == ["SEG", "PM", "SR"]
    path = next(Path(document["file"]) for document in outcome.documents if document["kind"] == "PM")
    ds = pydicom.dcmread(path)
    values = np.frombuffer(ds.FloatPixelData, np.float32).reshape(ds.NumberOfFrames, ds.Rows, ds.Columns)
    by_uid = {pydicom.dcmread(file).SOPInstanceUID: pydicom.dcmread(file) for file in files}
    seen = 0
    for frame, groups in zip(values, ds.PerFrameFunctionalGroupsSequence, strict=True):
        source = by_uid[groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert groups.PlanePositionSequence[0].ImagePositionPatient == source.ImagePositionPatient
        assert np.array_equal(frame > 0.5, source.pixel_array > 500)
        seen += int((frame > 0.5).sum())
    assert seen == int((body() > 500).sum())
    assert outcome.figures["map_s"] > 0
    read(dataclasses.replace(asked, out=str(tmp_path / "again")))
    assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_map_is_made_of_what_the_network_said_in_the_reading(dimensions: int, tmp_path: Path) -> None:
    [volume] = load(save(stack(body()), tmp_path / "in"), 3)
    bundle = segmenter(tmp_path / "phantom", dimensions)
    if dimensions == 2:
        per_slice = bundle.dicom.model_copy(update={"dimensions": 3, "per_slice": True})
        bundle = bundle.model_copy(update={"dicom": per_slice})
    network, runs = Network(bundle, "cpu", bundle.digest), [0]
    network._network.register_forward_hook(lambda *_: runs.append(runs.pop() + 1))
    found, each = [], []
    for wanted in (True, False):
        with network.keeping(wanted):
            reading = predict(network, [volume], bundle, to_datetime(0))
            alone = runs[0]
            found.append(explain_volumes(network, [volume], bundle, reading))
            each.append(runs[0] - alone)
            assert not network._kept, "each answer is let go when it has been used"
        runs[0] = 0
    assert each == [0, alone], "what was not kept is asked for again"
    for kept, asked in zip(found[0].maps, found[1].maps, strict=True):
        assert np.array_equal(kept.values, asked.values)
        assert kept.values.max() > 0.5
    assert network._kept is None


def test_the_real_world_values_are_the_stored_ones(tmp_path: Path) -> None:
    files = save(stack(body()), tmp_path / "in")
    outcome = read(request(segmenter(tmp_path / "phantom"), files, tmp_path / "out", results=("PM",)))
    [document] = outcome.documents
    image = hd.imread(document["file"])
    assert image.SOPClassUID == "1.2.840.10008.5.1.4.1.1.30"
    stored, real = (image.get_frames(apply_real_world_transform=flag) for flag in (False, True))
    assert np.array_equal(stored, real)


def test_segments_that_overlap_have_a_map_each(tmp_path: Path) -> None:
    paths = save(stack(body()), tmp_path / "in")
    [volume] = load(paths, 3)
    bundle = zoo.multi_label(tmp_path / "zoo")
    network = Network(bundle, "cpu", bundle.digest)
    reading = explain_volumes(network, [volume], bundle, predict(network, [volume], bundle, to_datetime(0)))
    [found] = reading.segmentations
    for one, segment, entry in zip(reading.maps, found.segments, bundle.dicom.segment, strict=True):
        assert one.label == segment.label
        assert np.array_equal(one.values >= (entry.threshold or 0), found.mask(segment))


def test_a_finding_of_a_volume_has_its_saliency_and_a_film_has_no_map(tmp_path: Path) -> None:
    paths = save(stack(body()), tmp_path / "in")
    [volume] = load(paths, 3)
    finding = readings.explained(readings.finding(volume), volume)
    bundle = zoo.multi_label(tmp_path / "zoo")
    network = Network(bundle, "cpu", bundle.digest)
    classified = bundle.model_copy(update={"dicom": bundle.dicom.model_copy(update={"kind": "classification"})})
    reading = dataclasses.replace(readings.volume_reading(volume, body() > 500), findings=(finding,), segmentations=())
    reading = explain_volumes(network, [volume], classified, reading)
    assert finding.saliency is not None
    [one] = reading.maps
    assert one.values is finding.saliency.values
    context = readings.context(paths, results=("PM", "SR"))
    documents = evidence.build(reading, [volume], context)
    gate.check(documents, reading, [volume], context)
    [flat] = load(save([film(body()[5])], tmp_path / "film"), 2)
    assert isinstance(flat, Volume)
    assert explain_volumes(network, [flat], bundle, reading).maps == reading.maps


@pytest.mark.parametrize(
    "steps",
    [
        [zoo.SIGMOID, zoo.INVERT, {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: (x[[0]] > 0.5).float()"}],
        [
            zoo.INVERT,
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: torch.where(x > 0, 2, 0)"},
        ],
    ],
    ids=["of channels", "of classes"],
)
def test_a_label_that_is_not_the_class_of_its_number_has_no_map(steps: list[Any], tmp_path: Path) -> None:
    [volume] = load(save(stack(body()), tmp_path / "in"), 3)
    bundle = segmenter(tmp_path / "zoo", imports=["$import torch"], postprocessing=zoo.steps(*steps))
    network = Network(bundle, "cpu", bundle.digest)
    reading = predict(network, [volume], bundle, to_datetime(0))
    assert any(not segment.is_empty for segment in reading.segmentations[0].segments)
    with pytest.raises(Permanent, match=r"makes labels of its own: nobody knows which class .* Remove PM"):
        explain_volumes(network, [volume], bundle, reading)
