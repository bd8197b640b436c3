from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from node import uids
from node.errors import NonConformant
from node.findings import Reading, Volume
from node.simulate import phantoms
from tests import readings
from workers.report import evidence, gate
from workers.report.context import Context, EvidenceDocument, NodeIdentity

Inputs = tuple[Reading, list[Volume], Context]


@pytest.fixture
def film(tmp_path: Path) -> Inputs:
    ds, _ = phantoms.chest_film(size=64)
    volume = readings.film_of(ds)
    return readings.film_reading(volume), [volume], readings.context(readings.written([ds], tmp_path / "film"))


@pytest.fixture
def volume(tmp_path: Path) -> Inputs:
    slices, mask = phantoms.volume("axial", "MR", (12, 24, 21))
    made = readings.volume_of(slices, (2.5, 1.2, 0.9))
    return readings.volume_reading(made, mask), [made], readings.context(readings.written(slices, tmp_path / "volume"))


def kinds(documents: list[EvidenceDocument]) -> list[str]:
    return [document.kind for document in documents]


def changed(context: Context, **attributes: object) -> Context:
    """Change attributes in every source file; return a context that has not read them yet."""
    for path in context.sources:
        ds = pydicom.dcmread(path)
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)
        ds.save_as(path)
    return replace(context)


def test_the_same_reading_gives_the_same_bytes_and_leaves_its_input_alone(film: Inputs, volume: Inputs) -> None:
    for reading, volumes, context in (film, volume):
        before = [sha256(path.read_bytes()).hexdigest() for path in context.sources]
        labels = [s.labels.copy() for s in reading.segmentations]
        first, second = ([evidence.to_bytes(d) for d in evidence.build(reading, volumes, context)] for _ in range(2))
        assert first == second
        assert [sha256(path.read_bytes()).hexdigest() for path in context.sources] == before
        assert all(np.array_equal(a, s.labels) for a, s in zip(labels, reading.segmentations, strict=True))


def test_another_input_or_another_model_gives_other_uids(film: Inputs) -> None:
    reading, volumes, context = film
    newer = replace(reading, algorithm=readings.algorithm(version="1.0.1"))
    sets = [
        evidence.build(reading, volumes, context),
        evidence.build(newer, volumes, context),
        evidence.build(reading, volumes, replace(context, key="one more slice")),
    ]
    seen = [uid for documents in sets for d in documents for uid in (d.sop_instance_uid, d.series_instance_uid)]
    assert len(seen) == len(set(seen)) == 18


def test_what_is_tracked_keeps_its_uid_over_models_and_inputs(film: Inputs) -> None:
    reading, volumes, context = film
    newer = replace(reading, algorithm=readings.algorithm(version="1.0.1"))
    segs = [evidence.build(r, volumes, context)[0].dataset for r in (reading, newer)]
    assert segs[0].SegmentSequence[0].TrackingUID == segs[1].SegmentSequence[0].TrackingUID


def test_a_new_report_names_the_one_it_supersedes(film: Inputs, tmp_path: Path) -> None:
    reading, volumes, context = film
    old = evidence.build(reading, volumes, context)[-1]
    (tmp_path / "old.dcm").write_bytes(evidence.to_bytes(old))
    revised = replace(context, key="revision 2", predecessors=(tmp_path / "old.dcm",))
    new = evidence.build(reading, volumes, revised)[-1].dataset
    study = new.PredecessorDocumentsSequence[0]
    item = study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert study.StudyInstanceUID == old.dataset.StudyInstanceUID
    assert item.ReferencedSOPInstanceUID == old.sop_instance_uid != new.SOPInstanceUID
    assert new.SeriesDescription == f"{old.dataset.SeriesDescription}, supersedes earlier"
    assert len(new.SeriesDescription) <= 64, "LO has at most 64 characters (PS3.5 §6.2)"


@pytest.mark.parametrize(
    ("wanted", "made"),
    [(("SR",), ["SR"]), (("SEG",), ["SEG"]), (("SC", "SR"), ["SC", "SR"]), (("SR", "SEG", "SC"), ["SEG", "SC", "SR"])],
)
def test_only_what_the_route_asks_for_is_made(volume: Inputs, wanted: tuple[str, ...], made: list[str]) -> None:
    reading, volumes, context = volume
    asked = replace(context, results=wanted)
    documents = evidence.build(reading, volumes, asked)
    gate.check(documents, reading, volumes, asked)
    assert kinds(documents) == made


@pytest.mark.parametrize(("wanted", "made"), [(("SC", "SR"), ["SC", "SR"]), (("SALIENCY", "SR"), ["SALIENCY", "SR"])])
def test_a_saliency_map_is_made_where_it_was_asked_for(film: Inputs, wanted: tuple[str, ...], made: list[str]) -> None:
    reading, volumes, context = film
    present, absent = reading.findings
    looked = replace(reading, findings=(readings.explained(present, volumes[0]), absent))
    asked = replace(context, results=wanted)
    documents = evidence.build(looked, volumes, asked)
    gate.check(documents, looked, volumes, asked)
    assert kinds(documents) == made
    report = documents[-1].dataset.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert documents[0].series_instance_uid in {series.SeriesInstanceUID for series in report}
    assert [evidence.to_bytes(d) for d in documents] == [
        evidence.to_bytes(d) for d in evidence.build(looked, volumes, asked)
    ]


def test_nothing_found_is_said_and_not_painted(volume: Inputs) -> None:
    reading, volumes, context = volume
    empty = replace(reading, segmentations=(readings.absent(reading.segmentations[0]),))
    documents = evidence.build(empty, volumes, context)
    gate.check(documents, empty, volumes, context)
    assert kinds(documents) == ["SC", "SR"]


@pytest.mark.parametrize(("known", "own", "above"), [(None, 3, 900_000), (37870, 11, 37870), (0, 12, 9000)])
def test_series_numbers_are_above_those_of_the_images(film: Inputs, known: int | None, own: int, above: int) -> None:
    reading, volumes, context = film
    context = replace(changed(context, SeriesNumber=own), highest_series_number=known)
    numbers = [d.dataset.SeriesNumber for d in evidence.build(reading, volumes, context)]
    assert min(numbers) > above
    assert max(numbers) < above + 2000
    assert len(set(numbers)) == 3


def test_patient_and_study_are_copied_exactly_and_type_2_attributes_are_there(film: Inputs) -> None:
    reading, volumes, context = film
    changed(context, IssuerOfPatientID="Hospital A", PatientAge="041Y", AccessionNumber="A1", StudyDescription="Chest")
    ds = pydicom.dcmread(context.sources[0])
    for keyword in ("StudyID", "PatientBirthDate"):
        ds.pop(keyword, None)
    ds.save_as(context.sources[0])
    for document in evidence.build(reading, volumes, context):
        ours = document.dataset
        assert (ours.IssuerOfPatientID, ours.PatientAge, ours.AccessionNumber) == ("Hospital A", "041Y", "A1")
        assert ours.StudyDescription == "Chest"
        assert "StudyID" in ours
        assert "PatientBirthDate" in ours


@pytest.mark.filterwarnings("ignore")
def test_an_illegal_age_is_left_out(film: Inputs) -> None:
    reading, volumes, context = film
    documents = evidence.build(reading, volumes, changed(context, PatientAge="81"))
    assert all("PatientAge" not in document.dataset for document in documents)


def test_iso_2022_becomes_utf_8_and_single_character_sets_stay(film: Inputs) -> None:
    reading, volumes, context = film
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    context = changed(context, SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name)
    for document in evidence.build(reading, volumes, context):
        read = reread(document)
        assert read.SpecificCharacterSet == "ISO_IR 192"
        assert str(read.PatientName) == name
    context = changed(context, SpecificCharacterSet="ISO_IR 100", PatientName="Äneas^Rüdiger")
    for document in evidence.build(reading, volumes, context):
        read = reread(document)
        assert read.SpecificCharacterSet == "ISO_IR 100"
        assert str(read.PatientName) == "Äneas^Rüdiger"


def test_text_of_a_bundle_that_is_not_ascii_makes_the_objects_utf_8(film: Inputs) -> None:
    reading, volumes, context = film
    changed(context, SpecificCharacterSet="ISO_IR 100", PatientName="Äneas^Rüdiger")
    segment = replace(reading.segmentations[0].segments[0], label="Płuca")
    segmentation = replace(reading.segmentations[0], segments=(segment,))
    polish = replace(reading, segmentations=(segmentation,))
    documents = evidence.build(polish, volumes, context)
    gate.check(documents, polish, volumes, context)
    seg = reread(documents[0])
    assert seg.SpecificCharacterSet == "ISO_IR 192"
    assert seg.SegmentSequence[0].SegmentLabel == "Płuca"
    assert str(seg.PatientName) == "Äneas^Rüdiger"


def test_times_are_the_readings_in_the_studys_zone(film: Inputs) -> None:
    reading, volumes, context = film
    late = replace(reading, started=datetime(2026, 3, 4, 23, 30, tzinfo=UTC))
    for document in evidence.build(late, volumes, changed(context, TimezoneOffsetFromUTC="+0530")):
        ds = document.dataset
        assert ds.TimezoneOffsetFromUTC == "+0530"
        assert (ds.ContentDate, ds.ContentTime[:4]) == ("20260305", "0500")
        assert ds.InstanceCreationDate == ds.SeriesDate == ds.ContentDate


def test_the_node_is_the_equipment_and_the_model_has_contributed(film: Inputs) -> None:
    reading, volumes, context = film
    node = NodeIdentity(ae_title="NODE1", station_name="BASEMENT", version="9.9")
    for document in evidence.build(reading, volumes, replace(context, node=node)):
        ds = document.dataset
        assert (ds.Manufacturer, ds.ManufacturerModelName) == ("wetread", "wetread")
        assert (ds.DeviceSerialNumber, ds.SoftwareVersions, ds.StationName) == ("NODE1", "9.9", "BASEMENT")
        assert ds.ContributingEquipmentSequence[-1].DeviceUID == reading.algorithm.device_uid
        assert ds.InstanceCreatorUID == uids.INSTANCE_CREATOR_UID
        assert ds.file_meta.ImplementationClassUID == uids.IMPLEMENTATION_CLASS_UID
        assert len(ds.SeriesDescription) <= 28


def test_headers_that_allow_no_object_are_named(volume: Inputs) -> None:
    reading, volumes, context = volume
    ds = pydicom.dcmread(context.sources[3])
    ds.FrameOfReferenceUID = "1.2.3"
    ds.save_as(context.sources[3])
    with pytest.raises(NonConformant, match="Nothing was filed"):
        evidence.build(reading, volumes, context)


def test_a_mask_larger_than_its_image_is_never_written(film: Inputs) -> None:
    reading, volumes, context = film
    labels: NDArray[np.uint8] = np.ones((1, 128, 128), np.uint8)
    wrong = replace(reading, segmentations=(replace(reading.segmentations[0], labels=labels),))
    with pytest.raises(NonConformant):
        gate.check(evidence.build(wrong, volumes, context), wrong, volumes, context)


def reread(document: EvidenceDocument) -> Dataset:
    return pydicom.dcmread(pydicom.filebase.DicomBytesIO(evidence.to_bytes(document)))
