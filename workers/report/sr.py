"""Comprehensive 3D SR (PS3.3 §A.35.13) by TID 1500: what the reading says, for people and for computers.

Never FINAL, never VERIFIED: no human has seen it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from highdicom import sr
from pydicom import Dataset

from node import codes
from node.codes import Code
from node.findings import Volume
from workers.report import sources
from workers.report.boxes import detection_groups
from workers.report.groups import Group, Stack, coded, declined_group, finding_group, segment_groups
from workers.report.run import Run, finish

_MEANINGS = {(code.value, code.scheme): code.meaning for code in codes.ALL}
_PROCEDURES = {"CT": codes.CT_PROCEDURE, "MR": codes.MR_PROCEDURE}


def build(run: Run, volumes: Sequence[Volume], segs: Sequence[Dataset | None], captures: Sequence[Dataset]) -> Dataset:
    """Return the one SR of a reading; `segs[i]` is the SEG of `run.reading.segmentations[i]`, None where empty."""
    report = sr.MeasurementReport(
        observation_context=_observer(run),
        procedure_reported=coded(procedure_reported(run)),
        imaging_measurements=list(_groups(run, volumes, segs)),
        title=coded(codes.REPORT_TITLE),
    )
    created = [ds for ds in (*segs, *captures) if ds is not None]
    images = [sources.without_quirks(header, is_projection=False) for header in run.headers]
    ds = sr.Comprehensive3DSR(
        evidence=[*images, *created],
        content=report[0],
        series_instance_uid=run.uid("SR", 0, "series"),
        series_number=1,
        sop_instance_uid=run.uid("SR", 0, "instance"),
        instance_number=1,
        manufacturer="wetread",
        is_complete=True,
        is_final=False,
        is_verified=False,
        record_evidence=False,
        specific_character_set=run.inherited.get("SpecificCharacterSet"),
    )
    ds.CurrentRequestedProcedureEvidenceSequence = evidence([*run.headers, *created])
    _predecessors(ds, run)
    _requests(ds, run)
    _remarks(ds, run)
    _house_style(ds)
    return finish(ds, run, "SR", 0)


def evidence(instances: Iterable[Dataset]) -> list[Dataset]:
    """Return `instances` as a hierarchical SOP Instance Reference (PS3.3 §C.17.2.1), in the given order."""
    tree: dict[str, dict[str, list[Dataset]]] = {}
    for instance in instances:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = instance.SOPClassUID, instance.SOPInstanceUID
        series = tree.setdefault(instance.StudyInstanceUID, {}).setdefault(instance.SeriesInstanceUID, [])
        series.append(item)
    return [_study_reference(study, series) for study, series in tree.items()]


def procedure_reported(run: Run) -> Code:
    """Return the imaging procedure: the study's own code where its scheme is a public one, else CID 100."""
    for item in run.inherited.get("ProcedureCodeSequence") or ():
        code = Code(*(str(item.get(k, "")) for k in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")))
        if code.scheme in {"SCT", "LN"} and code.value and code.meaning:
            return code
    return _PROCEDURES.get(str(run.first.get("Modality")), codes.IMAGING_PROCEDURE)


def _observer(run: Run) -> sr.ObservationContext:
    """TID 1004: the model is the observer, and the only one."""
    algorithm = run.reading.algorithm
    attributes = sr.DeviceObserverIdentifyingAttributes(
        uid=algorithm.device_uid, manufacturer_name=algorithm.manufacturer, model_name=algorithm.name
    )
    device = sr.ObserverContext(
        observer_type=sr.CodedConcept.from_code(coded(codes.DEVICE)), observer_identifying_attributes=attributes
    )
    return sr.ObservationContext(observer_device_context=device)


def _groups(run: Run, volumes: Sequence[Volume], segs: Sequence[Dataset | None]) -> Iterator[Group]:
    """Yield the groups, most probable finding first; absent findings have theirs too."""
    stack = Stack()
    for finding in sorted(run.reading.findings, key=lambda f: -f.probability):
        yield finding_group(run, finding, next(v for v in volumes if finding.source in v.sources), stack)
    for declined in run.reading.declined:
        yield declined_group(run, declined, stack)
    for detection in run.reading.detections:
        volume = next(v for v in volumes if detection.source in v.sources)
        yield from detection_groups(run, detection, volume, stack)
    for segmentation, document in zip(run.reading.segmentations, segs, strict=True):
        volume = next(v for v in volumes if segmentation.sources[0] in v.sources)
        yield from segment_groups(run, segmentation, volume, document, stack)


def _study_reference(study_instance_uid: str, series: dict[str, list[Dataset]]) -> Dataset:
    study = Dataset()
    study.StudyInstanceUID = study_instance_uid
    study.ReferencedSeriesSequence = []
    for series_instance_uid, items in series.items():
        entry = Dataset()
        entry.SeriesInstanceUID, entry.ReferencedSOPSequence = series_instance_uid, items
        study.ReferencedSeriesSequence.append(entry)
    return study


def _predecessors(ds: Dataset, run: Run) -> None:
    """Name the reports this one supersedes (0040,A360)."""
    if run.context.predecessors:
        ds.PredecessorDocumentsSequence = evidence(sources.read_headers(run.context.predecessors))


def _requests(ds: Dataset, run: Run) -> None:
    """Copy the requests the images answer into Referenced Request Sequence (0040,A370)."""
    requests = []
    for attributes in run.first.get("RequestAttributesSequence") or ():
        request = Dataset()
        request.StudyInstanceUID, request.ReferencedStudySequence = run.study_instance_uid, []
        request.AccessionNumber = attributes.get("AccessionNumber") or run.inherited.AccessionNumber
        request.PlacerOrderNumberImagingServiceRequest = request.FillerOrderNumberImagingServiceRequest = None
        request.RequestedProcedureID = attributes.get("RequestedProcedureID")
        request.RequestedProcedureDescription = attributes.get("RequestedProcedureDescription")
        request.RequestedProcedureCodeSequence = []
        requests.append(request)
    if requests:
        ds.ReferencedRequestSequence = requests


def _remarks(ds: Dataset, run: Run) -> None:
    """Add what the reading remarks, as Comments of the root; TID 1500 is extensible."""
    for remark in run.reading.remarks:
        item = sr.TextContentItem(name=coded(codes.COMMENT), value=remark, relationship_type="CONTAINS")
        ds.ContentSequence.append(item)


def _house_style(item: Dataset) -> None:
    """Make every container SEPARATE and spell concept names as PS3.16 does, which the library does not.

    Renderers print no names in a CONTINUOUS container: it would read "91 %" of nothing.
    """
    if item.get("ValueType") == "CONTAINER":
        item.ContinuityOfContent = "SEPARATE"
    for name in item.get("ConceptNameCodeSequence", ()):
        name.CodeMeaning = _MEANINGS.get((name.CodeValue, name.CodingSchemeDesignator), name.CodeMeaning)
    for child in item.get("ContentSequence", ()):
        _house_style(child)
