"""Everything real scanners and archives send, pushed as it lies in the files: kept byte for byte or refused.

Nothing is re-encoded on the way: the data set's bytes of each file go on the wire in the file's own Transfer Syntax.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom.filereader import read_file_meta_info

from node.accept import structure
from node.accept.contexts import TRANSFER_SYNTAXES, UNCOMPRESSED, storage_sop_classes
from tests.protocol.listening import Node, associated, listening, store

FOLDERS = ("nonimage_and_odd", "syntaxes", "enhanced", "charsets", "ct_head_ge_tilt28", "pet_qin_headneck")
MAX_CONTEXTS = 128
STORAGE = frozenset(storage_sop_classes())
REFUSED = {
    **dict.fromkeys(("3gb-bulk-data-truncated", "MR_truncated.dcm", "rtplan_truncated.dcm"), 0xC000),
    "emri_small_jpeg_2k_lossless_too_short.dcm": 0xC000,  # the fragments have no end
    "SC_rgb_jpeg.dcm": 0xC000,  # Implicit VR inside, JPEG on the label
    "YBR_422.dcm": 0xC000,  # a component of its SOP Instance UID begins with 0
    "MR_small_padded.dcm": 0xA900,  # Pixel Data longer than its attributes say
    **dict.fromkeys(("HTJ2KLossless_08_RGB.dcm", "HTJ2K_08_RGB.dcm", "SC_rgb_jls_lossy_line.dcm"), 0xA900),
    **dict.fromkeys(("SC_rgb_jls_lossy_sample.dcm", "JPEGLSNearLossless_08.dcm"), 0xA900),
    **dict.fromkeys(("JPEGLSNearLossless_16.dcm", "UN_sequence.dcm", "chrSQEncoding.dcm"), 0xA900),
    **dict.fromkeys(("chrSQEncoding1.dcm", "no_meta_group_length.dcm", "priv_SQ.dcm"), 0xA900),
}
"""The files that no node could keep: broken, or (A900H without a comment) lacking an identifier."""


@dataclass(frozen=True)
class File:
    """One Part 10 file: what its sender would put into the command set, and the bytes of its data set."""

    name: str
    sop_class: str
    sop_instance: str
    syntax: str
    dataset: bytes


def read(path: Path) -> File | str:
    """Return the file, or why it cannot be sent at all."""
    data = path.read_bytes()
    if data[128:132] != b"DICM":
        return "not a Part 10 file"
    try:
        meta = read_file_meta_info(path)
        syntax = str(meta.TransferSyntaxUID)
    except Exception as error:  # pydicom raises many kinds on broken files
        return f"no File Meta Information ({type(error).__name__})"
    raw = data[_end_of_meta(data) :]
    sop_class, sop_instance = _identifiers(raw, syntax)
    sop_class = sop_class or str(meta.get("MediaStorageSOPClassUID", ""))
    if not sop_class:
        return "no SOP Class UID"
    return File(path.name, sop_class, sop_instance or "1.2.3", syntax, raw)


def _end_of_meta(data: bytes) -> int:
    """Return where the data set begins: behind the last element of group 0002 (the group length may lie)."""
    at = 132
    while data[at : at + 2] == b"\x02\x00":
        vr = data[at + 4 : at + 6]
        if vr in (b"OB", b"UN", b"UT", b"SQ"):
            at += 12 + int.from_bytes(data[at + 8 : at + 12], "little")
        else:
            at += 8 + int.from_bytes(data[at + 6 : at + 8], "little")
    return at


def _identifiers(raw: bytes, syntax: str) -> tuple[str, str]:
    explicit, implicit = UNCOMPRESSED
    wanted = {0x00080016, 0x00080018}
    try:
        found = structure.walk(
            raw, implicit=syntax == implicit, encapsulated=syntax not in (explicit, implicit), wanted=wanted
        ).elements
    except structure.Broken:
        return "", ""
    values = (found.get(tag) for tag in sorted(wanted))
    uids = [raw[e.offset : e.offset + e.length].decode("ascii", "replace").rstrip("\0 ") if e else "" for e in values]
    return uids[0], uids[1]


def push(node: Node, files: list[File]) -> dict[int, int | None]:
    """Send all files, at most 128 kinds per association; the answers in the order of `files`."""
    answers: dict[int, int | None] = {}
    kinds = sorted({(f.sop_class, f.syntax) for f in files})
    for start in range(0, len(kinds), MAX_CONTEXTS):
        part = kinds[start : start + MAX_CONTEXTS]
        with associated(node.port, [(sop_class, [syntax]) for sop_class, syntax in part]) as assoc:
            for number, file in enumerate(files):
                if (file.sop_class, file.syntax) in part:
                    answers[number] = store(assoc, file.dataset, file.sop_class, file.sop_instance, file.syntax)
                    assert assoc.is_established, f"{file.name} cost the association"
    return answers


@pytest.mark.timeout(300)
def test_everything_is_kept_byte_for_byte_or_refused_with_a_reason(
    shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.CRITICAL, "pydicom")
    found = [
        path for folder in FOLDERS for path in sorted((shared_data / "dicom" / folder).rglob("*")) if path.is_file()
    ]
    unsendable = {path.name: reason for path in found if isinstance(reason := read(path), str)}
    files = [file for path in found if isinstance(file := read(path), File)]
    assert len(files) > 500

    with listening(tmp_path) as node:
        answers = push(node, files)
        assert node.echo() == 0x0000
        index = {row["sha256"]: row for row in node.instances()}

        for number, file in enumerate(files):
            digest = hashlib.sha256(file.dataset).hexdigest()
            if answers[number] == 0x0000:
                row = index[digest]
                assert node.spool.path(row["path"]).read_bytes().endswith(file.dataset), file.name
                assert row["transfer_syntax_uid"] == file.syntax or row["sop_instance_uid"] != file.sop_instance
            elif answers[number] is None:
                assert file.syntax not in TRANSFER_SYNTAXES or file.sop_class not in STORAGE, file.name
            else:
                assert digest not in index, file.name
        assert {p.stem for p in node.files()} == set(index)
        assert not node.left_over()

    assert {files[n].name: status for n, status in answers.items() if status} == REFUSED
    counts = Counter("no context" if status is None else f"{status:04X}" for status in answers.values())
    with capsys.disabled():
        print(f"\n{len(found)} files: {dict(counts)}; not sent: {dict(Counter(unsendable.values()))}")
