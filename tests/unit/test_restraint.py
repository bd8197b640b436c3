"""The shipped chest model declines what it was not made for: each kind of film with its reason in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, Sequence

from node import bundles
from node.route.selection import select
from node.settings import Route
from node.simulate.phantoms import chest_film
from node.study import scan
from tests.unit.phantom import save
from workers import restraint
from workers.load.series import load

BUNDLES = ("chest_xray", "lung_fields")
CHEST = chest_film(size=256)[0].pixel_array


def empty() -> NDArray[np.uint16]:
    film = np.zeros_like(CHEST)
    film[100:104, 100:104] = 900
    return film


def clipped() -> NDArray[np.uint16]:
    return np.minimum(CHEST, np.quantile(CHEST, 0.3).astype(np.uint16))


def noise() -> NDArray[np.uint16]:
    return np.random.default_rng(1).integers(0, 4096, CHEST.shape).astype(np.uint16)


def hand() -> NDArray[np.uint16]:
    """Five bright fingers on black."""
    film = np.zeros_like(CHEST)
    for column in range(40, 220, 36):
        film[30:220, column : column + 16] = np.linspace(1500, 4000, 190, dtype=np.uint16)[:, np.newaxis]
    return film


def coded(meaning: str, value: str = "1") -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return Sequence([item])


UNLIKE = "it is unlike the images that the model was trained on, most of all in "
REASONS: dict[str, tuple[NDArray[np.uint16], dict[str, Any], str]] = {
    "a lateral film": (CHEST, {"ViewPosition": "LL"}, "ViewPosition is LL, which is excluded"),
    "one side": (CHEST, {"ImageLaterality": "L"}, "ImageLaterality is L, which is excluded"),
    "a lateral film by its name": (CHEST, {"SeriesDescription": "Chest lateral"}, "SeriesDescription is Chest lateral"),
    "a lateral film in other words": (CHEST, {"ViewPosition": "L LAT"}, "ViewPosition is L LAT, which is excluded"),
    "rows that run forward": (
        CHEST,
        {"PatientOrientation": ["A", "F"]},
        "PatientOrientation is A\\F, which is excluded",
    ),
    "upside down": (CHEST, {"PatientOrientation": ["R", "H"]}, "PatientOrientation is R\\H, which is excluded"),
    "a lateral film by its code": (
        CHEST,
        {"ViewCodeSequence": coded("left lateral")},
        "ViewCodeSequence is 1\\left later",
    ),
    "a lateral film by abbreviation": (
        CHEST,
        {"SeriesDescription": "CHEST LAT 14x17"},
        "SeriesDescription is CHEST LAT",
    ),
    "a lateral film by its protocol": (CHEST, {"ProtocolName": "Thorax seitlich"}, "ProtocolName is Thorax seitlich"),
    "a film for processing": (
        CHEST,
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1.1"},
        "SOPClassUID is 1.2.840.10008.5",
    ),
    "a phantom": (CHEST, {"QualityControlImage": "YES"}, "QualityControlImage is YES, which is excluded"),
    "an empty film": (empty(), {}, "of its pixels lie at the lower limit: it is empty or clipped"),
    "a clipped film": (clipped(), {}, "of its pixels lie at the upper limit: it is empty or clipped"),
    "noise": (noise(), {}, UNLIKE),
    "another part of the body": (hand(), {}, UNLIKE),
}


def written(folder: Path, pixels: NDArray[np.uint16], **attributes: Any) -> list[Path]:
    ds = chest_film(size=256)[0]
    ds.QualityControlImage, ds.SeriesDescription = "NO", "Chest"
    ds.PixelData = pixels.tobytes()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return save([ds], folder)


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize("what", REASONS)
def test_each_is_declined_with_its_reason(what: str, bundle: str, tmp_path: Path) -> None:
    pixels, attributes, reason = REASONS[what]
    files = written(tmp_path, pixels, **attributes)
    [one] = restraint.declined(files, load(files, 2), bundles.find(bundle))
    assert reason in one.reason
    assert one.score is not None
    assert f"(unlikeness {one.score:.2f}, limit 1)" in restraint.reason(one)
    assert one.score > 1 or UNLIKE not in one.reason


FRONTAL: dict[str, dict[str, Any]] = {
    "postero-anterior": {"ViewCodeSequence": coded("postero-anterior", "272479007"), "PatientOrientation": ["L", "F"]},
    "a view without a code": {"ViewCodeSequence": Sequence(), "ViewPosition": "", "PatientOrientation": ""},
    "mirrored": {"PatientOrientation": ["R", "F"], "ProtocolName": "Chest PA"},
    "in bed": {"ViewPosition": "AP", "SeriesDescription": "Chest AP flat plate", "PatientOrientation": ["L", "F"]},
}


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize("what", FRONTAL)
def test_a_frontal_film_has_no_such_reason(what: str, bundle: str, tmp_path: Path) -> None:
    files = written(tmp_path, CHEST, **FRONTAL[what])
    assert not [
        one for one in restraint.declined(files, load(files, 2), bundles.find(bundle)) if "excluded" in one.reason
    ]


def test_another_body_part_is_not_even_chosen(tmp_path: Path) -> None:
    written(tmp_path, CHEST, BodyPartExamined="HAND")
    [study] = scan(tmp_path)[0]
    route = Route(name="x", models=BUNDLES, send_to=())
    choices = [choice for name in BUNDLES for choice in select(study.series, bundles.find(name), route)]
    assert choices
    assert not any(choice.chosen for choice in choices)
    assert all("BodyPartExamined is HAND" in "; ".join(choice.reasons) for choice in choices)
