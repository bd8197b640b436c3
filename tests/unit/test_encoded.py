"""Sequences are read from their bytes as pydicom reads them."""

from __future__ import annotations

from io import BytesIO

import pydicom
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from workers.report import encoded

GROUPS = "PerFrameFunctionalGroupsSequence"


def groups(has_no_length: bool) -> Dataset:
    """A Data Set with two frames; sequences and items with lengths, or with delimiters."""
    frames = []
    for number in (1, 2):
        content, place, image, group = Dataset(), Dataset(), Dataset(), Dataset()
        content.DimensionIndexValues = [number, 70_000]
        place.ImagePositionPatient = [-1.5, 2, number]
        image.ReferencedSOPInstanceUID, image.ReferencedFrameNumber = f"1.2.{number}", number
        image.PurposeOfReferenceCodeSequence = Sequence()
        group.add_new("FrameContentSequence", "SQ", [content])
        group.PlanePositionSequence = [place]
        group.DerivationImageSequence = [Dataset()]
        group.DerivationImageSequence[0].SourceImageSequence = [image]
        group.FrameComments = "Größe"
        for owner in (group, group.DerivationImageSequence[0]):
            for element in owner:
                element.is_undefined_length = has_no_length and element.VR == "SQ"
        for item in (group, content, place, image):
            item.is_undefined_length_sequence_item = has_no_length
        frames.append(group)
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PerFrameFunctionalGroupsSequence = frames
    ds[GROUPS].is_undefined_length = has_no_length
    return ds


@pytest.mark.parametrize("has_no_length", [False, True])
@pytest.mark.parametrize("is_looked_into", [False, True])
def test_every_element_is_found(has_no_length: bool, is_looked_into: bool) -> None:
    ds = groups(has_no_length)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    ds.save_as(buffer, implicit_vr=False, little_endian=True)
    read = pydicom.dcmread(BytesIO(buffer.getvalue()), force=True)
    if is_looked_into:
        assert len(read[GROUPS].value) == 2
    first, second = encoded.sequence(read, GROUPS)
    image = second.items("DerivationImageSequence")[0].items("SourceImageSequence")[0]
    assert (image.text("ReferencedSOPInstanceUID"), image.text("ReferencedFrameNumber")) == ("1.2.2", "2")
    assert image.items("PurposeOfReferenceCodeSequence") == []
    assert first.items("FrameContentSequence")[0].numbers("DimensionIndexValues", "L") == (1, 70_000)
    assert [*map(float, first.items("PlanePositionSequence")[0].text("ImagePositionPatient").split("\\"))] == [
        -1.5,
        2,
        1,
    ]
    assert first.text("FrameComments") == "Größe"
    assert len(first.sequences()) == 3
    assert (first.text("CodeValue"), first.items("SourceImageSequence"), first.numbers("Rows", "H")) == ("", [], ())
    assert encoded.sequence(read, "SharedFunctionalGroupsSequence") == []


def test_what_is_no_item_is_refused() -> None:
    ds = groups(has_no_length=False)
    raw = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(GROUPS), "SQ", 8, b"\x20\0\x11\x91\0\0\0\0", 0, False, True)
    ds[GROUPS] = raw
    with pytest.raises(ValueError, match=r"an item was expected where \(0020,9111\) stands"):
        encoded.sequence(ds, GROUPS)
