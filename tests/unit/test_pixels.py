"""Stored values out of Pixel Data, and the numbers they stand for."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from node.errors import Unsuitable
from tests import dcmtk
from tests.unit.phantom import body, film, image, save
from workers.load import pixels
from workers.load.pixels import stored_values
from workers.load.series import load
from workers.load.slices import calibrated_spacing
from workers.load.values import displayed, rescaled
from workers.report import sc

RAMP = np.arange(0, 4000, 10, dtype=np.uint16).reshape(20, 20)
WIDE = np.tile(RAMP, (4, 4))


def refusal(ds: Dataset) -> str:
    with pytest.raises(Unsuitable) as caught:
        stored_values(ds, "instance 1.2")
    return str(caught.value)


def shown(ds: Dataset) -> np.ndarray[Any, np.dtype[np.float32]]:
    return displayed(stored_values(ds, "it")[0], ds, "it")


def test_overlay_bits_above_the_stored_ones_are_dropped() -> None:
    dirty = RAMP | 0x8000 | 0x4000
    ds = image(dirty, BitsStored=12, HighBit=11)
    assert np.array_equal(stored_values(ds, "it")[0], RAMP)


def test_bits_below_the_stored_ones_are_dropped() -> None:
    ds = image((RAMP << 4) | 0xF, BitsStored=12, HighBit=15)
    assert np.array_equal(stored_values(ds, "it")[0], RAMP)


def test_the_sign_of_twelve_bits_is_extended() -> None:
    signed = RAMP.astype(np.int16) - 2000
    ds = image((signed & 0x0FFF).astype(np.int16), BitsStored=12, HighBit=11)
    assert np.array_equal(stored_values(ds, "it")[0], signed)


def test_bits_are_cleaned_the_same_in_rle() -> None:
    ds = image(RAMP | 0x8000, BitsStored=12, HighBit=11)
    ds.compress(RLELossless)
    assert np.array_equal(stored_values(ds, "it")[0], RAMP)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("lowest", [0, -2000], ids=["unsigned", "signed"])
@pytest.mark.parametrize("high_bit", [11, 13, 15])
def test_stray_bits_of_whole_cells_are_dropped_in_every_syntax(high_bit: int, lowest: int, syntax: str) -> None:
    """As DCMTK's encoders write it by default: a codestream of 16 bits under a header of 12."""
    low = high_bit - 11
    stray = np.uint16(~(0xFFF << low) & 0xFFFF) * (np.indices(WIDE.shape).sum(axis=0) % 2).astype(np.uint16)
    cells = ((WIDE.astype(np.int16) + lowest).view(np.uint16) & 0xFFF) << low | stray
    ds = image(cells.view(np.int16) if lowest else cells)
    ds.compress(syntax)
    ds.BitsStored, ds.HighBit = 12, high_bit
    assert np.array_equal(stored_values(ds, "it")[0], WIDE.astype(np.int64) + lowest)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("lowest", [0, -2000], ids=["unsigned", "signed"])
def test_stored_bits_alone_in_a_codestream_lie_at_its_bottom(lowest: int, syntax: str) -> None:
    values = WIDE.astype(np.int16) + lowest if lowest else WIDE
    ds = image(values, BitsStored=12, HighBit=11)
    ds.compress(syntax)
    ds.HighBit = 15  # where they were before
    assert np.array_equal(stored_values(ds, "it")[0], values)


def test_dcmtks_lossless_jpeg_keeps_the_cell_as_it_was(tmp_path: Path) -> None:
    encoder = dcmtk.find("dcmcjpeg")
    if encoder is None:
        pytest.skip("DCMTK's dcmcjpeg is not on PATH")
    [path] = save([image((RAMP << 4) | 0xF, BitsStored=12, HighBit=15)], tmp_path)
    subprocess.run([encoder, "+e1", path, tmp_path / "lossless.dcm"], check=True, timeout=60)
    assert np.array_equal(stored_values(pydicom.dcmread(tmp_path / "lossless.dcm"), "it")[0], RAMP)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"PixelData": None}, "is no image with Pixel Data"),
        ({"Rows": 0}, "impossible image size: 1 frames of 0 × 20"),
        ({"Rows": 21}, "has 800 bytes of Pixel Data where its header promises 840"),
        ({"Rows": 19}, "has 800 bytes of Pixel Data where its header promises 760"),
        ({"BitsAllocated": 7}, "has Bits Allocated (0028,0100) 7"),
        ({"BitsAllocated": 1}, "has Bits Allocated (0028,0100) 1"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL_422"}, "is a color image (YBR_FULL_422)"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is a color image (PALETTE COLOR)"),
        ({"PhotometricInterpretation": None}, "is a color image (Photometric Interpretation missing)"),
        ({"Rows": 65535, "Columns": 65535}, "decodes to 8.0 GiB, more than the 2 GiB allowed"),
        ({"TransferSyntaxUID": "1.2.840.10008.1.2.4.100"}, "cannot be decoded from MPEG2 Main Profile"),
    ],
)
def test_what_cannot_be_read_is_named(change: dict[str, Any], reason: str) -> None:
    assert reason in refusal(image(RAMP, **change))


def test_a_size_that_is_a_lie_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    ds = image(RAMP, NumberOfFrames=60000, Rows=300, Columns=300)
    ds.PixelData = encapsulate([b"\0" * 64])
    ds.file_meta.TransferSyntaxUID = RLELossless
    monkeypatch.setattr(pixels, "pixel_array", lambda *a, **k: pytest.fail("decoded"))
    assert "decodes to 10.1 GiB" in refusal(ds)


def test_a_crafted_rle_frame_ends_as_unsuitable() -> None:
    ds = image(RAMP, TransferSyntaxUID=RLELossless)
    # A header of sixteen segments that all start beyond the end.
    ds.PixelData = encapsulate([b"\x0f\0\0\0" + b"\xff\xff\xff\x7f" * 15 + b"\0" * 8])
    assert "cannot be decoded from RLE Lossless" in refusal(ds)


def test_a_broken_codestream_ends_as_unsuitable() -> None:
    ds = image(np.tile(RAMP, (4, 4)))
    ds.compress(JPEG2000Lossless)
    ds.PixelData = ds.PixelData[:120] + bytes(len(ds.PixelData) - 120)
    assert "cannot be decoded from JPEG 2000" in refusal(ds)


def test_whatever_a_decoder_raises_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    def panic(*args: Any, **kwargs: Any) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr(pixels, "pixel_array", panic)
    told = refusal(image(RAMP, TransferSyntaxUID=RLELossless))
    assert told == "instance 1.2 cannot be decoded from RLE Lossless: index out of bounds"


def test_no_memory_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def starve(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(pixels, "pixel_array", starve)
    with pytest.raises(MemoryError):
        stored_values(image(RAMP, TransferSyntaxUID=RLELossless), "it")


def test_rescale_slope_and_intercept() -> None:
    ds = image(RAMP, RescaleSlope="0.5", RescaleIntercept="-1024")
    assert np.array_equal(rescaled(stored_values(ds, "it")[0], ds, "it"), RAMP * 0.5 - 1024)


def test_a_slope_that_is_no_number_is_refused() -> None:
    ds = image(RAMP, RescaleSlope="1")
    ds["RescaleSlope"]._value = "one"
    with pytest.raises(Unsuitable, match="Rescale Slope or Intercept that is no number"):
        rescaled(stored_values(ds, "it")[0], ds, "it")


@pytest.mark.parametrize(("vr", "written"), [("SS", -2000), ("US", 63536)])
def test_padding_takes_the_lowest_value_that_is_image(vr: str, written: int) -> None:
    picture = RAMP.astype(np.int16) - 1000
    padded = picture.copy()
    padded[:3] = -2000
    ds = image(padded)
    ds.add_new("PixelPaddingValue", vr, written)
    found = rescaled(stored_values(ds, "it")[0], ds, "it")
    assert found[:3].max() == found[3:].min() == picture[3:].min()


def test_a_range_of_padding() -> None:
    padded = RAMP.copy()
    padded[0, :] = np.arange(4080, 4100)
    ds = film(padded, PixelPaddingValue=4080, PixelPaddingRangeLimit=4099)
    assert shown(ds)[0].max() == shown(ds).min()


def test_monochrome1_is_the_inverse_of_monochrome2() -> None:
    bright = film(RAMP)
    dark = film(RAMP.max() - RAMP, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(shown(bright), shown(dark))


def test_presentation_lut_shape_inverse_inverts_once() -> None:
    said_twice = film(RAMP, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")
    said_once = film(RAMP, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(shown(said_twice), shown(said_once))
    assert shown(said_once)[0, 0] > shown(said_once)[-1, -1]


def test_padding_of_an_inverted_film_is_dark() -> None:
    padded = RAMP.copy()
    padded[0] = 0
    ds = film(padded, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0)
    assert shown(ds)[0].max() == shown(ds).min()


def test_the_first_window_clips() -> None:
    ds = film(RAMP, WindowCenter=[2000, 100], WindowWidth=[1000, 50])
    found = shown(ds)
    assert np.array_equal(found == found.min(), RAMP <= 1500)
    assert np.array_equal(found == found.max(), RAMP > 2499)


def test_a_voi_lut_comes_before_the_window() -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 16])
    table.add_new("LUTData", "US", [(4095 - k) * 16 for k in range(4096)])
    ds = film(RAMP, VOILUTSequence=[table], WindowCenter=2000, WindowWidth=1000)
    assert np.array_equal(shown(ds), (4095 - RAMP.astype(np.float32)) * 16)


@pytest.mark.parametrize("window", [(2000, 0), (2000, -5), (-90000, 10), ("", "")])
def test_a_window_that_shows_nothing_is_passed_over(window: tuple[Any, Any]) -> None:
    ds = film(RAMP, WindowCenter=window[0], WindowWidth=window[1])
    assert np.array_equal(shown(ds), RAMP)


def test_a_modality_lut_comes_first() -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 16])
    table.add_new("LUTData", "US", [k * 2 for k in range(4096)])
    table.ModalityLUTType = "US"
    assert np.array_equal(shown(film(RAMP, ModalityLUTSequence=[table])), RAMP * 2)


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({}, None),
        ({"PixelSpacing": [0.2, 0.1]}, (0.2, 0.1)),
        ({"PixelSpacing": [0, 0]}, None),
        ({"PixelSpacing": [-1, 1]}, None),
        ({"ImagerPixelSpacing": [0.2, 0.2]}, None),
        ({"PixelSpacing": [0.2, 0.2], "ImagerPixelSpacing": [0.2, 0.2]}, None),
        ({"PixelSpacing": [0.17, 0.17], "ImagerPixelSpacing": [0.2, 0.2]}, (0.17, 0.17)),
        (
            {"PixelSpacing": [0.2, 0.2], "ImagerPixelSpacing": [0.2, 0.2], "PixelSpacingCalibrationType": "FIDUCIAL"},
            (0.2, 0.2),
        ),
    ],
)
def test_millimeters_only_where_they_are_calibrated(elements: dict[str, Any], expected: Any) -> None:
    assert calibrated_spacing(film(RAMP, **elements)) == expected


def test_a_film_is_one_slice_on_its_pixel_grid(tmp_path: Path) -> None:
    [volume] = load(save([film(RAMP[:, :15], PixelSpacing=[0.2, 0.1])], tmp_path), 2)
    assert volume.pixels.shape == (1, 20, 15)
    assert volume.is_projection
    assert volume.spacing_mm == (1.0, 0.2, 0.1)
    assert np.allclose(volume.affine_mm, np.diag([0.1, 0.2, 1, 1]))


def test_films_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    films = [film(RAMP + k, InstanceNumber=number) for k, number in enumerate((3, 1, 2))]
    found = load(save(films, tmp_path), 2)
    assert [volume.pixels.min() for volume in found] == [1, 2, 0]
    assert [volume.sources[0].sop_instance_uid for volume in found] == [films[k].SOPInstanceUID for k in (1, 2, 0)]


def test_a_slice_on_its_own_keeps_its_place_and_units(tmp_path: Path) -> None:
    ct = image(body()[5], ImagePositionPatient=[1, 2, 3], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    ct.PixelSpacing, ct.RescaleIntercept, ct.RescaleSlope = [0.8, 0.7], -1000, 1
    [volume] = load(save([ct], tmp_path), 2)
    assert not volume.is_projection
    assert volume.pixels.max() == 0
    assert np.allclose(volume.affine_mm, [[0.7, 0, 0, 1], [0, 0.8, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])


def test_a_blank_film_is_refused(tmp_path: Path) -> None:
    ds = film(np.full((8, 8), 7, np.uint16))
    with pytest.raises(Unsuitable, match="is blank: all pixels have the value 7"):
        load(save([ds], tmp_path), 2)


@pytest.mark.parametrize(
    ("elements", "aspect"),
    [
        ({}, 1.0),
        ({"PixelAspectRatio": [2, 1]}, 2.0),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, 0.5),
        ({"PixelSpacing": [0.4, 0.2], "ImagerPixelSpacing": [0.4, 0.2]}, 2.0),
        ({"PixelSpacing": [0.3, 0.2], "ImagerPixelSpacing": [0.4, 0.2]}, 1.5),
        ({"PixelAspectRatio": [1000, 1]}, 1.0),
        ({"PixelAspectRatio": [0, 1]}, 1.0),
    ],
)
def test_a_film_is_drawn_in_its_proportions_with_and_without_millimeters(
    elements: dict[str, Any], aspect: float, tmp_path: Path
) -> None:
    pixels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    [volume] = load(save([film(pixels, **elements)], tmp_path), 2)
    assert sc.pixel_aspect(volume) == pytest.approx(aspect)
    assert volume.pixel_aspect == pytest.approx(aspect)
