from __future__ import annotations

from typing import Any

import pytest

from node.conditions import check
from node.errors import Permanent
from node.route.matching import matches
from node.study import AttributeValue

CT: dict[str, AttributeValue] = {
    "Modality": "CT",
    "Rows": 320.0,
    "SeriesDescription": "T1 [post] Ax",
    "ImageType": ("ORIGINAL", "PRIMARY", "AXIAL"),
    "PixelSpacing": (0.5, 0.7),
    "StudyID": "0012",
    "PatientID": "secret",
}


@pytest.mark.parametrize(
    ("keyword", "condition", "ok", "reason"),
    [
        ("Modality", "ct", True, "Modality is CT"),
        ("Modality", "MR", False, "Modality is CT, not MR"),
        ("Modality", ["MR", "PT"], False, "Modality is CT, not MR or PT"),
        ("Modality", ["MR", "C?"], True, "Modality is CT"),
        ("Modality", "T", False, "Modality is CT, not T"),
        ("SeriesDescription", "*[POST]*", True, "SeriesDescription is T1 [post] Ax"),
        ("SeriesDescription", "*[xyz]*", False, "SeriesDescription is T1 [post] Ax, not *[xyz]*"),
        ("ImageType", "PRIMARY", True, "ImageType is ORIGINAL\\PRIMARY\\AXIAL"),
        ("ImageType", {"not": "AXIAL"}, False, "ImageType is ORIGINAL\\PRIMARY\\AXIAL, which is excluded (not AXIAL)"),
        ("ImageType", {"not": ["LOCALIZER", "SCOUT*"]}, True, "ImageType is ORIGINAL\\PRIMARY\\AXIAL"),
        ("Rows", 320, True, "Rows is 320"),
        ("Rows", "320.0", True, "Rows is 320"),
        ("Rows", {"max": 96}, False, "Rows is 320, above 96"),
        ("Rows", {"min": 20, "max": 320}, True, "Rows is 320"),
        ("Rows", {"min": 512}, False, "Rows is 320, below 512"),
        ("PixelSpacing", {"min": 0.55, "max": 0.65}, False, "PixelSpacing is 0.5\\0.7, below 0.55"),
        ("PixelSpacing", {"min": 0.6}, True, "PixelSpacing is 0.5\\0.7"),
        ("Modality", {"min": 3}, False, "Modality is CT, not a number"),
        ("BodyPartExamined", "CHEST", False, "BodyPartExamined is absent"),
        ("BodyPartExamined", {"min": 1}, False, "BodyPartExamined is absent"),
        ("BodyPartExamined", {"not": "HEAD"}, True, "BodyPartExamined is absent"),
        ("BodyPartExamined", {"not": "HEAD", "absent": False}, False, "BodyPartExamined is absent"),
        ("BodyPartExamined", {"absent": True}, True, "BodyPartExamined is absent"),
        ("SliceThickness", {"max": 5, "absent": True}, True, "SliceThickness is absent"),
        ("Modality", {"absent": True}, False, "Modality is CT, not absent"),
        ("Modality", {"absent": False}, True, "Modality is CT"),
    ],
)
def test_conditions_and_their_reasons(keyword: str, condition: Any, ok: bool, reason: str) -> None:
    match = matches(CT, {keyword: condition})
    assert (match.ok, match.reasons) == (ok, (reason,))


def test_all_conditions_must_hold_and_only_the_failed_ones_are_told() -> None:
    match = matches(CT, {"Modality": "MR", "Rows": {"max": 96}, "ImageType": "PRIMARY"})
    assert match.reasons == ("Modality is CT, not MR", "Rows is 320, above 96")


def test_no_condition_is_met_by_everything() -> None:
    assert matches(CT, {}).ok


@pytest.mark.parametrize("condition", ["other", {"not": "secret"}, "sec*"])
def test_a_reason_never_shows_what_identifies_the_patient(condition: Any) -> None:
    assert "secret" not in " ".join(matches(CT, {"PatientID": condition}).reasons)
    assert "0012" not in " ".join(matches(CT, {"StudyID": "13"}).reasons)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"Modalty": "CT"}, '"Modalty" is not a DICOM keyword; did you mean "Modality"?'),
        ({"modality": "CT"}, 'did you mean "Modality"?'),
        ({"__import__('os')": "x"}, "is not a DICOM keyword"),
        ({"PixelData": "x"}, "cannot be compared"),
        ({"ReferencedImageSequence": "x"}, "holds SQ data"),
        ({"Rows": {"maximum": 3}}, "min, max, not or absent was expected, not maximum"),
        ({"Rows": {"max": "3"}}, "max = '3' is not a number"),
        ({"Rows": {"absent": "yes"}}, "absent = 'yes' is not true or false"),
        ({"Rows": {}}, "not nothing"),
    ],
)
def test_a_condition_that_cannot_be_met_is_refused(conditions: dict[str, Any], message: str) -> None:
    with pytest.raises(Permanent) as refused:
        check(conditions)
    assert message in str(refused.value)


def test_a_pattern_of_many_stars_ends_in_time() -> None:
    assert not matches({"SeriesDescription": "a" * 64}, {"SeriesDescription": "*a" * 12 + "b"}).ok
