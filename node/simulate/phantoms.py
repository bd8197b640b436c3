"""Objects with a known truth: a synthetic chest radiograph, and a CT or MR volume in any orientation.

All are drawn from formulas and say in their own attributes that they are synthetic; none shows a person. The same
arguments give the same pixels and the same UIDs.
"""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian

from node import uids
from node.simulate.radiograph import Lobe, radiograph

DX_FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.1"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
NOTICE = "SYNTHETIC IMAGE: computed from formulas, shows no person. Not for diagnostic use."

Orientation = Literal["axial", "sagittal", "coronal", "oblique"]

FILM_EXTENT_MM = 358.4


def chest_film(seed: int = 1, opacity: Lobe | None = None, size: int = 1024) -> tuple[Dataset, NDArray[np.uint8]]:
    """Return a frontal (PA) chest radiograph and its lung fields, uint8 (row, column): 0, 1 right lung, 2 left lung.

    The data set is a Digital X-Ray Image - For Presentation (PS3.3 §A.26), `size` × `size`, 12 bits, MONOCHROME2,
    ready to be written with `ds.save_as(path, enforce_file_format=True)`. `opacity` fills the air of one lobe.
    """
    pixels, fields = radiograph(size, FILM_EXTENT_MM, seed, opacity)
    key = ("chest film", str(seed), str(opacity), str(size))
    ds = _identity(DX_FOR_PRESENTATION, key, 1)
    ds.PatientName = "SYNTHETIC^CHEST"
    ds.StudyDescription = "Synthetic chest radiograph"
    ds.SeriesDescription = "Synthetic chest film (phantom)"
    ds.Modality = "DX"
    ds.ProcedureCodeSequence = Sequence([_code("399208008", "SCT", "Plain X-ray of chest")])
    _projection(ds)
    _film_pixels(ds, pixels, FILM_EXTENT_MM / size)
    return ds, fields


def volume(
    orientation: Orientation = "axial",
    modality: Literal["CT", "MR"] = "CT",
    shape: tuple[int, int, int] = (24, 64, 48),
    spacing_mm: tuple[float, float, float] = (2.5, 1.2, 0.9),
) -> tuple[list[Dataset], NDArray[np.uint8]]:
    """Return the slices of a volume, in spatial order along their normal, and the mask of the object in it.

    `shape` is (slice, row, column) and `spacing_mm` goes with it, between the centers. The mask, uint8 (slice, row,
    column), marks an ellipsoid with a knob and a bar on one side only, so that no flip or swap of axes leaves it as
    it was. Instance Numbers run against the order of the slices, as some scanners have it.
    """
    mask = _object(shape)
    key = ("volume", orientation, modality, str(shape), str(spacing_mm))
    cosines = _COSINES[orientation]
    origin = np.array([-41.0, -63.0, 18.0])
    normal = np.cross(cosines[:3], cosines[3:])
    slices = []
    for number in range(shape[0]):
        ds = _identity(CT_IMAGE if modality == "CT" else MR_IMAGE, key, shape[0] - number)
        ds.PatientName = "SYNTHETIC^VOLUME"
        ds.StudyDescription = "Synthetic volume"
        ds.SeriesDescription = f"Synthetic {orientation} {modality} (phantom)"
        ds.Modality = modality
        _plane(ds, key, cosines, origin + number * spacing_mm[0] * normal, spacing_mm)
        _acquisition(ds, modality)
        _slice_pixels(ds, mask[number], modality, number)
        slices.append(ds)
    return slices, mask


_OBLIQUE = np.deg2rad(24.0)
_COSINES: dict[Orientation, NDArray[np.float64]] = {
    "axial": np.array([1.0, 0, 0, 0, 1, 0]),
    "sagittal": np.array([0.0, 1, 0, 0, 0, -1]),
    "coronal": np.array([1.0, 0, 0, 0, 0, -1]),
    "oblique": np.array([np.cos(_OBLIQUE), np.sin(_OBLIQUE), 0, 0, 0, -1]),
}


def _object(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return the asymmetric object: every index range is relative to the size of its axis."""
    k, j, i = (np.linspace(0, 1, n)[(slice(None),) + (None,) * (2 - axis)] for axis, n in enumerate(shape))
    body = ((k - 0.45) / 0.30) ** 2 + ((j - 0.50) / 0.28) ** 2 + ((i - 0.42) / 0.24) ** 2 < 1
    knob = ((k - 0.70) / 0.14) ** 2 + ((j - 0.24) / 0.12) ** 2 + ((i - 0.66) / 0.14) ** 2 < 1
    bar = (np.abs(k - 0.40) < 0.07) & (np.abs(j - 0.62) < 0.05) & (i > 0.60) & (i < 0.90)
    return (body | knob | bar).astype(np.uint8)


def _identity(sop_class_uid: str, key: tuple[str, ...], number: int) -> Dataset:
    """Return Patient, Study, Series, Equipment and SOP Common, and the words that say what this is."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = UID(uids.IMPLEMENTATION_CLASS_UID)
    ds.file_meta.ImplementationVersionName = uids.IMPLEMENTATION_VERSION_NAME
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class_uid, uids.derive_uid("phantom", *key, "instance", str(number))
    ds.StudyInstanceUID = uids.derive_uid("phantom", *key, "study")
    ds.SeriesInstanceUID = uids.derive_uid("phantom", *key, "series")
    ds.PatientID = f"SYNTHETIC-{zlib.crc32('|'.join(key).encode()):08X}"
    ds.PatientBirthDate, ds.PatientSex = "", "O"
    ds.PatientIdentityRemoved, ds.DeidentificationMethod = "YES", "Synthetic image; there is no patient"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20260101"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "120000"
    ds.AccessionNumber, ds.StudyID, ds.ReferringPhysicianName = "", "SYNTHETIC", ""
    ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = 1, number, 1
    ds.Manufacturer, ds.ManufacturerModelName = "wetread", "wetread phantom"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "0", uids.IMPLEMENTATION_VERSION_NAME
    ds.ImageComments, ds.QualityControlImage, ds.BurnedInAnnotation = NOTICE, "YES", "NO"
    ds.LossyImageCompression = "00"
    return ds


def _projection(ds: Dataset) -> None:
    """Add DX Series, Anatomy, Image, Detector and Positioning, and Acquisition Context (PS3.3 §C.8.11, §C.7.6.14)."""
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.BodyPartExamined, ds.ViewPosition, ds.ImageLaterality = "CHEST", "PA", "U"
    ds.AnatomicRegionSequence = Sequence([_code("43799004", "SCT", "Chest")])
    view = _code("272479007", "SCT", "Postero-anterior")
    view.ViewModifierCodeSequence = Sequence([])
    ds.ViewCodeSequence = Sequence([view])
    ds.PatientOrientation = ["L", "F"]
    ds.PositionerType, ds.DetectorType = "NONE", "DIRECT"
    ds.DetectorID, ds.KVP, ds.Exposure = "SYNTHETIC", "120", "3"
    ds.DistanceSourceToDetector, ds.DistanceSourceToPatient = "1800", "1800"
    ds.AcquisitionContextSequence = Sequence([])


def _film_pixels(ds: Dataset, pixels: NDArray[np.uint16], pitch_mm: float) -> None:
    """Add Image Pixel, DX Image and VOI LUT (PS3.3 §C.7.6.3, §C.8.11.3, §C.11.2)."""
    ds.ImageType = ["DERIVED", "PRIMARY"]
    ds.DerivationDescription = NOTICE
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PresentationLUTShape = 1, "MONOCHROME2", "IDENTITY"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelSpacing = ds.ImagerPixelSpacing = [f"{pitch_mm:.6g}"] * 2
    ds.PixelSpacingCalibrationType, ds.PixelSpacingCalibrationDescription = "GEOMETRY", "Exact: the phantom is flat"
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    ds.WindowCenter, ds.WindowWidth = "2048", "4096"
    ds.PixelData = pixels.astype("<u2").tobytes()


def _plane(
    ds: Dataset,
    key: tuple[str, ...],
    cosines: NDArray[np.float64],
    position: NDArray[np.float64],
    spacing_mm: tuple[float, float, float],
) -> None:
    """Add Frame of Reference and Image Plane (PS3.3 §C.7.4.1, §C.7.6.2)."""
    ds.FrameOfReferenceUID = uids.derive_uid("phantom", *key, "frame of reference")
    ds.PositionReferenceIndicator = ""
    ds.PatientPosition = "HFS"
    ds.ImageOrientationPatient = [f"{value:.10g}" for value in cosines]
    ds.ImagePositionPatient = [f"{value:.10g}" for value in position]
    ds.PixelSpacing = [f"{spacing_mm[1]:.6g}", f"{spacing_mm[2]:.6g}"]  # between rows, between columns
    ds.SliceThickness = f"{spacing_mm[0]:.6g}"


def _acquisition(ds: Dataset, modality: str) -> None:
    """Add what CT Image and MR Image require of the acquisition (PS3.3 §C.8.2.1, §C.8.3.1)."""
    ds.BodyPartExamined = "ABDOMEN"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "OTHER"]
    if modality == "CT":
        ds.KVP, ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "120", "-1024", "1", "HU"
        return
    ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "GR", "NONE", "", "3D"
    ds.RepetitionTime, ds.EchoTime, ds.EchoTrainLength = "9", "4", "1"
    ds.MagneticFieldStrength = "1.5"


def _slice_pixels(ds: Dataset, mask: NDArray[np.uint8], modality: str, number: int) -> None:
    """Add Image Pixel; the object is 60 HU in water at 0 HU, or 600 in 200 units of MR signal, with some noise."""
    background, contrast = (1024, 60) if modality == "CT" else (200, 400)
    noise = np.random.default_rng(number).integers(-4, 5, mask.shape)
    pixels = (background + contrast * mask.astype(np.int32) + noise).astype("<u2")
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = mask.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.WindowCenter, ds.WindowWidth = ("40", "400") if modality == "CT" else ("400", "800")
    ds.PixelData = pixels.tobytes()


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = value, scheme, meaning
    return ds
