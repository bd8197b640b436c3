"""Several series as channels of one input: chosen, verified, brought onto one grid, and named in what is written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from node import cli, trust
from node.bundles import Bundle
from node.clock import to_datetime
from node.errors import Unsuitable
from node.findings import Source, Volume
from node.route.selection import Choice, select
from node.settings import Route
from node.study import scan
from tests import readings
from tests.unit import zoo
from tests.unit.phantom import body, save, stack
from workers.load.inputs import _resampled, load_for
from workers.predict.network import Network
from workers.predict.reading import read
from workers.report import evidence, gate

ROUTE = Route(name="all", models=("zoo",), send_to=())
NAMES = ("T1c", "T1", "T2", "FLAIR")
CHANNELS = """
[[channel]]
name = "T1c"
[channel.series]
SeriesDescription = "*T1*post*"
[[channel]]
name = "T1"
[channel.series]
SeriesDescription = "*T1*"
[[channel]]
name = "T2"
[channel.series]
SeriesDescription = "*T2*"
InversionTime = {absent = true}
[[channel]]
name = "FLAIR"
[channel.series]
SeriesDescription = "*FLAIR*"
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return zoo.multi_label(tmp_path / "models" / "zoo", inputs=4, more=CHANNELS)


def series(description: str, pixels: np.ndarray, **how: Any) -> list[Dataset]:
    """One series of a brain study of its own UID; pixels (slice, row, column)."""
    more = {"SeriesInstanceUID": generate_uid(), "SeriesDescription": description, "Modality": "MR"} | how
    return stack(pixels, **more)


def brain(tmp_path: Path, **of_flair: Any) -> Path:
    """Four series of one body, each a fourth of it, and another T1 that is thinner; FLAIR as `of_flair` says."""
    quarter, of_others = (body() // 4).astype(np.uint16), of_flair.pop("of_others", {})
    for name in ("T1_post", "T1_pre", "T2_reg"):
        more = {"SeriesNumber": NAMES.index("T2") + len(name)} | of_others
        save(series(name, quarter, **more), tmp_path / "in" / name)
    pixels = of_flair.pop("pixels", quarter)
    save(series("FLAIR_reg", pixels, **of_flair), tmp_path / "in" / "FLAIR")
    mask = series("T1 mask", quarter, ImageType=["DERIVED", "SECONDARY"], SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    save(mask, tmp_path / "in" / "mask")
    return tmp_path / "in"


def choices(folder: Path, bundle: Bundle) -> list[Choice]:
    [study] = scan(folder)[0]
    return select(study.series, bundle, ROUTE)


def chosen(folder: Path, bundle: Bundle) -> list[Path]:
    [choice] = [choice for choice in choices(folder, bundle) if choice.chosen]
    return [instance.path for instance in choice.instances]


def test_each_channel_gets_its_series_and_the_mask_none(tmp_path: Path, bundle: Bundle) -> None:
    paths = chosen(brain(tmp_path), bundle)
    assert list(dict.fromkeys(path.parent.name for path in paths)) == ["T1_post", "T1_pre", "T2_reg", "FLAIR"]
    left = {choice.reasons[0] for choice in choices(tmp_path / "in", bundle) if not choice.chosen}
    assert "it is a derived Secondary Capture, not an acquired image" in left
    assert any(reason.startswith("it is read as channel T2 with ") for reason in left)


def test_a_channel_without_a_series_is_named(tmp_path: Path, bundle: Bundle) -> None:
    folder = brain(tmp_path)
    for path in (folder / "FLAIR").iterdir():
        path.unlink()
    told = [choice.reasons for choice in choices(folder, bundle) if "mask" not in str(choice.series.instances[0].path)]
    assert told == [("channel FLAIR has no series that meets its conditions on SeriesDescription",)] * 3


def volume(tmp_path: Path, bundle: Bundle, **of_flair: Any) -> Volume:
    [found] = load_for(chosen(brain(tmp_path, **of_flair), bundle), bundle.dicom)
    return found


def test_one_job_reads_all_four_and_its_evidence_names_them(tmp_path: Path, bundle: Bundle) -> None:
    paths = chosen(brain(tmp_path), bundle)
    [found] = load_for(paths, bundle.dicom)
    assert len(found.channels) == 4
    reading = read(Network(bundle, "cpu", bundle.digest), [found], bundle, to_datetime(0))
    [segmentation] = reading.segmentations
    summed = (body() // 4).astype(np.float32) * 4
    assert np.array_equal(segmentation.mask(segmentation.segments[0]), summed > 300)
    context = readings.context(paths)
    documents = evidence.build(reading, [found], context)
    gate.check(documents, reading, [found], context)
    report = next(d.dataset for d in documents if d.kind == "SR")
    seg = next(d.dataset for d in documents if d.kind == "SEG")
    ours = {path.parent.name for path in paths}
    [study] = [s for s in report.CurrentRequestedProcedureEvidenceSequence if s.StudyInstanceUID == "1.2.3"]
    assert sum(len(s.ReferencedSOPSequence) for s in study.ReferencedSeriesSequence) >= 4 * len(body())
    assert len(seg.ReferencedSeriesSequence) == len(ours) == 4


def test_another_grid_is_brought_onto_the_first(tmp_path: Path, bundle: Bundle) -> None:
    fine = np.repeat(np.repeat((body() // 4).astype(np.uint16), 2, axis=1), 2, axis=2)
    found = volume(tmp_path, bundle, pixels=fine, spacing=(1.0, 0.5, 0.5))
    assert found.remarks == ("Channel FLAIR was resampled onto the grid of channel T1c.",)
    inside = found.channels[0][:, 2:-2, 2:-2], found.channels[3][:, 2:-2, 2:-2]
    assert found.channels[3].shape == found.pixels.shape
    assert np.corrcoef(inside[0].ravel(), inside[1].ravel())[0, 1] > 0.9


def grid(shape: tuple[int, int, int], spacing: tuple[float, float, float], first: tuple[float, float, float]) -> Volume:
    """A volume whose values are a plane in the patient, so that any grid shows the same at the same place."""
    affine = np.diag([*spacing[::-1], 1.0])
    affine[:3, 3] = first
    k, j, i = np.indices(shape)
    places = np.stack([i, j, k, np.ones(shape)], axis=-1) @ affine.T
    pixels = (places @ [1.0, 2.0, 3.0, 1000.0]).astype(np.float32)
    return Volume(pixels, affine, tuple(Source(str(n)) for n in range(len(pixels))), spacing, "MR", is_projection=False)


@pytest.mark.parametrize("first", [(-87.3, -120.1, 33.7), (10.1, 20.7, -911.3), (0.1, 0.3, -0.7)])
def test_a_finer_channel_of_the_same_extent_reaches_to_the_last_slice(first: tuple[float, float, float]) -> None:
    coarse, fine = grid((6, 10, 8), (1.1, 0.9375, 0.7), first), grid((11, 19, 15), (0.55, 0.46875, 0.35), first)
    assert np.abs(_resampled(fine, coarse, "T1") - coarse.pixels).max() < 0.01


def test_a_channel_of_thick_slices_fills_its_first_and_last_one() -> None:
    thin, thick = (
        grid((12, 10, 8), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
        grid((6, 10, 8), (2.0, 1.0, 1.0), (0.0, 0.0, 0.5)),
    )
    apart = np.abs(_resampled(thick, thin, "FLAIR") - thin.pixels)
    assert apart[1:-1].max() < 0.01
    assert apart.max() < 1.51  # half a millimeter past the last middle, still within the slice


def test_channels_of_two_patients_are_not_suitable(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(Unsuitable, match=r"channel T1c and channel FLAIR are of different patients: Patient ID"):
        volume(tmp_path, bundle, PatientID="2", of_others={"PatientID": "1"})


@pytest.mark.parametrize(
    ("of_flair", "reason"),
    [
        ({"FrameOfReferenceUID": "1.2.9"}, "channels T1c and FLAIR lie in different Frames of Reference"),
        ({"FrameOfReferenceUID": ""}, "channel FLAIR has no Frame of Reference"),
        ({"pixels": body()[:6]}, "channel FLAIR covers 50% of the first, less than the 90% needed"),
        ({"spacing": (1.0, 3.0, 0.0)}, "channel FLAIR: "),
    ],
)
def test_what_is_no_one_place_is_not_suitable(
    of_flair: dict[str, Any], reason: str, tmp_path: Path, bundle: Bundle
) -> None:
    with pytest.raises(Unsuitable, match=reason):
        volume(tmp_path, bundle, **of_flair)


def test_the_phantom_itself_is_not_changed_by_being_read(tmp_path: Path, bundle: Bundle) -> None:
    found = volume(tmp_path, bundle)
    before = copy.deepcopy(found.channels)
    read(Network(bundle, "cpu", bundle.digest), [found], bundle, to_datetime(0))
    assert all(np.array_equal(a, b) for a, b in zip(before, found.channels, strict=True))


def test_the_brain_study_is_read_from_end_to_end(
    tmp_path: Path, bundle: Bundle, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "wetread.toml"
    config.write_text('[worker]\nmodels = "models"\ndevice = "cpu"\n')
    trust.pin([bundle], tmp_path / "trusted.toml")
    study = shared_data / "dicom" / "mr_brain_pgbm001_1991"
    command = ["read", str(study), "--model", "zoo", "--out", str(tmp_path / "out"), "--config", str(config)]
    assert cli.run(command) == 0, capsys.readouterr()
    kinds = sorted(path.name.split("-")[1] for path in (tmp_path / "out").iterdir())
    assert kinds == ["SC", "SEG", "SR"]
