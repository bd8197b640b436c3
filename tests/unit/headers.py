"""Part 10 files without pixels: all that completing and routing look at."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from node.bundles import Bundle, DicomConfig
from node.store.spool import Spool, Stored, digest
from node.store.studies import Received
from node.study import Instance, Series, Study, group, read_instance


def header(**keywords: Any) -> Dataset:
    """An MR image of its own study unless `keywords` say otherwise."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.Modality, ds.Rows, ds.Columns = "MR", 64, 64
    for keyword, value in keywords.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def part10(ds: Dataset, ae_title: str = "SCANNER") -> bytes:
    """The Part 10 file of `ds` (PS3.10 §7.1)."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.SourceApplicationEntityTitle = ae_title
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def store(spool: Spool, ds: Dataset) -> Stored:
    """Put `ds` into the spool as the listener does, without telling the database."""
    data = part10(ds)
    split = 144 + int.from_bytes(data[140:144], "little")
    return spool.store_instance(data[:split], data[split:], digest(data[split:]))


def received(spool: Spool, ds: Dataset, at: float = 1000.0) -> Received:
    """Put `ds` into the spool and return the row that the listener would register."""
    stored = store(spool, ds)
    return Received(
        sop_instance_uid=ds.SOPInstanceUID,
        sop_class_uid=ds.SOPClassUID,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        study_instance_uid=ds.StudyInstanceUID,
        series_instance_uid=ds.SeriesInstanceUID,
        sha256=stored.sha256,
        path=stored.path,
        size=stored.size,
        calling_ae="SCANNER",
        is_own_result=False,
        received_at=at,
    )


def series_of(folder: Path, count: int, **keywords: Any) -> Series:
    """A series of `count` images, read back from files."""
    shared = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": generate_uid(), **keywords}
    instances: list[Instance] = []
    for number in range(1, count + 1):
        path = folder / f"{generate_uid()}.dcm"
        path.write_bytes(part10(header(**shared, InstanceNumber=number)))
        instances.append(read_instance(path))
    return group(instances)[0].series[0]


def study_of(*series: Series) -> Study:
    """The study that these series make up."""
    return Study("1.2.3", series)


def bundle(name: str = "one", dimensions: int = 3, **config: Any) -> Bundle:
    """A bundle that exists in memory only; enough for whoever does not run it."""
    dicom = {"label": name, "kind": "segmentation", "manufacturer": "wetread", "series": {}} | config
    return Bundle(
        name=name,
        version="1.0.0",
        folder=Path("/nonexistent") / name,
        dicom=DicomConfig.model_validate(dicom | {"dimensions": dimensions}),
        metadata={},
    )
