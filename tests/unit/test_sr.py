from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from node import codes
from node.codes import Code
from node.findings import Measurement, Reading, Segment, Segmentation, Volume
from node.simulate import phantoms
from tests import readings
from tests.unit import phantom
from workers.load.series import load
from workers.report import evidence
from workers.report.case import code_of, named, references, walk
from workers.report.context import Context
from workers.report.rules_sr import groups_of, tracking_uids
from workers.report.sc import finding_line


def report(reading: Reading, volumes: list[Volume], context: Context) -> Dataset:
    return next(d.dataset for d in evidence.build(reading, volumes, context) if d.kind == "SR")


def film(tmp_path: Path, **attributes: object) -> tuple[Volume, Context]:
    ds, _ = phantoms.chest_film(size=64)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return readings.film_of(ds), readings.context(readings.written([ds], tmp_path))


def box(tmp_path: Path, spacing: tuple[float, float, float] = (3.0, 2.0, 0.5)) -> tuple[Volume, Context, Segmentation]:
    """A volume with one box: 4 slices, 6 rows of 2 mm, 16 columns of 0.5 mm; largest, by one row, on slice 5."""
    slices, _ = phantoms.volume("axial", "MR", (12, 32, 40), spacing)
    volume = readings.volume_of(slices, spacing)
    labels = np.zeros((12, 32, 40), np.uint8)
    labels[4:8, 10:16, 8:24] = 3
    labels[5, 16, 8:24] = 3
    measured = Measurement(codes.VOLUME, 1.2345678, codes.MILLILITER, codes.SUM_OF_VOXELS)
    segment = Segment(3, "Box", codes.ANATOMICAL_STRUCTURE, readings.LUNG, codes.LEFT, "#ff0000", (measured,))
    return (
        volume,
        readings.context(readings.written(slices, tmp_path)),
        Segmentation(labels, volume.sources, (segment,)),
    )


def numbers(group: Dataset) -> dict[str, tuple[float, str]]:
    found = {}
    for item in walk(group):
        if item.get("ValueType") == "NUM":
            value = item.MeasuredValueSequence[0]
            unit = code_of(value, "MeasurementUnitsCodeSequence")
            found[item.ConceptNameCodeSequence[0].CodeMeaning] = (float(value.NumericValue), unit.value if unit else "")
    return found


def test_every_class_has_a_group_the_most_probable_first(tmp_path: Path) -> None:
    volume, context = film(tmp_path)
    low, high = readings.finding(volume, "Pleural effusion", 0.0423), readings.finding(volume, probability=0.98765)
    ds = report(Reading(readings.algorithm(), readings.STARTED, (low, high)), [volume], context)
    first, second = groups_of(ds)
    assert numbers(first) == {"AI: Abnormal chest radiograph probability": (98.8, "%"), "Probability": (98.8, "%")}
    assert numbers(second) == {"AI: Pleural effusion probability": (4.23, "%"), "Probability": (4.23, "%")}
    said = [code_of(named(group, codes.PRESENCE)[0], "ConceptCodeSequence") for group in (first, second)]
    assert said == [codes.PRESENT, codes.ABSENT]
    assert code_of(named(first, codes.FINDING)[0], "ConceptCodeSequence") == readings.ABNORMAL
    parameters = {item.TextValue for item in named(first, codes.ALGORITHM_PARAMETERS)}
    assert parameters == {"threshold=0.5", "weights_sha256=" + "ab" * 32}


def test_the_report_says_for_which_sensitivity_the_threshold_was_chosen(tmp_path: Path) -> None:
    volume, context = film(tmp_path)
    finding = replace(readings.finding(volume), threshold=0.572, sensitivity=0.95)
    ds = report(Reading(readings.algorithm(), readings.STARTED, (finding,)), [volume], context)
    parameters = {item.TextValue for item in named(groups_of(ds)[0], codes.ALGORITHM_PARAMETERS)}
    assert {"threshold=0.572", "threshold chosen for a sensitivity of 95 % on validation patients"} < parameters


def test_what_is_not_calibrated_is_not_called_a_probability(tmp_path: Path) -> None:
    volume, context = film(tmp_path)
    score = replace(readings.finding(volume), calibrated=False)
    ds = report(Reading(readings.algorithm(), readings.STARTED, (score,)), [volume], context)
    assert numbers(groups_of(ds)[0]) == {"AI: Abnormal chest radiograph score": (87.3, "%")}


def test_labels_of_one_film_stand_below_each_other(tmp_path: Path) -> None:
    volume, context = film(tmp_path)
    findings = tuple(replace(readings.finding(volume), label=f"Finding {n}") for n in range(20))
    ds = report(Reading(readings.algorithm(), readings.STARTED, findings), [volume], context)
    points = [tuple(i.GraphicData) for i in walk(ds) if i.get("ValueType") == "SCOORD"]
    assert len(set(points)) == len(points) == 20
    assert all(0 <= x < 64 and 0 <= y < 64 for x, y in points)


def test_a_segment_is_drawn_by_its_axes_and_referenced_by_its_number(tmp_path: Path) -> None:
    volume, context, segmentation = box(tmp_path)
    reading = Reading(readings.algorithm(), readings.STARTED, (), (segmentation,))
    documents = evidence.build(reading, [volume], context)
    seg, ds = documents[0].dataset, documents[-1].dataset
    seen, stored = groups_of(ds)
    measured = numbers(seen)
    assert measured["Long Axis"][0] == pytest.approx(np.hypot(14, 8), abs=0.6)
    assert measured["Short Axis"][0] <= measured["Long Axis"][0]
    assert measured["AI: Box volume"] == (1.23457, "ml")
    images = {item.ReferencedSOPInstanceUID for item in references(seen)}
    assert images == {volume.sources[5].sop_instance_uid}, "on the slice where it is largest"
    assert numbers(stored) == {"Volume": (1.23457, "ml")}
    (reference,) = references(stored)
    assert (reference.ReferencedSOPInstanceUID, reference.ReferencedSegmentNumber) == (seg.SOPInstanceUID, 1)
    tracking = [named(group, codes.TRACKING_UID)[0].UID for group in (seen, stored)]
    assert tracking == [seg.SegmentSequence[0].TrackingUID] * 2
    assert code_of(named(stored, codes.LATERALITY)[0], "ConceptCodeSequence") == codes.LEFT


def test_without_a_seg_the_standard_number_is_in_the_group_that_is_seen(tmp_path: Path) -> None:
    volume, context, segmentation = box(tmp_path)
    reading = Reading(readings.algorithm(), readings.STARTED, (), (segmentation,))
    (group,) = groups_of(report(reading, [volume], replace(context, results=("SR",))))
    assert numbers(group)["Volume"] == (1.23457, "ml")


def test_an_absent_segment_says_so_and_can_be_seen(tmp_path: Path) -> None:
    volume, context, segmentation = box(tmp_path)
    reading = Reading(readings.algorithm(), readings.STARTED, (), (readings.absent(segmentation),))
    (group,) = groups_of(report(reading, [volume], context))
    assert numbers(group) == {"AI: Box not found, volume": (0.0, "ml")}
    assert code_of(named(group, codes.PRESENCE)[0], "ConceptCodeSequence") == codes.ABSENT
    assert [i.GraphicType for i in walk(group) if i.get("ValueType") == "SCOORD"] == ["POINT"]


def test_a_film_without_spacing_has_no_lengths(tmp_path: Path) -> None:
    volume, context = film(tmp_path)
    ds = report(readings.film_reading(volume), [volume], context)
    units = {unit for group in groups_of(ds) for _, unit in numbers(group).values()}
    assert units == {"%", "{pixels}"}


def test_a_calibrated_film_has_square_centimeters(tmp_path: Path) -> None:
    ds, _ = phantoms.chest_film(size=64)
    volume, context = readings.film_of(ds, (1.0, 5.6, 5.6)), readings.context(readings.written([ds], tmp_path))
    groups = groups_of(report(readings.film_reading(volume), [volume], context))
    assert numbers(groups[-1])["Area"] == numbers(groups[-2])["AI: Lung fields area"]
    assert numbers(groups[-1])["Area"][1] == "cm2"


def test_every_source_is_listed_as_evidence(tmp_path: Path) -> None:
    volume, context, segmentation = box(tmp_path)
    ds = report(Reading(readings.algorithm(), readings.STARTED, (), (segmentation,)), [volume], context)
    series = [s for study in ds.CurrentRequestedProcedureEvidenceSequence for s in study.ReferencedSeriesSequence]
    listed = {item.ReferencedSOPInstanceUID for s in series for item in s.ReferencedSOPSequence}
    assert {source.sop_instance_uid for source in volume.sources} < listed
    assert len(listed) == 12 + 2, "the images, the SEG and the key image"


@pytest.mark.parametrize(
    ("modality", "code", "expected"),
    [
        ("CT", None, codes.CT_PROCEDURE),
        ("DX", None, codes.IMAGING_PROCEDURE),
        ("DX", Code("399208008", "SCT", "Plain chest X-ray"), Code("399208008", "SCT", "Plain chest X-ray")),
        ("MR", Code("LOCAL1", "L", "Our MR"), codes.MR_PROCEDURE),
    ],
)
def test_the_procedure_is_the_studys_where_its_code_is_public(
    tmp_path: Path, modality: str, code: Code | None, expected: Code
) -> None:
    item = Dataset()
    if code:
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    volume, context = film(tmp_path, Modality=modality, ProcedureCodeSequence=[item] if code else [])
    ds = report(readings.film_reading(volume), [volume], context)
    assert code_of(named(ds, codes.PROCEDURE_REPORTED)[0], "ConceptCodeSequence") == expected


@pytest.mark.parametrize(("probability", "told"), [(0.57196, 57.196), (0.572, 57.2), (0.5712, 57.1), (0.57204, 57.2)])
def test_a_probability_by_the_threshold_is_told_as_it_was_judged(
    probability: float, told: float, tmp_path: Path
) -> None:
    volume, context = film(tmp_path)
    found = replace(readings.finding(volume, probability=probability), threshold=0.572)
    ds = report(Reading(readings.algorithm(), readings.STARTED, (found,)), [volume], context)
    [group] = groups_of(ds)
    assert {value for value, unit in numbers(group).values() if unit == "%"} == {told}
    assert (told >= 57.2) == found.present
    line = finding_line(found).values
    said, threshold = (float(part.split()[0]) for part in (line, line.partition("threshold ")[2]))
    assert (said >= threshold) == found.present


def test_the_request_of_the_images_is_answered(tmp_path: Path) -> None:
    request = Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepID = "RP1", "SPS1"
    volume, context = film(tmp_path, RequestAttributesSequence=[request], AccessionNumber="A77")
    ds = report(readings.film_reading(volume), [volume], context)
    (answered,) = ds.ReferencedRequestSequence
    assert (answered.RequestedProcedureID, answered.AccessionNumber) == ("RP1", "A77")


@pytest.mark.parametrize("category", [codes.ANATOMICAL_STRUCTURE, Code("123037004", "SCT", "Anatomical Structure")])
def test_a_side_is_told_under_the_earlier_code_of_the_category_too(tmp_path: Path, category: Code) -> None:
    volume, context, segmentation = box(tmp_path)
    left = replace(segmentation, segments=(replace(segmentation.segments[0], category=category),))
    ds = report(Reading(readings.algorithm(), readings.STARTED, (), (left,)), [volume], context)
    for group in groups_of(ds):
        [side] = named(group, codes.LATERALITY)
        assert code_of(side, "ConceptCodeSequence") == codes.LEFT


def test_remarks_are_comments_of_the_report(tmp_path: Path) -> None:
    volume, context = film(tmp_path)
    ds = report(replace(readings.film_reading(volume), remarks=("Unlike the training films.",)), [volume], context)
    assert [item.TextValue for item in named(ds, codes.COMMENT)] == ["Unlike the training films."]


def test_what_is_said_of_another_frame_or_slice_is_another_thing(tmp_path: Path) -> None:
    run = phantom.film(phantom.body()[4:6], NumberOfFrames=2)
    for name, files in (("film", [run]), ("slices", phantom.stack(phantom.body()[4:6]))):
        paths = phantom.save(files, tmp_path / name)
        volumes = load(paths, 2)
        found = tuple(readings.finding(volume) for volume in volumes)
        ds = report(Reading(readings.algorithm(), readings.STARTED, found), volumes, readings.context(paths))
        assert len(tracking_uids(groups_of(ds))) == len(volumes) == 2


def test_nobody_has_verified_it(tmp_path: Path) -> None:
    volume, context = film(tmp_path)
    ds = report(readings.film_reading(volume), [volume], context)
    assert (ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag) == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
    assert "VerifyingObserverSequence" not in ds
    assert {i.ContinuityOfContent for i in walk(ds) if i.get("ValueType") == "CONTAINER"} == {"SEPARATE"}
    assert pydicom.uid.UID(ds.SOPClassUID).name == "Comprehensive 3D SR Storage"
