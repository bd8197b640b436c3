"""Rules for every Evidence Document: whose it is, who made it, and that it says so in codes we know."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from pydicom import Dataset

from node import codes, uids
from node.codes import Code
from workers.report import encoded
from workers.report.case import Case, Rule
from workers.report.sources import PATIENT_AND_STUDY, is_lossy

_OURS = re.compile(r"2\.25\.(0|[1-9][0-9]*)")
PER_FRAME = 0x52009230
"""Per-Frame Functional Groups Sequence: of a SEG or a map as many items as frames."""
_LEFT_OUT_IF_ILLEGAL = frozenset({"PatientAge"})


def _patient_and_study(case: Case) -> Iterator[str]:
    for document in case.documents:
        for keyword in PATIENT_AND_STUDY:
            if keyword in _LEFT_OUT_IF_ILLEGAL:
                continue
            ours, theirs = document.dataset.get(keyword), case.headers[0].get(keyword)
            if _text(ours) != _text(theirs):
                yield f"{keyword} of the {document.kind} is not the source's"


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _series(case: Case) -> Iterator[str]:
    theirs = {str(header.SeriesInstanceUID) for header in case.headers}
    kinds: dict[str, str] = {}
    for document in case.documents:
        uid = document.series_instance_uid
        if uid in theirs:
            yield f"the {document.kind} is in the images' own series"
        if kinds.setdefault(uid, document.kind) != document.kind:
            yield f"series {uid} has results of two kinds"
        highest = max(*(int(h.get("SeriesNumber") or 0) for h in case.headers), case.context.highest_series_number or 0)
        if document.dataset.SeriesNumber <= highest:
            yield f"Series Number {document.dataset.SeriesNumber} of the {document.kind} is not above {highest}"


def _time_zone(case: Case) -> Iterator[str]:
    wanted = case.headers[0].get("TimezoneOffsetFromUTC")
    for document in case.documents:
        if wanted and document.dataset.get("TimezoneOffsetFromUTC") != wanted:
            yield f"the {document.kind} has not the source's offset {wanted}"


def _our_uids(case: Case) -> Iterator[str]:
    seen: set[str] = set()
    for document in case.documents:
        ds = document.dataset
        for uid in (ds.SOPInstanceUID, ds.SeriesInstanceUID, case.reading.algorithm.device_uid, ds.InstanceCreatorUID):
            if not _OURS.fullmatch(uid) or len(uid) > 64:
                yield f"{uid} of the {document.kind} is not UUID-derived"
        if document.sop_instance_uid in seen:
            yield f"{document.sop_instance_uid} is there twice"
        seen.add(document.sop_instance_uid)


def _file_meta(case: Case) -> Iterator[str]:
    for document in case.documents:
        meta = document.dataset.file_meta
        if meta.ImplementationClassUID != uids.IMPLEMENTATION_CLASS_UID:
            yield f"Implementation Class UID of the {document.kind} is {meta.ImplementationClassUID}"
        if meta.ImplementationVersionName != uids.IMPLEMENTATION_VERSION_NAME:
            yield f"Implementation Version Name of the {document.kind} is {meta.ImplementationVersionName}"
        if meta.MediaStorageSOPInstanceUID != document.sop_instance_uid:
            yield f"the {document.kind}'s File Meta Information names another instance"


def model_item(ds: Dataset) -> Dataset | None:
    """Return the item of Contributing Equipment Sequence that describes the model."""
    for item in ds.get("ContributingEquipmentSequence") or ():
        if item.PurposeOfReferenceCodeSequence[0].CodeValue == codes.PROCESSING_EQUIPMENT.value:
            found: Dataset = item
            return found
    return None


def _model(case: Case) -> Iterator[str]:
    for document in case.documents:
        item = model_item(document.dataset)
        for keyword in ("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceUID"):
            if item is None or not item.get(keyword):
                yield f"the {document.kind} does not name the model's {keyword}"


def _lossy(case: Case) -> Iterator[str]:
    if not any(map(is_lossy, case.headers)):
        return
    for document in case.documents:
        if document.kind != "SR" and document.dataset.get("LossyImageCompression") != "01":
            yield f"the {document.kind} hides that its source was compressed with loss"


def _capture(case: Case) -> Iterator[str]:
    for ds in (*case.of_kind("SC"), *case.of_kind("SALIENCY")):
        if ds.get("BurnedInAnnotation") != "YES" or not ds.get("SourceImageSequence"):
            yield "a key image does not say that text is burned in, or of which image it is"


def _saliency(case: Case) -> Iterator[str]:
    drawn = [finding for finding in case.reading.findings if finding.saliency is not None]
    wanted, made = len(drawn) if "SALIENCY" in case.context.results else 0, len(case.of_kind("SALIENCY"))
    if made != wanted:
        yield f"there are {made} saliency maps of {wanted}"
    for finding in drawn:
        values = finding.saliency.values if finding.saliency else np.empty(0)
        grid = next(volume.pixels.shape for volume in case.volumes if finding.source in volume.sources)
        if values.shape != grid or not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            yield f"the saliency map of {finding.label} is not in 0..1 on the grid of its image"


def _our_codes(case: Case) -> Iterator[str]:
    known = codes.ALL | set(_bundle_codes(case))
    for document in case.documents:
        declared = {
            item.CodingSchemeDesignator for item in document.dataset.get("CodingSchemeIdentificationSequence") or ()
        }
        for code in _codes_in(document.dataset):
            if code.scheme not in codes.ALLOWED_SCHEMES:
                yield f"the {document.kind} uses the coding scheme {code.scheme} of {code.value}"
            if code not in known and not _is_procedure(case, code):
                yield f'({code.value}, {code.scheme}, "{code.meaning}") of the {document.kind} is in no table'
            if code.scheme == codes.PRIVATE_SCHEME and code.scheme not in declared:
                yield f"the {document.kind} uses {code.scheme} without declaring it"


def _bundle_codes(case: Case) -> Iterator[Code]:
    """Yield the codes the bundle brought along, and those derived from them."""
    for finding in case.reading.findings:
        yield finding.type
        yield codes.probability_of(finding.type, finding.label, calibrated=finding.calibrated)
        if finding.site:
            yield finding.site
    for detection in case.reading.detections:
        yield detection.type
        yield codes.number_of(detection.type, detection.label)
        yield codes.probability_of(detection.type, detection.label, calibrated=detection.calibrated)
        if detection.site:
            yield detection.site
    for segmentation in case.reading.segmentations:
        for segment in segmentation.segments:
            yield from (segment.category, segment.type)
            if segment.type_modifier:
                yield segment.type_modifier
            names = [m.name for m in segment.measurements] or [codes.AREA, codes.VOLUME]
            found = not segment.is_empty
            yield from (codes.measured_on(name, segment.type, segment.label, found=found) for name in names)
            for measurement in segment.measurements:
                yield from (measurement.name, measurement.unit)
                if measurement.method:
                    yield measurement.method


def _codes_in(ds: Dataset) -> Iterator[Code]:
    """Yield every code we wrote: not those of the patient and study modules, which are copies."""
    for tag in sorted(ds.keys()):
        if tag == PER_FRAME:
            yield from _codes_of_frames(ds)
            continue
        if ds.get_item(tag).VR not in {"SQ", None} or (element := ds[tag]).VR != "SQ":  # decode nothing else
            continue
        if element.keyword in PATIENT_AND_STUDY:
            continue
        for item in element.value:
            if "CodeValue" in item:
                yield Code(str(item.CodeValue), str(item.CodingSchemeDesignator), str(item.CodeMeaning))
            yield from _codes_in(item)


def _codes_of_frames(ds: Dataset) -> set[Code]:
    """Return the codes in the groups of all frames: the same few in thousands of items."""
    waiting, found = encoded.sequence(ds, "PerFrameFunctionalGroupsSequence"), set()
    while waiting:
        item = waiting.pop()
        if value := item.text("CodeValue"):
            found.add(Code(value, item.text("CodingSchemeDesignator"), item.text("CodeMeaning")))
        waiting += item.sequences()
    return found


def _is_procedure(case: Case, code: Code) -> bool:
    """Say whether `code` is the study's own Procedure Code, copied as Procedure reported."""
    items = case.headers[0].get("ProcedureCodeSequence") or ()
    return any((i.get("CodeValue"), i.get("CodingSchemeDesignator")) == (code.value, code.scheme) for i in items)


RULES = (
    Rule("35", "patient and study attributes equal the source's", _patient_and_study),
    Rule("36", "results are in series of their own, above the images", _series),
    Rule("37", "the time zone is the source's", _time_zone),
    Rule("38", "our UIDs are UUID-derived and unique", _our_uids),
    Rule("42", "File Meta Information is ours", _file_meta),
    Rule("8", "Contributing Equipment describes the model", _model),
    Rule("11-12", "every code is in the table, every private scheme declared", _our_codes),
    Rule("32", "lossy compression of a source is passed on", _lossy),
    Rule("SC", "a key image says what it is", _capture),
    Rule("SALIENCY", "a saliency map lies on its image, and each that was asked for is there", _saliency),
)
