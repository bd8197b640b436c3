"""One SOP Instance UID, two data sets: other pixels are held for a person, another header is read no second time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from node import cli
from node.assemble import assembler
from node.assemble.conflict import image_digest
from node.audit import Audit
from node.errors import NotFound, Permanent
from node.settings import Settings
from node.store import conflicts, studies
from node.store.db import Database, history
from node.store.spool import Spool
from tests.unit.headers import header, part10, received

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings.model_validate({"completeness": {"quiet_period": "60 s"}})


def film(pixels: bytes = b"\1\0" * 16, **keywords: Any) -> Dataset:
    """A small image; the same UIDs every time."""
    values = {"Rows": 4, "Columns": 4, "BitsAllocated": 16, "PixelRepresentation": 0, "SamplesPerPixel": 1}
    uids = {"SOPInstanceUID": "1.2.3.1", "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4"}
    ds = header(**uids, **values, **keywords)
    ds.PixelData = pixels
    ds["PixelData"].VR = "OW"
    return ds


class House:
    """A node's store, and time."""

    def __init__(self, db: Database, folder: Path) -> None:
        self.db, self.spool, self.at = db, Spool(folder / "spool", 0), 1000.0
        self.audit = Audit(folder / "audit.log")

    def receive(self, *images: Dataset) -> list[str]:
        """Take in images, let the quiet period pass and assemble; return their digests."""
        rows = [received(self.spool, ds, at=self.at + number) for number, ds in enumerate(images)]
        studies.register(self.db, rows)
        self.assemble()
        return [row.sha256 for row in rows]

    def assemble(self) -> None:
        self.at += 100
        assembler.tick(self.db, self.spool, SETTINGS, self.at, self.audit)

    def route(self) -> None:
        ((uid, revision),) = studies.to_route(self.db)
        assert studies.routed(self.db, uid, revision, [], "nothing reads it", self.at)

    def stands(self, revision: int) -> list[str]:
        return [row.sha256 for row in studies.manifest(self.db, "1.2.3", revision)]

    @property
    def study(self) -> dict[str, Any]:
        return studies.show(self.db, "1.2.3")


@pytest.fixture
def house(database: Database, tmp_path: Path) -> House:
    return House(database, tmp_path)


@pytest.mark.parametrize(("keep", "standing"), [("first", 0), ("last", 1)])
def test_other_pixels_are_held_and_told_until_a_person_says_which_stand(
    house: House, tmp_path: Path, keep: Any, standing: int
) -> None:
    shas = house.receive(film(), film(b"\2\0" * 16))
    assert (house.study["state"], house.study["revision"]) == ("CONFLICT", 0)
    assert "1 instances came twice with different pixels" in house.study["reason"]
    assert studies.registered(house.db, shas) == set(shas), "both digests are kept"
    (line,) = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert (line["event"], line["study_instance_uid"], line["count"]) == ("110113", "1.2.3", 1)
    house.assemble()
    assert house.study["state"] == "CONFLICT", "nothing moves by itself"
    assert studies.to_route(house.db) == []

    assert conflicts.release(house.db, "1.2.3", keep, house.at) == 1
    house.assemble()
    assert (house.study["state"], house.study["revision"]) == ("COMPLETE", 1)
    assert house.stands(1) == [shas[standing]]
    with pytest.raises(Permanent, match="is COMPLETE and not held"):
        conflicts.release(house.db, "1.2.3", keep, house.at)


@pytest.mark.parametrize(("keep", "standing"), [("first", 0), ("last", 1)])
def test_a_person_releases_a_held_study_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keep: str, standing: int
) -> None:
    config = tmp_path / "wetread.toml"
    url = f"sqlite:///{tmp_path}/wetread.db"
    config.write_text(f'[spool]\nurl = "spool"\n[database]\nurl = "{url}"\n')
    db = Database(url)
    house = House(db, tmp_path)
    shas = house.receive(film(), film(b"\2\0" * 16))
    command = ["studies", "release", "1.2.3", "--config", str(config)]
    assert cli.run(command) == 2, "which copies stand is for the person to say"
    assert "--keep" in capsys.readouterr().err
    assert cli.run([*command, "--keep", keep]) == 0
    assert f"goes on with the {keep} copies; 1 others stay on record" in capsys.readouterr().out
    house.assemble()
    assert house.stands(1) == [shas[standing]]
    trail = [path.read_text() for path in tmp_path.rglob("audit.log")]
    assert f"released by a person: the {keep} copies stand" in "".join(trail)
    assert cli.run([*command, "--keep", keep]) == 1
    assert "is COMPLETE and not held as CONFLICT; nothing was changed" in capsys.readouterr().err
    assert cli.run(["studies", "release", "9.9", "--config", str(config), "--keep", keep]) == 1
    assert "There is no study 9.9" in capsys.readouterr().err
    db.close()


def test_a_kill_at_the_release_of_a_study_cannot_keep_it_out_of_the_trail(tmp_path: Path) -> None:
    config, url = tmp_path / "wetread.toml", f"sqlite:///{tmp_path}/wetread.db"
    config.write_text(f'[spool]\nurl = "spool"\n[database]\nurl = "{url}"\n')
    db = Database(url)
    House(db, tmp_path).receive(film(), film(b"\2\0" * 16))
    command = [sys.executable, "-m", "node.cli", "studies", "release", "1.2.3", "--config", str(config)]
    env = os.environ | {"WETREAD_FAULT": "release.before_commit:1:kill"}
    killed = subprocess.run([*command, "--keep", "last"], env=env, check=False, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    trail = "".join(path.read_text() for path in tmp_path.rglob("audit.log"))
    assert "released by a person: the last copies stand" in trail, "it is there before it is so"
    db.close()


def test_a_corrected_header_is_a_revision_that_nobody_reads_again(house: House) -> None:
    (first,) = house.receive(film(PatientName="Smith"))
    house.route()
    (second,) = house.receive(film(PatientName="Smyth"))
    assert (house.study["state"], house.study["revision"]) == ("DONE", 2)
    assert "only headers changed since revision 1, and its results stand" in house.study["reason"]
    assert (house.stands(1), house.stands(2)) == ([first], [second])
    with house.db.reader() as connection:
        assert [e["to_state"] for e in history(connection, "instance", second)] == ["DIFFERS"]


def test_a_corrected_header_of_a_study_that_was_never_read_is_read(house: House) -> None:
    house.receive(film(PatientName="Smith"))
    house.receive(film(PatientName="Smyth"))
    assert (house.study["state"], house.study["revision"]) == ("COMPLETE", 2)


@pytest.mark.parametrize(("keep", "state", "standing"), [("first", "DONE", 0), ("last", "COMPLETE", 1)])
def test_after_a_reading_only_the_new_pixels_are_read(house: House, keep: Any, state: str, standing: int) -> None:
    shas = house.receive(film())
    house.route()
    shas += house.receive(film(b"\2\0" * 16))
    assert house.study["state"] == "CONFLICT"
    conflicts.release(house.db, "1.2.3", keep, house.at)
    house.assemble()
    assert (house.study["state"], house.study["revision"]) == (state, 2)
    assert (house.stands(1), house.stands(2)) == ([shas[0]], [shas[standing]])


def test_instances_that_come_while_it_is_held_belong_to_it(house: House) -> None:
    house.receive(film(), film(b"\2\0" * 16))
    house.receive(header(StudyInstanceUID="1.2.3"))
    assert house.study["state"] == "CONFLICT"
    conflicts.release(house.db, "1.2.3", "last", house.at)
    house.assemble()
    assert len(house.stands(1)) == 2


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (film(PatientName="Smyth"), True),
        (film(b"\1\0" * 15 + b"\2\0"), False),
        (film(PixelSpacing=[1, 2]), False),
        (film(RescaleSlope=2), False),
        (film(Laterality="R"), False),
    ],
    ids=["name", "one pixel", "spacing", "rescale", "laterality"],
)
def test_what_makes_an_image(tmp_path: Path, other: Dataset, same: bool) -> None:
    one, two = tmp_path / "one.dcm", tmp_path / "two.dcm"
    one.write_bytes(part10(film()))
    two.write_bytes(part10(other))
    assert (image_digest(one) == image_digest(two)) is same


def test_the_encoding_of_native_pixels_makes_no_difference_and_no_file_has_no_digest(tmp_path: Path) -> None:
    explicit, implicit = tmp_path / "explicit.dcm", tmp_path / "implicit.dcm"
    explicit.write_bytes(part10(film()))
    ds = pydicom.dcmread(explicit)
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    ds.save_as(implicit, implicit_vr=True, little_endian=True)
    assert image_digest(explicit) == image_digest(implicit) is not None
    (tmp_path / "none.dcm").write_bytes(b"no DICOM")
    assert image_digest(tmp_path / "none.dcm") is None


def test_an_unknown_study_cannot_be_released(house: House) -> None:
    with pytest.raises(NotFound):
        conflicts.release(house.db, "9.9", "first", 1.0)
