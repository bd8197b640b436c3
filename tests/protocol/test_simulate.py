"""The simulated modality and the simulated PACS meet over real associations."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, AllStoragePresentationContexts

from node.simulate.faults import Fault
from node.simulate.pacs import Pacs
from node.simulate.scanner import NoAssociation, echo, scan, send

SC = "1.2.840.10008.5.1.4.1.1.7"


def film(sop_class: str = SC, syntax: str = ExplicitVRLittleEndian, number: int = 1) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.InstanceNumber = number
    ds.PatientName = "SYNTHETIC^TEST"
    return ds


def encoded(path: Path) -> bytes:
    """The data set's bytes of a Part 10 file."""
    from pynetdicom.dsutils import split_dataset

    return path.read_bytes()[split_dataset(path)[1] :]


def test_echo_answers_0000(tmp_path: Path) -> None:
    with Pacs(tmp_path) as pacs:
        assert echo("127.0.0.1", pacs.port, called="SIM_PACS") == 0x0000


def test_echo_to_nobody_says_so(tmp_path: Path) -> None:
    with Pacs(tmp_path) as pacs:
        port = pacs.port
    with pytest.raises(NoAssociation, match="does not answer"):
        echo("127.0.0.1", port, called="SIM_PACS", timeout=2)


def test_wrong_called_ae_is_rejected_with_the_reason(tmp_path: Path) -> None:
    with Pacs(tmp_path) as pacs, pytest.raises(NoAssociation, match=r"result 1, source 1, reason 7"):
        echo("127.0.0.1", pacs.port, called="SOMEBODY")


def test_bytes_arrive_as_they_lie_in_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for number, syntax in enumerate([ExplicitVRLittleEndian, ImplicitVRLittleEndian] * 3):
        film(syntax=syntax, number=number).save_as(folder / f"{number}.dcm", enforce_file_format=True)
    (folder / "notes.txt").write_text("no DICOM")
    with Pacs(tmp_path / "pacs") as pacs:
        report = send(folder, "127.0.0.1", pacs.port, called="SIM_PACS")
        assert report.ok
        assert len(report.sent) == 6
        assert report.left_out == ("notes.txt: not a Part 10 file (InvalidDicomError)",)
        expected = {hashlib.sha256(encoded(p)).hexdigest() for p in folder.glob("*.dcm")}
        assert {held.sha256 for held in pacs.held.values()} == expected


def test_data_sets_can_be_pushed_without_files(tmp_path: Path) -> None:
    ds = film()
    with Pacs(tmp_path) as pacs:
        seen = []
        assert send([ds], "127.0.0.1", pacs.port, called="SIM_PACS", on_sent=seen.append).ok
        assert [one.status for one in seen] == [0x0000]
        assert pydicom.dcmread(pacs.held[ds.SOPInstanceUID].path).PatientName == "SYNTHETIC^TEST"


def test_a_lost_association_costs_one_instance_only(tmp_path: Path) -> None:
    films = [film(number=n) for n in range(3)]
    fault = Fault("drop", sop_instance_uid=str(films[1].SOPInstanceUID), keep=False)
    with Pacs(tmp_path, faults=[fault]) as pacs:
        report = send(films, "127.0.0.1", pacs.port, called="SIM_PACS", timeout=5)
    assert [sent.status for sent in report.sent] == [0, None, 0]
    assert "no answer" in report.refused[0].note


def test_more_than_128_contexts_need_a_second_association(tmp_path: Path) -> None:
    classes = [str(cx.abstract_syntax) for cx in AllStoragePresentationContexts[:130]]
    with Pacs(tmp_path) as pacs:
        report = send([film(sop_class=uid) for uid in classes], "127.0.0.1", pacs.port, called="SIM_PACS")
        assert report.ok
        assert pacs.contexts_offered == [128, 2]


def test_a_refused_sop_class_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    mr = "1.2.840.10008.5.1.4.1.1.4"
    with Pacs(tmp_path, refuse=[mr]) as pacs:
        report = send([film(sop_class=mr), film()], "127.0.0.1", pacs.port, called="SIM_PACS")
    assert [sent.status for sent in report.sent] == [None, 0]
    assert "no Presentation Context" in report.refused[0].note


def test_the_ledger_survives_a_restart_and_the_first_object_stays(tmp_path: Path) -> None:
    first = film()
    second = film()
    second.SOPInstanceUID = first.SOPInstanceUID
    with Pacs(tmp_path) as pacs:
        assert send([first], "127.0.0.1", pacs.port, called="SIM_PACS").ok
        kept = pacs.held[first.SOPInstanceUID].sha256
    with Pacs(tmp_path) as pacs:
        assert pacs.held[first.SOPInstanceUID].sha256 == kept
        assert send([second], "127.0.0.1", pacs.port, called="SIM_PACS").ok
        assert pacs.held[first.SOPInstanceUID].sha256 == kept
        assert len({entry.sha256 for entry in pacs.receptions(first.SOPInstanceUID)}) == 2


def test_it_says_that_it_is_a_simulator(tmp_path: Path) -> None:
    ae = AE("ANYONE")
    ae.add_requested_context("1.2.840.10008.1.1")
    with Pacs(tmp_path) as pacs:
        assoc = ae.associate("127.0.0.1", pacs.port, ae_title="SIM_PACS")
        assert "SIM" in str(assoc.acceptor.implementation_version_name)
        assoc.release()


def test_every_file_of_the_odd_collection_is_sent_or_named(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "dicom" / "nonimage_and_odd"
    items, left_out = scan(folder)
    with Pacs(tmp_path) as pacs:
        report = send(folder, "127.0.0.1", pacs.port, called="SIM_PACS", timeout=10)
        assert len(report.sent) + len(left_out) == sum(1 for p in folder.rglob("*") if p.is_file())
        assert report.left_out == left_out
        for sent, item in zip(report.sent, items, strict=True):
            if sent.ok and encoded(item.path):
                digests = {entry.sha256 for entry in pacs.receptions(sent.sop_instance_uid)}
                assert hashlib.sha256(encoded(item.path)).hexdigest() in digests
