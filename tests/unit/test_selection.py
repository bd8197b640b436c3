from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import (
    ComprehensiveSRStorage,
    DigitalXRayImageStorageForPresentation,
    EncapsulatedPDFStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    RTImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    TwelveLeadECGWaveformStorage,
    VideoPhotographicImageStorage,
)

from node import bundles
from node.route.selection import Choice, select
from node.settings import Route
from node.study import scan
from tests.unit.headers import bundle, header, part10, series_of

ROUTE = Route(name="all", models=("one",), send_to=())


def only(choices: list[Choice]) -> Choice:
    chosen = [choice for choice in choices if choice.chosen]
    assert len(chosen) == 1
    return chosen[0]


@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"SOPClassUID": ComprehensiveSRStorage}, "Comprehensive SR is not an image"),
        ({"SOPClassUID": SegmentationStorage}, "Segmentation is not an image"),
        ({"SOPClassUID": EncapsulatedPDFStorage}, "Encapsulated PDF is not an image"),
        ({"SOPClassUID": TwelveLeadECGWaveformStorage}, "12-lead ECG Waveform is not an image"),
        ({"SOPClassUID": RTImageStorage}, "RT Image is not an image that a network reads"),
        (
            {"SOPClassUID": VideoPhotographicImageStorage},
            "Video Photographic Image is not an image",
        ),
        ({"SOPClassUID": "1.3.46.670589.5.0.1"}, "SOP class 1.3.46.670589.5.0.1 is not an image"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "it is a localizer"),
        (
            {"SOPClassUID": SecondaryCaptureImageStorage, "ImageType": ["DERIVED", "SECONDARY", "OTHER"]},
            "it is a derived Secondary Capture, not an acquired image",
        ),
        (
            {"SOPClassUID": MultiFrameTrueColorSecondaryCaptureImageStorage, "ImageType": ["DERIVED", "SECONDARY"]},
            "it is a derived Secondary Capture, not an acquired image",
        ),
        ({"Rows": None}, "it has no pixel matrix"),
    ],
)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_what_is_no_input_is_never_chosen(
    tmp_path: Path, dimensions: int, keywords: dict[str, Any], reason: str
) -> None:
    (choice,) = select([series_of(tmp_path, 2, **keywords)], bundle(dimensions=dimensions), ROUTE)
    assert not choice.chosen
    assert not choice.instances
    assert choice.reasons[0].startswith(reason)


def test_a_secondary_capture_that_was_acquired_is_a_film(tmp_path: Path) -> None:
    # The NIH radiographs: modality DX inside the Secondary Capture class, without Image Type.
    film = series_of(tmp_path, 1, SOPClassUID=SecondaryCaptureImageStorage, Modality="DX")
    assert only(select([film], bundle(dimensions=2, series={"Modality": "DX"}), ROUTE)).instances == film.instances


def test_every_matching_film_is_read_and_a_lateral_one_in_the_series_is_left(tmp_path: Path) -> None:
    shared = {
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "Modality": "DX",
        "SeriesInstanceUID": "1.2.3.4",
    }
    views = [series_of(tmp_path, 1, ViewPosition=view, **shared) for view in ("PA", "LL", "AP")]
    both = type(views[0])("1.2.3.4", "1.2.3", tuple(i for v in views for i in v.instances))
    frontal = bundle(dimensions=2, series={"ViewPosition": {"not": "LL"}})
    choice = only(select([both], frontal, ROUTE))
    assert [i.attributes["ViewPosition"] for i in choice.instances] == ["PA", "AP"]
    assert choice.reasons[-1] == "1 of 3 images are left out: ViewPosition is LL, which is excluded (not LL)"


def test_two_series_of_films_are_both_read(tmp_path: Path) -> None:
    choices = select([series_of(tmp_path, 1), series_of(tmp_path, 1)], bundle(dimensions=2), ROUTE)
    assert [choice.chosen for choice in choices] == [True, True]


def test_a_series_that_nothing_is_asked_of_has_a_reason_too(tmp_path: Path) -> None:
    (choice,) = select([series_of(tmp_path, 2)], bundle(series={}), ROUTE)
    assert (choice.chosen, choice.reasons) == (True, ("no condition is made on its attributes",))


def test_another_file_of_an_instance_is_told_only_where_it_differs(tmp_path: Path) -> None:
    same = {"SOPInstanceUID": "1.2.7", "SeriesInstanceUID": "1.2.6", "StudyInstanceUID": "1.2.5"}
    one, other = header(**same), header(**same, PatientID="2")
    for name, ds in (("1", one), ("2", one), ("3", other)):
        (tmp_path / name).write_bytes(part10(ds))
    studies, left_out = scan(tmp_path)
    assert left_out == ("3 is instance 1.2.7 with other content than 1, which is read.",)
    assert studies[0].series[0].instances[0].path.name == "1"


def test_a_localizer_among_the_slices_is_left_out(tmp_path: Path) -> None:
    scout = series_of(tmp_path, 1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID="1.2.3.4")
    slices = series_of(tmp_path, 3, SeriesInstanceUID="1.2.3.4")
    mixed = type(scout)("1.2.3.4", "1.2.3", scout.instances + slices.instances)
    three = bundle(series={"NumberOfSeriesRelatedInstances": 3})
    assert only(select([mixed], three, ROUTE)).instances == slices.instances


def test_the_route_narrows_what_the_bundle_reads(tmp_path: Path) -> None:
    route = Route(name="post", series={"SeriesDescription": "*post*"}, models=("one",), send_to=())
    pre = series_of(tmp_path, 3, SeriesDescription="T1 pre")
    post = series_of(tmp_path, 3, SeriesDescription="T1 post")
    choices = select([pre, post], bundle(series={"Modality": "MR"}), route)
    assert only(choices).series is post
    assert choices[0].reasons == ("SeriesDescription is T1 pre, not *post*",)


@pytest.mark.parametrize(
    ("prefer", "worse", "better", "reason"),
    [
        ({"SeriesDescription": ["*T1*", "*T2*"]}, {"SeriesDescription": "T2"}, {"SeriesDescription": "T1 ax"}, "T1 ax"),
        ({"SeriesDescription": "*T1*"}, {"SeriesDescription": "FLAIR"}, {"SeriesDescription": "T1"}, "here SeriesDes"),
        ({"SliceThickness": "lowest"}, {"SliceThickness": 5}, {"SliceThickness": 1}, "SliceThickness 1, here Sl"),
        ({"EchoTime": "highest"}, {"EchoTime": 10}, {"EchoTime": 90}, "EchoTime 90, here EchoTime 10"),
        ({"EchoTime": "highest"}, {}, {"EchoTime": 9}, "EchoTime 9, here EchoTime absent"),
        ({}, {"SliceThickness": 5}, {"SliceThickness": 1}, "slices of 1 mm, here slices of 5 mm"),
        ({}, {"SeriesInstanceUID": "1.2.9"}, {"SeriesInstanceUID": "1.2.8"}, "1.2.8, here 1.2.9"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_one_volume_is_chosen_by_preference(
    tmp_path: Path, prefer: dict[str, Any], worse: dict[str, Any], better: dict[str, Any], reason: str, turned: bool
) -> None:
    good, other = series_of(tmp_path, 3, **better), series_of(tmp_path, 3, **worse)
    choices = select([good, other] if turned else [other, good], bundle(prefer=prefer), ROUTE)
    assert only(choices).series is good
    (left,) = [choice for choice in choices if not choice.chosen]
    assert left.reasons[0].startswith(f"series {good.series_instance_uid} is preferred: ")
    assert reason in left.reasons[0]


def test_more_images_are_preferred_before_thinner_ones(tmp_path: Path) -> None:
    many, thin = series_of(tmp_path, 4, SliceThickness=3), series_of(tmp_path, 3, SliceThickness=1)
    choices = select([thin, many], bundle(), ROUTE)
    assert only(choices).series is many
    assert "4 images, here 3 images" in choices[0].reasons[0]


def test_exactly_one_of_five_series_fits_the_hippocampus_model(shared_data: Path) -> None:
    (study,), _ = scan(shared_data / "dicom" / "mr_brain_pgbm003_hippocrop")
    choices = select(study.series, bundles.find("hippocampus"), ROUTE)
    assert len(choices) == 5
    chosen = only(choices)
    assert chosen.series.attributes["SeriesDescription"] == "HippoCrop"
    assert len(chosen.instances) == 40
    assert all("above 96" in c.reasons[0] for c in choices if not c.chosen)


def test_a_tumor_mask_typed_as_mr_is_no_mr(shared_data: Path) -> None:
    (study,), _ = scan(shared_data / "dicom" / "mr_brain_pgbm001_1991")
    choices = select(study.series, bundle(series={"Modality": "MR"}), ROUTE)
    mask = next(c for c in choices if c.series.attributes["SeriesDescription"] == "Mask_Tumor")
    assert mask.reasons == ("it is a derived Secondary Capture, not an acquired image",)
    assert only(choices).series is not mask.series


def test_nothing_that_is_no_image_is_chosen_from_a_heap_of_oddities(shared_data: Path) -> None:
    studies, _ = scan(shared_data / "dicom" / "nonimage_and_odd")
    chosen = [
        i for s in studies for c in select(s.series, bundle(dimensions=2), ROUTE) if c.chosen for i in c.instances
    ]
    assert {i.attributes.get("Modality") for i in chosen}.isdisjoint({"SR", "SEG", "RTPLAN", "RTDOSE", "ECG", "KO"})
