"""Secondary Capture (PS3.3 §A.8.1): the key image with its findings drawn in, for viewers that know nothing else.

It is a picture, never the only carrier of a finding, and says on its face that it is not for diagnostic use.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from pydicom import Dataset

from node import codes
from node.findings import Detection, Finding, Segment, Segmentation, Source, Volume
from workers.report import groups, picture
from workers.report.picture import Line
from workers.report.run import Run, coded, finish

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
NOTICE = "AI result, not for diagnostic use"
_UNPAIRED = (
    "ABDOMEN ABDOMENPELVIS AORTA BACK BLADDER BRAIN CHEST CHESTABDOMEN CHESTABDPELVIS COLON COCCYX CSPINE CTSPINE "
    "ESOPHAGUS GALLBLADDER HEAD HEADNECK HEART JAW LARYNX LIVER LSPINE LSSPINE MAXILLA MEDIASTINUM MOUTH NECK "
    "NECKCHEST NOSE PANCREAS PELVIS PENIS PHARYNX PROSTATE RECTUM SCALP SKULL SPINE SPLEEN SSPINE STERNUM STOMACH "
    "THYMUS THYROID TLSPINE TONGUE TRACHEA TSPINE URETER URETHRA UTERUS VAGINA VULVA WHOLEBODY"
)
"""Body parts (PS3.16 Annex L) of which there is one: Laterality must be absent. Of others it must be there."""
_ABSENT = "#8d96a0"
_FINDING = "#ffb347"


def build(run: Run, volume: Volume, ordinal: int) -> Dataset:
    """Return the key image of one volume or film: its findings, and the slice on which the segments are largest."""
    findings = [finding for finding in run.reading.findings if finding.source in volume.sources]
    segmentation = next((s for s in run.reading.segmentations if s.sources[0] in volume.sources), None)
    detections = [detection for detection in run.reading.detections if detection.source in volume.sources]
    k = _slice_to_show(volume, segmentation, [*findings, *_best_first(detections)])
    lines = (*map(finding_line, findings), *map(_detection_line, detections), *_segment_lines(segmentation))
    rendered = picture.render(
        pixels=volume.pixels[k],
        pixel_aspect=pixel_aspect(volume),
        window=picture.window(volume.pixels),
        masks=[*_masks(segmentation, volume.sources[k]), *_boxes(detections, volume, k)],
        notice=NOTICE,
        caption=caption(run, volume, k),
        lines=lines,
    )
    return finish(capture(run, volume.sources[k], rendered, "Key image with AI findings drawn in."), run, "SC", ordinal)


def pixel_aspect(volume: Volume) -> float:
    """Return row spacing over column spacing, also where millimeters are not calibrated."""
    return volume.spacing_mm[1] / volume.spacing_mm[2] if volume.spacing_mm else volume.pixel_aspect


def _slice_to_show(volume: Volume, segmentation: Segmentation | None, findings: Sequence[Finding | Detection]) -> int:
    if segmentation is not None:
        return volume.sources.index(segmentation.sources[groups.key_slice(segmentation)])
    return volume.sources.index(findings[0].source) if findings else len(volume.sources) // 2


def caption(run: Run, volume: Volume, k: int) -> str:
    """Return the line that names the model and, of several images, which one this is."""
    algorithm = run.reading.algorithm
    return f"{algorithm.name} {algorithm.version}  ·  unverified{_which_image(run, volume, k)}"


def _which_image(run: Run, volume: Volume, k: int) -> str:
    """Name the slice as viewers do, by its Instance Number or frame; they may count positions the other way round."""
    if len(volume.sources) == 1:
        return ""
    source = volume.sources[k]
    if source.frame_number is not None:
        return f"  ·  frame {source.frame_number}"
    number = run.header(source).get("InstanceNumber")
    return f"  ·  image {number}" if number is not None else ""


def finding_line(finding: Finding) -> Line:
    """Return the line of the panel that tells a finding, its probability and its threshold."""
    noun = "probability" if finding.calibrated else "score"
    digits = groups.digits(finding)
    said, threshold = (groups.percent(part, digits) for part in (finding.probability, finding.threshold))
    values = f"{said:g} % {noun}, threshold {threshold:g} %"
    return Line(_FINDING if finding.present else _ABSENT, finding.label, values, solid=finding.present)


def _best_first(detections: Sequence[Detection]) -> list[Detection]:
    return sorted(detections, key=lambda detection: -max((box.score for box in detection.boxes), default=-1.0))


def _detection_line(detection: Detection) -> Line:
    """Return the line that tells how many of one thing were found, and the best of their scores."""
    noun = "probability" if detection.calibrated else "score"
    if not detection.boxes:
        return Line(_ABSENT, detection.label, f"none found, threshold {100 * detection.threshold:.3g} %", solid=False)
    best = groups.percent(detection.boxes[0].score)
    return Line(detection.color, detection.label, f"{len(detection.boxes)} found, at most {best:g} % {noun}")


def _boxes(detections: Sequence[Detection], volume: Volume, k: int) -> Iterator[picture.Mask]:
    """Yield the boxes that reach to slice `k`, as masks to be outlined."""
    for detection in detections:
        for box in detection.boxes:
            first, last = sorted(volume.sources.index(source) for source in (box.first, box.last))
            mask = np.zeros(volume.pixels.shape[1:], np.bool_)
            mask[int(box.top) : math.ceil(box.bottom), int(box.left) : math.ceil(box.right)] = True
            if first <= k <= last and mask.any():
                yield picture.Mask(mask, detection.color)


def _segment_lines(segmentation: Segmentation | None) -> Iterator[Line]:
    for segment in segmentation.segments if segmentation else ():
        yield Line(segment.color, segment.label, _values(segment), solid=not segment.is_empty)


def _values(segment: Segment) -> str:
    if segment.is_empty:
        return "absent"
    units = {codes.MILLILITER: "mL", codes.SQUARE_CENTIMETER: "cm2", codes.PIXELS: "pixels"}
    numbers = (f"{m.value:,.0f}" if m.unit == codes.PIXELS else f"{m.value:.3g}" for m in segment.measurements)
    named = [f"{n} {units.get(m.unit, m.unit.value)}" for n, m in zip(numbers, segment.measurements, strict=True)]
    return ", ".join(named) or "present"


def _masks(segmentation: Segmentation | None, source: Source) -> Iterator[picture.Mask]:
    if segmentation is None or source not in segmentation.sources:
        return
    k = segmentation.sources.index(source)
    for segment in segmentation.segments:
        mask = segmentation.mask_on(segment, k)
        if mask.any():
            yield picture.Mask(mask, segment.color)


def capture(run: Run, source: Source, rgb: picture.Pixels, description: str) -> Dataset:
    """Return the SC Image IOD around `rgb`, (row, column, 3) uint8; no spacing, because the picture was scaled."""
    header = run.header(source)
    ds = Dataset()
    ds.SOPClassUID, ds.Modality, ds.ConversionType = SECONDARY_CAPTURE, "OT", "DI"
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.BurnedInAnnotation = "YES"
    ds.DerivationDescription = f"{description} {NOTICE}."
    ds.SourceImageSequence = [_source_image(header, source)]
    ds.LossyImageCompression = "01" if run.is_lossy else "00"
    if header.get("BodyPartExamined"):
        ds.BodyPartExamined = header.BodyPartExamined
    if header.get("BodyPartExamined") not in _UNPAIRED.split():  # type 2C (PS3.3 §C.7.3.1)
        ds.Laterality = header.get("Laterality") or header.get("ImageLaterality")
    ds.PatientOrientation = header.get("PatientOrientation") or None
    ds.SamplesPerPixel, ds.PlanarConfiguration, ds.PhotometricInterpretation = 3, 0, "RGB"
    ds.Rows, ds.Columns = rgb.shape[:2]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    data = rgb.tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB"
    return ds


def _source_image(header: Dataset, source: Source) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    if source.frame_number is not None:
        item.ReferencedFrameNumber = source.frame_number
    item.PurposeOfReferenceCodeSequence = [coded(codes.SOURCE_IMAGE)]
    return item
