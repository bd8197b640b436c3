"""From files to volumes: phantoms with known truth, and what real scanners sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from node.errors import Unsuitable
from node.findings import Source
from tests.unit.phantom import ORIENTATIONS, body, enhanced, film, image, positions, save, stack
from workers.load import series
from workers.load.series import load


@pytest.mark.parametrize("cosines", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
@pytest.mark.parametrize("numbers", ["as is", "reversed", "shuffled", "absent"])
def test_instance_numbers_and_file_names_never_matter(cosines: Sequence[float], numbers: str, tmp_path: Path) -> None:
    datasets = stack(body(), cosines, (2.5, 0.8, 0.7))
    order = np.random.default_rng(3).permutation(len(datasets))
    for k, ds in enumerate(datasets):
        given = {"as is": k, "reversed": -k, "shuffled": int(order[k])}
        ds.InstanceNumber = given.get(numbers)
    [volume] = load(save([datasets[k] for k in order], tmp_path), 3)
    assert np.array_equal(volume.pixels, body())
    assert [source.sop_instance_uid for source in volume.sources] == [ds.SOPInstanceUID for ds in datasets]
    assert volume.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert (volume.affine_mm @ [4, 6, 2, 1])[:3] == pytest.approx(
        positions(12, cosines, 2.5)[2] + np.array(cosines[:3]) * 0.7 * 4 + np.array(cosines[3:]) * 0.8 * 6, abs=1e-3
    )


def test_slopes_are_applied_slice_by_slice(tmp_path: Path) -> None:
    datasets = stack(body())
    for k, ds in enumerate(datasets):
        ds.RescaleSlope, ds.RescaleIntercept = k + 1, -k
    [volume] = load(save(datasets, tmp_path), 3)
    factors = np.arange(12)[:, None, None]
    assert np.array_equal(volume.pixels, body() * (factors + 1.0) - factors)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_slices_give_the_same_volume(syntax: str, tmp_path: Path) -> None:
    datasets = stack(body(3, 64, 48))
    for ds in datasets:
        ds.compress(syntax)
    [volume] = load(save(datasets, tmp_path), 3)
    assert np.array_equal(volume.pixels, body(3, 64, 48))


def test_a_localizer_is_left_out(tmp_path: Path) -> None:
    scout = image(np.zeros((64, 64), np.uint16), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    scout.ImagePositionPatient, scout.ImageOrientationPatient = [0, 0, 0], [0, 1, 0, 0, 0, -1]
    scout.PixelSpacing = [1, 1]
    [volume] = load(save([scout, *stack(body())], tmp_path), 3)
    assert np.array_equal(volume.pixels, body())


def test_a_scout_that_does_not_say_so_is_refused(tmp_path: Path) -> None:
    scout = image(np.zeros((20, 16), np.uint16), PixelSpacing=[1, 1])
    scout.ImagePositionPatient, scout.ImageOrientationPatient = [0, 0, 0], [0, 1, 0, 0, 0, -1]
    with pytest.raises(Unsuitable, match=f"{scout.SOPInstanceUID} is turned against the others"):
        load(save([*stack(body()), scout], tmp_path), 3)


def test_a_slice_sent_twice_under_two_uids_counts_once(tmp_path: Path) -> None:
    datasets = stack(body())
    again = stack(body())[4]
    [volume] = load(save([*datasets, again], tmp_path), 3)
    assert np.array_equal(volume.pixels, body())


def test_an_instance_sent_twice_counts_once(tmp_path: Path) -> None:
    one = film(body()[5])
    assert len(load(save([one, one], tmp_path / "films"), 2)) == 1
    datasets = stack(body())
    [volume] = load(save([*datasets, datasets[3]], tmp_path / "slices"), 3)
    assert np.array_equal(volume.pixels, body())


def test_one_uid_with_two_pictures_is_refused(tmp_path: Path) -> None:
    one, other = film(body()[5]), film(body()[6])
    other.SOPInstanceUID = one.SOPInstanceUID
    with pytest.raises(Unsuitable, match=f"instance {one.SOPInstanceUID} was sent twice with different pixels"):
        load(save([one, other], tmp_path), 2)


@pytest.mark.parametrize(
    ("of_one", "of_other", "told"),
    [
        ({"PatientID": "4711"}, {"PatientID": "4712"}, r"Patient ID \(0010,0020\) differs"),
        ({"PatientName": "DOE^JANE"}, {"PatientName": "ROE^JANE"}, "Patient's Name"),
        (
            {"PatientID": "1", "PatientBirthDate": "19600101"},
            {"PatientID": "1", "PatientBirthDate": "19610101"},
            "Birth",
        ),
    ],
)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_images_of_two_patients_are_not_read_as_one(
    dimensions: Literal[2, 3], of_one: dict[str, str], of_other: dict[str, str], told: str, tmp_path: Path
) -> None:
    datasets = [*stack(body(), **of_one)[:6], *stack(body(), **of_other)[6:]]
    with pytest.raises(Unsuitable, match=rf"are of different patients: .*{told}") as caught:
        load(save(datasets, tmp_path), dimensions)
    assert not any(value in str(caught.value) for value in (*of_one.values(), *of_other.values()) if len(value) > 1)


def test_the_spelling_of_a_name_makes_no_other_patient(tmp_path: Path) -> None:
    names = ["DOE^JANE", "Doe^Jane^^^", "DOE ^JANE=", ""]
    datasets = [
        ds for k, name in enumerate(names) for ds in stack(body(), PatientName=name, PatientID="7")[3 * k : 3 * k + 3]
    ]
    for ds in datasets[:5]:
        ds.PatientBirthDate = ""
    for ds in datasets[5:]:
        ds.PatientBirthDate = "19600101"
    [volume] = load(save(datasets, tmp_path), 3)
    assert np.array_equal(volume.pixels, body())


def test_two_b_values_in_one_series_are_refused(tmp_path: Path) -> None:
    datasets = [*stack(body(), DiffusionBValue=0.0), *stack(body() // 2, DiffusionBValue=1000.0)]
    with pytest.raises(Unsuitable, match=r"different pictures of the same place, z = 7\.0 mm"):
        load(save(datasets, tmp_path), 3)


def test_an_enhanced_object_equals_its_frames(tmp_path: Path) -> None:
    datasets = stack(body(), ORIENTATIONS["oblique"], (2.5, 0.8, 0.7))
    for k, ds in enumerate(datasets):
        ds.RescaleSlope, ds.RescaleIntercept = k + 1, -k
    order = [int(k) for k in np.random.default_rng(5).permutation(12)]
    whole = enhanced(datasets, order)
    [one] = load(save([whole], tmp_path / "enhanced"), 3)
    [many] = load(save(datasets, tmp_path / "single"), 3)
    assert np.array_equal(one.pixels, many.pixels)
    assert np.allclose(one.affine_mm, many.affine_mm)
    assert one.sources == tuple(Source(whole.SOPInstanceUID, order.index(k) + 1) for k in range(12))


@pytest.mark.parametrize("is_enhanced", [False, True])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"RescaleType": "MGML"}, r"is a CT in MGML \(mg/ml\), not in Hounsfield units"),
        ({"RescaleType": "Z_EFF"}, r"is a CT in Z_EFF"),
        ({"RescaleIntercept": None, "RescaleSlope": None}, r"is a CT without Rescale Intercept \(0028,1052\)"),
    ],
)
def test_a_ct_that_is_not_in_hounsfield_units_is_refused(
    change: dict[str, str | None], reason: str, is_enhanced: bool, tmp_path: Path
) -> None:
    """One slice of twelve is enough: with the others it would be a step of a thousand units."""
    images = [enhanced(stack(body()), range(12))] if is_enhanced else stack(body())
    groups = images[0].get("PerFrameFunctionalGroupsSequence")
    one = groups[7].PixelValueTransformationSequence[0] if groups else images[7]
    for keyword, value in change.items():
        setattr(one, keyword, value)
        if value is None:
            del one[keyword]
    with pytest.raises(Unsuitable, match=reason):
        load(save(images, tmp_path), 3)


@pytest.mark.parametrize("kind", [None, "HU", "HU_MOD", "US"])
def test_hounsfield_units_go_by_several_names(kind: str | None, tmp_path: Path) -> None:
    [volume] = load(save(stack(body(), RescaleIntercept=-1024, **({"RescaleType": kind} if kind else {})), tmp_path), 3)
    assert np.array_equal(volume.pixels, body() - 1024.0)


def test_other_units_are_no_fault_of_other_modalities(tmp_path: Path) -> None:
    bare = stack(body(), Modality="MR", RescaleIntercept=None, RescaleSlope=None)
    assert np.array_equal(load(save(bare, tmp_path), 3)[0].pixels, body())


def test_a_slice_of_padding_alone_is_as_dark_as_the_darkest_pixel(tmp_path: Path) -> None:
    """The ends of a volume that was cut at a slant: two thousand units below air, were they read as they stand."""
    datasets = stack(body().astype(np.int16), RescaleIntercept=-1024, PixelPaddingValue=-2000)
    for ds in (datasets[0], datasets[11]):
        ds.PixelData = np.full((20, 16), -2000, np.int16).tobytes()
    [volume] = load(save(datasets, tmp_path), 3)
    expected = body() - 1024.0
    expected[[0, 11]] = expected[1:11].min()
    assert np.array_equal(volume.pixels, expected)


@pytest.mark.parametrize(
    ("shared", "of_one", "of_other", "reason"),
    [
        ({"Modality": "MR"}, {"EchoTime": 10}, {"EchoTime": 80}, r"it mixes echo times \(ms\): .* has 80, .* has 10$"),
        ({"Modality": "MR"}, {"DiffusionBValue": 0.0}, {"DiffusionBValue": 800.0}, "it mixes b-values"),
        ({"Modality": "PT"}, {"Units": "BQML"}, {"Units": "CNTS"}, "it mixes units: .* has CNTS, .* has BQML"),
        ({"Modality": "MR"}, {"RescaleSlope": 2}, {"RescaleSlope": None, "RescaleIntercept": None}, "mixes rescaled"),
    ],
)
def test_slices_of_two_kinds_that_lie_between_each_other_are_refused(
    shared: dict[str, str], of_one: dict[str, Any], of_other: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    one, other = stack(body(), **shared, **of_one), stack(body(), **shared, **of_other)
    datasets = [(one, other)[k % 2][k] for k in range(12)]
    with pytest.raises(Unsuitable, match=reason):
        load(save(datasets, tmp_path), 3)


def test_echo_times_of_frames_are_compared_too(tmp_path: Path) -> None:
    ds = enhanced(stack(body(), Modality="MR"), range(12))
    ds.Modality = "MR"
    for k, groups in enumerate(ds.PerFrameFunctionalGroupsSequence):
        echo = Dataset()
        echo.EffectiveEchoTime = 10.0 + 70 * (k % 2)
        groups.MREchoSequence = [echo]
    with pytest.raises(Unsuitable, match=r"it mixes echo times \(ms\): frame 2 of "):
        load(save([ds], tmp_path), 3)


def test_what_is_rounded_or_not_said_is_no_difference(tmp_path: Path) -> None:
    datasets = stack(body(), Modality="MR")
    for k, ds in enumerate(datasets[:9]):
        ds.EchoTime = [4.6, 4.58, 4.603][k % 3]
    for ds in datasets[6:]:
        del ds.RescaleSlope, ds.RescaleIntercept
    [volume] = load(save(datasets, tmp_path), 3)
    assert np.array_equal(volume.pixels, body())


def test_frames_that_nobody_describes_are_refused(tmp_path: Path) -> None:
    ds = stack(body())[0]
    ds.NumberOfFrames, ds.PixelData, ds.PerFrameFunctionalGroupsSequence = 12, body().tobytes(), [Dataset()]
    with pytest.raises(Unsuitable, match="has 12 frames but describes 1 of them"):
        load(save([ds], tmp_path), 3)


def test_a_series_too_large_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "MAX_VOLUME_BYTES", 12 * 20 * 16 * 4 - 1)
    with pytest.raises(Unsuitable, match=r"its 12 slices need 0\.0 GiB of memory"):
        load(save(stack(body()), tmp_path), 3)


def test_no_file_and_no_dicom(tmp_path: Path) -> None:
    with pytest.raises(Unsuitable, match="it has no instances"):
        load([], 3)
    (tmp_path / "a.dcm").write_bytes(b"not DICOM" * 100)
    with pytest.raises(Unsuitable, match=r"a.dcm is not a readable DICOM Part 10 file \(InvalidDicomError\)"):
        load([tmp_path / "a.dcm"], 2)
    with pytest.raises(FileNotFoundError):
        load([tmp_path / "gone.dcm"], 2)


def test_a_film_is_no_volume(tmp_path: Path) -> None:
    with pytest.raises(Unsuitable, match="has no valid Image Position"):
        load(save([film(body()[0])], tmp_path), 3)


# What real scanners sent.


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "SOURCE.txt")


def test_a_tilted_head_ct_is_refused(shared_data: Path) -> None:
    with pytest.raises(Unsuitable) as caught:
        load(files(shared_data / "dicom" / "ct_head_ge_tilt28"), 3)
    assert "gantry tilt 18.5°" in str(caught.value)
    assert "the distance between slices varies from 1.08 to 7.00 mm" in str(caught.value)


def test_slices_in_a_hundred_frames_of_reference_are_refused(shared_data: Path) -> None:
    with pytest.raises(Unsuitable, match="its 100 slices lie in 100 different frames of reference"):
        load(files(shared_data / "dicom" / "ct_chest_lidc0314_100"), 3)


def test_pet_is_read_in_rescaled_units(shared_data: Path) -> None:
    paths = files(shared_data / "dicom" / "pet_qin_headneck" / "PET")
    [volume] = load(paths, 3)
    headers = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, paths)}
    assert volume.spacing_mm == pytest.approx((3.375, 3.5378182, 3.5378182))
    for k in (0, 120, 298):
        ds = headers[volume.sources[k].sop_instance_uid]
        expected = ds.pixel_array.astype(np.float64) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        assert np.allclose(volume.pixels[k], expected, rtol=1e-6)


def test_the_hippocampus_crop(shared_data: Path) -> None:
    [volume] = load(files(shared_data / "dicom" / "mr_brain_pgbm003_hippocrop" / "11_HCropVolume"), 3)
    assert volume.pixels.shape == (40, 50, 34)
    assert volume.spacing_mm == (1.0, 1.0, 1.0)
    assert np.array_equal(volume.affine_mm, np.eye(4) + np.eye(4)[[2]].T @ np.eye(4)[[3]])  # starts at z = 1


def test_thick_slices_are_spaced_by_position(shared_data: Path) -> None:
    [volume] = load(files(shared_data / "dicom" / "mr_brain_pgbm003_hippocrop" / "11-T1post-18670"), 3)
    assert volume.spacing_mm == pytest.approx((6.5, 0.6875, 0.6875))  # Slice Thickness says 5


def test_columns_that_run_forward_and_rows_that_run_left(shared_data: Path) -> None:
    paths = files(shared_data / "dicom" / "mr_t1_pacsman128")
    [volume] = load(paths, 3)
    places = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, paths)}
    ds = places[volume.sources[31].sop_instance_uid]
    x, y, z = (float(v) for v in ds.ImagePositionPatient)
    # Image Orientation 0\-1\0\1\0\0: the next column lies 1 mm in front, the next row 1 mm to the left.
    assert (volume.affine_mm @ [10, 0, 31, 1])[:3] == pytest.approx((x, y - 10, z))
    assert (volume.affine_mm @ [0, 10, 31, 1])[:3] == pytest.approx((x + 10, y, z))
    assert np.array_equal(volume.pixels[31], ds.pixel_array)


def test_a_real_enhanced_ct_goes_by_position_and_not_by_frame(shared_data: Path) -> None:
    path = shared_data / "dicom" / "enhanced" / "pydicom" / "eCT_Supplemental.dcm"
    [volume] = load([path], 3)
    ds = pydicom.dcmread(path)
    # Row direction -x, column direction +y: the normal points to the feet.
    assert [source.frame_number for source in volume.sources] == [2, 1]
    assert np.array_equal(volume.pixels, ds.pixel_array[::-1].astype(np.float32) - 1024)
    assert volume.spacing_mm == pytest.approx((10, 0.388672, 0.388672))


def test_one_picture_in_seven_syntaxes(shared_data: Path) -> None:
    paths = files(shared_data / "dicom" / "syntaxes" / "mr_siemens_9ts")
    assert len({pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID for path in paths}) == 7
    first, *others = [load([path], 2)[0].pixels for path in paths]
    assert all(np.array_equal(other, first) for other in others)


def test_one_ct_slice_in_every_lossless_syntax(shared_data: Path) -> None:
    folder = shared_data / "dicom" / "syntaxes" / "ct_ge_manyts"
    native = load([folder / "CTImage.dcm"], 2)[0].pixels
    names = ("BigEndian", "Deflated", "JPEG2000LosslessOnly", "JPEGLSLossless", "Process14SV1", "Process14T", "RLE")
    for name in names:
        [path] = folder.glob(f"CTImage.dcm_*{name}*")
        assert np.array_equal(load([path], 2)[0].pixels, native), path.name


@pytest.mark.parametrize("folder", ["syntaxes", "enhanced", "nonimage_and_odd", "charsets", "rtstruct_rtutils", "mg"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_every_file_is_read_or_named(shared_data: Path, folder: str, dimensions: int) -> None:
    for path in files(shared_data / "dicom" / folder):
        told = _told(path, dimensions)
        assert told is None or len(told) > 20, path.name


def _told(path: Path, dimensions: int) -> str | None:
    try:
        volumes = load([path], dimensions)  # type: ignore[arg-type]
    except Unsuitable as error:
        return str(error)
    return None if all(np.isfinite(volume.pixels).all() for volume in volumes) else ""


@pytest.mark.parametrize("name", ["philips_cr/RG1_J2KI.dcm", "fuji_cr/gdcm-CR-MONO1-10-chest.dcm"])
def test_bone_is_bright_on_inverted_films(shared_data: Path, name: str) -> None:
    [volume] = load([shared_data / "dicom" / "cxr" / name], 2)
    rows, columns = volume.pixels.shape[1:]
    picture = volume.pixels[0]
    spine = picture[rows // 2 : -rows // 4, columns * 45 // 100 : columns * 55 // 100].mean()
    lungs = picture[rows // 3 : rows // 2, columns // 5 : columns * 2 // 5].mean()
    assert spine > lungs
    assert volume.spacing_mm is None
    assert volume.is_projection


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (3, 7), (300, 0), (0.5, -1000), (1, 0.25)])
def test_rescaling_gives_what_double_precision_gives(slope: float, intercept: float, tmp_path: Path) -> None:
    pixels = np.random.default_rng(5).integers(0, 2**16, (3, 200, 210)).astype(np.uint16)
    datasets = stack(pixels, RescaleSlope=slope, RescaleIntercept=intercept)
    [volume] = load(save(datasets, tmp_path), 3)
    assert np.array_equal(volume.pixels, (pixels.astype(np.float64) * slope + intercept).astype(np.float32))


def test_pixels_that_end_too_soon_are_told(tmp_path: Path) -> None:
    paths = save(stack(np.ones((2, 200, 200), np.uint16)), tmp_path)
    paths[1].write_bytes(paths[1].read_bytes()[:-100])
    with pytest.raises(Unsuitable, match=r"has 79900 bytes of Pixel Data where its header promises 80000"):
        load(paths, 3)


def test_deflated_slices_give_the_same_volume(tmp_path: Path) -> None:
    pixels = np.random.default_rng(5).integers(0, 2**12, (2, 200, 200)).astype(np.uint16)
    datasets = stack(pixels, TransferSyntaxUID=DeflatedExplicitVRLittleEndian)
    [volume] = load(save(datasets, tmp_path), 3)
    assert np.array_equal(volume.pixels, pixels)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"PixelData": bytes(2 * 64 * 64)}, "is blank: all pixels have the value 0"),
        ({"PixelData": bytes(100)}, "has 100 bytes of Pixel Data where its header promises 8192"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is a color image (PALETTE COLOR)"),
        ({"PixelData": None}, "is no image with Pixel Data"),
    ],
)
def test_a_film_that_cannot_be_read_keeps_no_other_from_it(broken: dict[str, Any], reason: str, tmp_path: Path) -> None:
    pixels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    good, bad = film(pixels, InstanceNumber=2), film(pixels, InstanceNumber=1)
    for keyword, value in broken.items():
        delattr(bad, keyword) if value is None else setattr(bad, keyword, value)
    [volume] = load(save([bad, good], tmp_path / "both"), 2)
    assert volume.sources[0].sop_instance_uid == good.SOPInstanceUID
    [remark] = volume.remarks
    assert remark.startswith(f"Not analyzed: instance {bad.SOPInstanceUID} ")
    assert reason in remark
    with pytest.raises(Unsuitable, match=re.escape(reason)):
        load(save([bad], tmp_path / "alone"), 2)
