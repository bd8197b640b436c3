from pathlib import Path

import pytest

from node import study, uids
from node.configvalues import parse_duration, parse_size
from node.errors import Transient
from node.settings import Settings


def test_durations_and_sizes_need_units() -> None:
    assert parse_duration("15 min") == 900
    assert parse_size("2 GB") == 2_000_000_000
    for wrong in ("15", 15, "10 apples", "-1 s", ""):
        with pytest.raises(ValueError, match="is not a"):
            parse_duration(wrong)
        with pytest.raises(ValueError, match="is not a"):
            parse_size(wrong)


def test_ae_title_longer_than_16_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 16"):
        Settings.model_validate({"node": {"ae_title": "CT-SCANNER-ROOM-12"}})


def test_derived_uids_are_stable_and_valid() -> None:
    first = uids.derive_uid("1.2.3", "SEG")
    assert first == uids.derive_uid("1.2.3", "SEG")
    assert first != uids.derive_uid("1.2.3", "SR")
    assert uids.is_valid_uid(first)
    for wrong in ("", "1..2", "1.02", "../../x", "1." * 40, "1.2 ", "a.b"):
        assert not uids.is_valid_uid(wrong)


def test_an_exception_without_message_shows_its_docstring() -> None:
    assert "tried again" in str(Transient())


def test_scan_groups_real_series(shared_data: Path) -> None:
    studies, left_out = study.scan(shared_data / "dicom" / "mr_brain_pgbm003_hippocrop")
    assert [len(s.series) for s in studies] == [5]
    counts = {s.attributes["SeriesDescription"]: len(s.instances) for s in studies[0].series}
    assert counts["HippoCrop"] == 40
    assert left_out == ("SOURCE.txt is not a readable DICOM Part 10 file (InvalidDicomError).",)
