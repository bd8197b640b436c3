"""Everything real scanners and archives write, sent as files through the second door: kept byte for byte or refused."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from pathlib import Path

import pytest
from pydicom.filereader import read_file_meta_info

from node.accept.contexts import TRANSFER_SYNTAXES, storage_sop_classes
from tests.protocol.stowing import multipart, reasons, rows, serving
from tests.protocol.test_accept_data import FOLDERS, REFUSED, File, read

STORAGE = frozenset(storage_sop_classes())


@pytest.mark.timeout(300)
def test_every_file_is_answered_as_the_listener_would(
    shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.CRITICAL, "pydicom")
    found = [p for folder in FOLDERS for p in sorted((shared_data / "dicom" / folder).rglob("*")) if p.is_file()]
    answers: Counter[str] = Counter()
    with serving(tmp_path) as node:
        for path in found:
            answer = node.post(multipart(path.read_bytes(), boundary="wet-read"))
            assert answer.status_code in (200, 409), path.name
            reason = reasons(answer)[0] if answer.status_code == 409 else 0
            answers[f"{reason:04X}"] += 1
            file = read(path)
            if isinstance(file, File):
                _compare(file, reason, _is_contradicted(path, file))
            else:
                assert reason, f"{path.name} ({file}) was kept"
        index = {row["sha256"] for row in rows(node)}
        assert {path.stem for path in node.node.files()} == index
        kept = {hashlib.sha256(f.dataset).hexdigest() for p in found if isinstance(f := read(p), File)}
        assert index <= kept
    with capsys.disabled():
        print(f"\n{len(found)} files: {dict(answers)}")


def _is_contradicted(path: Path, file: File) -> bool:
    """Say whether the File Meta Information names another SOP Instance than the data set, or none."""
    meta = read_file_meta_info(path)
    named = meta.get("MediaStorageSOPClassUID", ""), meta.get("MediaStorageSOPInstanceUID", "")
    return named != (file.sop_class, file.sop_instance)


def _compare(file: File, reason: int, is_contradicted: bool) -> None:
    """The listener takes what it can negotiate; this door also asks that the file's own meta agrees with it."""
    if file.syntax not in TRANSFER_SYNTAXES or file.sop_class not in STORAGE:
        assert reason in (0x0122, 0xC122, 0xC000), file.name
    else:
        expected = REFUSED.get(file.name) or (0xA900 if is_contradicted else 0)
        assert f"{reason:04X}" == f"{expected:04X}", file.name
