"""What all Evidence Documents of one reading share: UIDs, times, equipment, patient and study."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cached_property

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from node import codes, uids
from node.codes import Code
from node.findings import Box, Reading, Source, Volume
from workers.report import sources
from workers.report.context import MANUFACTURER, Context, ResultKind

_SERIES_OFFSET: dict[ResultKind, int] = {"SEG": 1, "SR": 2, "SC": 4, "SALIENCY": 5, "PM": 6}
_SERIES_TITLE: dict[ResultKind, str] = {
    "SEG": "SEG",
    "SR": "SR",
    "SC": "key image",
    "SALIENCY": "saliency map",
    "PM": "map",
}
_KNOWN_BASE, _UNKNOWN_BASE = 9000, 900_000
"""First series number of ours; the second where nobody told us the other series of the study."""


@dataclass(frozen=True)
class Run:
    """One reading on its way into objects; `headers` are the source images in the order of `context.sources`."""

    reading: Reading
    context: Context
    headers: tuple[Dataset, ...]

    @property
    def first(self) -> Dataset:
        """The first source image; patient and study are copied from it."""
        return self.headers[0]

    @cached_property
    def inherited(self) -> Dataset:
        """Patient, study and character set; UTF-8 as soon as any text of ours is not ASCII."""
        return sources.inherit(self.first, to_utf_8=not all(text.isascii() for text in _our_texts(self.reading)))

    @cached_property
    def by_uid(self) -> dict[str, Dataset]:
        """Source headers by SOP Instance UID."""
        return {str(header.SOPInstanceUID): header for header in self.headers}

    def header(self, source: Source) -> Dataset:
        """Return the header of the image that `source` names."""
        return self.by_uid[source.sop_instance_uid]

    @property
    def study_instance_uid(self) -> str:
        """Study Instance UID of the sources."""
        return str(self.first.StudyInstanceUID)

    @property
    def series_instance_uid(self) -> str:
        """Series Instance UID of the sources."""
        return str(self.first.SeriesInstanceUID)

    def uid(self, kind: str, ordinal: int, role: str) -> str:
        """Return the UID of one of our objects: same study, series, input and model, same UID."""
        device = self.reading.algorithm.device_uid
        parts = (self.study_instance_uid, self.series_instance_uid, self.context.key, device, kind, str(ordinal), role)
        return uids.derive_uid(*parts)

    def tracking_uid(self, label: str, volume: Volume) -> str:
        """Return the Tracking UID of one finding or segment: the same when the volume, or the one image, is read again.

        What is said of another image, or another frame, is another thing: viewers merge what has the same UID.
        """
        where = "" if len(volume.sources) > 1 else _place(volume.sources[0])
        name = self.reading.algorithm.name
        return uids.derive_uid("tracking", self.study_instance_uid, self.series_instance_uid, where, name, label)

    def tracking_uid_of(self, source: Source) -> str:
        """Return the Tracking UID of what is said of one image as a whole."""
        name = self.reading.algorithm.name
        where = (source.sop_instance_uid, str(source.frame_number or ""))
        return uids.derive_uid("tracking", self.study_instance_uid, self.series_instance_uid, *where, name, "declined")

    def box_uid(self, label: str, box: Box) -> str:
        """Return the Tracking UID of one box: the same when the same box is found again, and no other box's."""
        where = f"{box.left:.1f} {box.top:.1f} {box.right:.1f} {box.bottom:.1f} {box.source.frame_number}"
        name = self.reading.algorithm.name
        return uids.derive_uid("box", self.study_instance_uid, box.source.sop_instance_uid, where, name, label)

    def series_number(self, kind: ResultKind) -> int:
        """Return a Series Number above those of the images, in a block of ten that belongs to the model."""
        known = self.context.highest_series_number
        own = [int(header.get("SeriesNumber") or 0) for header in self.headers]
        base = max(_UNKNOWN_BASE if known is None else _KNOWN_BASE, -(-max(*own, known or 0, 0) // 1000) * 1000)
        block = int(self.reading.algorithm.device_uid.rsplit(".", 1)[-1]) % 90
        return base + 10 * block + _SERIES_OFFSET[kind]

    @cached_property
    def started(self) -> datetime:
        """When the reading started, in the study's own zone where it names one (0008,0201), else in the node's."""
        moment = self.reading.started
        offset = str(self.first.get("TimezoneOffsetFromUTC") or "")
        if len(offset) != 5:
            return moment.astimezone() if moment.tzinfo else moment
        sign = -1 if offset[0] == "-" else 1
        return moment.astimezone(timezone(sign * timedelta(hours=int(offset[1:3]), minutes=int(offset[3:5]))))

    @property
    def is_lossy(self) -> bool:
        """Whether any source image was ever compressed with loss."""
        return any(sources.is_lossy(header) for header in self.headers)


def finish(ds: Dataset, run: Run, kind: ResultKind, ordinal: int) -> Dataset:
    """Give `ds` everything that all our objects share, in place; return it.

    Overwrites what a library put there by the clock or at random: the same reading gives the same bytes.
    """
    _series_and_instance(ds, run, kind, ordinal)
    _times(ds, run)
    _general_equipment(ds, run)
    ds.ContributingEquipmentSequence = list(_contributing_equipment(run))
    for element in run.inherited:
        ds.add(element)
    if run.first.get("TimezoneOffsetFromUTC"):
        ds.TimezoneOffsetFromUTC = run.first.TimezoneOffsetFromUTC
    if uses_private_codes(ds):
        ds.CodingSchemeIdentificationSequence = [_private_scheme()]
    ds.file_meta = _file_meta(ds)
    return ds


def coded(code: Code) -> Dataset:
    """Return one item of a code sequence (PS3.3 §8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item


def uses_private_codes(ds: Dataset) -> bool:
    """Say whether any code in `ds`, however deep, is of our own coding scheme."""
    return any(e.keyword == "CodingSchemeDesignator" and e.value == codes.PRIVATE_SCHEME for e in ds.iterall())


def _series_and_instance(ds: Dataset, run: Run, kind: ResultKind, ordinal: int) -> None:
    shared_series = kind in ("SC", "SALIENCY")  # captures of several films are pages of one series
    ds.SOPInstanceUID = run.uid(kind, ordinal, "instance")
    ds.SeriesInstanceUID = run.uid(kind, 0 if shared_series else ordinal, "series")
    ds.SeriesNumber = run.series_number(kind)
    ds.InstanceNumber = ordinal + 1 if shared_series else 1
    several = f" {ordinal + 1}" if _number_of(run.reading, kind) > 1 else ""
    superseding = ", supersedes earlier" if run.context.predecessors else ""
    ds.SeriesDescription = f"AI {run.reading.algorithm.label[:15]} {_SERIES_TITLE[kind]}{several}{superseding}"
    ds.InstanceCreatorUID = uids.INSTANCE_CREATOR_UID


def _number_of(reading: Reading, kind: ResultKind) -> int:
    """Return how many series of a kind there may be."""
    return {"SEG": len(reading.segmentations), "PM": len(reading.maps)}.get(kind, 1)


def _times(ds: Dataset, run: Run) -> None:
    date, time = run.started.strftime("%Y%m%d"), run.started.strftime("%H%M%S.%f")
    ds.InstanceCreationDate = ds.SeriesDate = ds.ContentDate = date
    ds.InstanceCreationTime = ds.SeriesTime = ds.ContentTime = time


def _general_equipment(ds: Dataset, run: Run) -> None:
    """The node, not the model (PS3.3 §C.7.5.1); Device UID stays out, in an SR it would mean the observer."""
    node = run.context.node
    ds.Manufacturer, ds.ManufacturerModelName = MANUFACTURER, MANUFACTURER
    ds.DeviceSerialNumber, ds.SoftwareVersions = node.serial_number, node.version
    if node.station_name:
        ds.StationName = node.station_name


def _contributing_equipment(run: Run) -> Iterator[Dataset]:
    """The modality that made the images, and the model that read them (IHE RAD AIR §6.5.3.1)."""
    if run.first.get("Manufacturer") and str(run.first.Manufacturer).isascii():
        modality = Dataset()
        modality.PurposeOfReferenceCodeSequence = [coded(codes.ACQUISITION_EQUIPMENT)]
        modality.Manufacturer = run.first.Manufacturer
        yield modality
    algorithm = run.reading.algorithm
    model = Dataset()
    model.PurposeOfReferenceCodeSequence = [coded(codes.PROCESSING_EQUIPMENT)]
    model.Manufacturer, model.ManufacturerModelName = algorithm.manufacturer, algorithm.name
    model.SoftwareVersions, model.DeviceUID = algorithm.version, algorithm.device_uid
    model.ContributionDateTime = run.started.strftime("%Y%m%d%H%M%S.%f")
    model.ContributionDescription = f"weights sha256 {algorithm.weights_sha256}"
    yield model


def _private_scheme() -> Dataset:
    """The declaration that private codes need (0008,0110)."""
    item = Dataset()
    item.CodingSchemeDesignator, item.CodingSchemeName = codes.PRIVATE_SCHEME, "wetread private codes"
    item.CodingSchemeUID = uids.derive_uid("coding scheme", codes.PRIVATE_SCHEME)
    item.CodingSchemeResponsibleOrganization = MANUFACTURER
    return item


def _file_meta(ds: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(uids.IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = uids.IMPLEMENTATION_VERSION_NAME
    return meta


def _place(source: Source) -> str:
    return f"{source.sop_instance_uid} {source.frame_number or ''}".rstrip()


def _our_texts(reading: Reading) -> Iterable[str]:
    algorithm = reading.algorithm
    yield from (algorithm.name, algorithm.version, algorithm.label, algorithm.manufacturer, *algorithm.parameters)
    yield from reading.remarks
    for finding in reading.findings:
        yield from (finding.label, finding.type.meaning, finding.site.meaning if finding.site else "")
    for detection in reading.detections:
        yield from (detection.label, detection.type.meaning, detection.site.meaning if detection.site else "")
    for segmentation in reading.segmentations:
        for segment in segmentation.segments:
            modifier = segment.type_modifier.meaning if segment.type_modifier else ""
            yield from (segment.label, segment.category.meaning, segment.type.meaning, modifier)
