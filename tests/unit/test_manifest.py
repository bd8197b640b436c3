"""A manifest is read whole, or refused with the line that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.bundles import Bundle
from node.errors import ConfigError
from tests.unit.phantom import classifier, segmenter
from workers.evaluate.manifest import ALL, UNNAMED, load


@pytest.fixture
def bright(tmp_path: Path) -> Bundle:
    return classifier(tmp_path / "bright")


def write(folder: Path, text: str, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    path = folder / "manifest.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_labels_patients_and_cohorts(tmp_path: Path, bright: Bundle) -> None:
    text = "\ufeffimage, label ,patient,cohort,note\na.png,1,p1,north,\nb.png,Bright,p1,,\nsub/c.png,normal,,south,x\n"
    first, second, third = load(write(tmp_path, text, "a.png", "b.png", "sub/c.png"), bright)
    assert [case.truth for case in (first, second, third)] == [(True,), (True,), (False,)]
    assert [case.cohort for case in (first, second, third)] == ["north", UNNAMED, "south"]
    assert [case.patient for case in (first, second, third)] == ["p1", "p1", "sub/c.png"]
    assert (third.image, third.line) == (tmp_path / "sub/c.png", 4)


def test_without_cohorts_there_is_one(tmp_path: Path, bright: Bundle) -> None:
    [case] = load(write(tmp_path, "image,label\na.png,0\n", "a.png"), bright)
    assert (case.cohort, case.patient) == (ALL, "a.png")


def test_several_findings_are_named(tmp_path: Path) -> None:
    bundle = classifier(tmp_path / "two")
    other = bundle.dicom.finding[0].model_copy(update={"label": "Dark", "output": 1})
    findings = [bundle.dicom.finding[0].model_copy(update={"type": bundle.dicom.finding[0].type}), other]
    dark = other.type.model_copy(update={"code": "1", "meaning": "Dark film"})
    findings[1] = other.model_copy(update={"type": dark})
    bundle = bundle.model_copy(update={"dicom": bundle.dicom.model_copy(update={"finding": findings})})
    text = "image,label\na.png,dark;Bright\nb.png,Dark\nc.png,none\n"
    cases = load(write(tmp_path, text, "a.png", "b.png", "c.png"), bundle)
    assert [case.truth for case in cases] == [(True, True), (False, True), (False, False)]
    with pytest.raises(ConfigError, match=r':2: label "1x" is unknown .* separated by semicolons, Bright, Dark'):
        load(write(tmp_path, "image,label\na.png,1x\n"), bundle)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"manifest\.csv:1: it is empty"),
        ("image,label\n", r":1: it has no images"),
        ("image;label\na.png;1\n", r":1: column image and label missing .* separated by commas"),
        ("image,truth\na.png,1\n", r":1: column label missing"),
        ("image,label,label\na.png,1,0\n", r":1: column label is there twice"),
        ("image,label\na.png,1\nb.png,0\n", r':3: image "b\.png" does not exist'),
        ("image,label\n,1\n", r':2: image "" does not exist'),
        (
            "image,label\na.png,PNEUMONIA\n",
            r':2: label "PNEUMONIA" is unknown to bright 1\.0\.0; expected 0 or 1,',
        ),
        ("image,label\na.png,\n", r':2: label "" is unknown'),
        ("image,label\na.png,1\n\na.png,1\n", r":4: image a\.png was named before, in line 2"),
        ("image,label\na.png\n", r":2: it has another number of cells than the 2 columns"),
        ("image,label\na.png,1,2\n", r":2: it has another number of cells"),
        ("image,label,cohort\na.png,1,all\n", r':2: cohort "all" stands for'),
        ('image,label\n"a.png,1\n', r":\d: it is no comma-separated table"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text: str, told: str, tmp_path: Path, bright: Bundle) -> None:
    with pytest.raises(ConfigError, match=told):
        load(write(tmp_path, text, "a.png"), bright)


def test_a_file_that_is_no_text(tmp_path: Path, bright: Bundle) -> None:
    (tmp_path / "m.csv").write_bytes(b"image,label\n\xff\xfe\n")
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        load(tmp_path / "m.csv", bright)
    with pytest.raises(ConfigError, match="it cannot be read: No such file"):
        load(tmp_path / "absent.csv", bright)


@pytest.mark.parametrize(
    ("label", "told"),
    [("1", "is no mask; expected the path"), ("m.jpg", "is no mask"), ("n.png", 'mask "n.png" does not exist')],
)
def test_a_bundle_of_segments_wants_masks(label: str, told: str, tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom")
    path = write(tmp_path, f"image,label\na.png,{label}\n", "a.png", "m.jpg")
    with pytest.raises(ConfigError, match=told):
        load(path, bundle)
    (tmp_path / "n.png").touch()
    [case] = load(write(tmp_path, "image,label\na.png,n.png\n"), bundle)
    assert case.truth == tmp_path / "n.png"
