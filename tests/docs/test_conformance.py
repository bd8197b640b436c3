from __future__ import annotations

import re
from pathlib import Path

from node import uids
from node.accept import association, contexts, multipart, request
from node.accept.guard import Limits
from node.accept.precheck import StoreStatus
from node.accept.stored import FailureReason
from node.accept.stow import Limits as HttpLimits
from workers.report.rules_seg import SEGMENTATION_STORAGE
from workers.report.rules_sr import COMPREHENSIVE_3D_SR
from workers.send import verdicts
from workers.send.cstore import Timeouts

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Return the text below a heading, up to the next one."""
    found = re.search(rf"(?ms)^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE)
    assert found, title
    return found[1]


def test_transfer_syntaxes_and_their_order() -> None:
    listed = re.findall(r"(?m)^\| (\d+) \| .+? \| `([\d.]+)` \|", section("Transfer Syntaxes"))
    assert listed == [(str(i), uid) for i, uid in enumerate(contexts.TRANSFER_SYNTAXES, start=1)]


def test_storage_sop_classes() -> None:
    listed = re.findall(r"\| `([\d.]+)` \|", section("5. Storage SOP Classes accepted"))
    assert sorted(listed) == sorted(contexts.storage_sop_classes())
    assert f"{len(listed)} standard Storage SOP Classes" in PAGE


def test_the_statuses_we_answer() -> None:
    listed = re.findall(r"(?m)^\| `([0-9A-F]{4})H` \|", section("C-STORE"))
    assert {int(code, 16) for code in listed} == {int(status) for status in StoreStatus}


def test_the_statuses_we_get() -> None:
    listed = re.findall(
        r"(?m)^\| `(\w{4})H`(?: to `(\w{4})H`)? \| (.+?) \| (\w+) \|", section("What a C-STORE status means to us")
    )
    expected = [(low, high, ruling.reason, ruling.verdict.value) for low, high, ruling in verdicts.STATUSES]
    assert [(int(low, 16), int(high or low, 16), text, verdict) for low, high, text, verdict in listed] == expected
    rejections = re.findall(r"(?m)^\| (\d), (\d) \| (.+?) \| (\w+) \|", section("What a C-STORE status means to us"))
    assert {(int(a), int(b)): (text, verdict) for a, b, text, verdict in rejections} == {
        key: (ruling.reason, ruling.verdict.value) for key, ruling in verdicts.REJECTIONS.items()
    }


def test_who_we_say_we_are() -> None:
    assert f"`{uids.IMPLEMENTATION_CLASS_UID}`" in PAGE
    assert f"`{uids.IMPLEMENTATION_VERSION_NAME}`" in PAGE


def test_limits_and_timeouts() -> None:
    assert f"up to {Limits().pdu:,} bytes" in section("2. Associations we accept")
    timeouts = Timeouts()
    words = (
        f"{timeouts.connect:g} s for the connection, {timeouts.acse:g} s for the association, {timeouts.dimse:g} s for"
    )
    assert words in section("3. Associations we open")
    assert verdicts.BACK_OFF_S == (5.0, 15.0, 60.0, 300.0, 900.0)


def test_the_objects_we_make() -> None:
    listed = set(re.findall(r"`([\d.]{10,})`", section("4. Objects we make")))
    assert {COMPREHENSIVE_3D_SR, SEGMENTATION_STORAGE} < listed


def test_the_rejections_we_give() -> None:
    listed = re.findall(r"(?m)^\| (\d), (\d), (\d) \| (.+?) \|", section("2. Associations we accept"))
    known = [value for value in vars(association).values() if isinstance(value, association.Rejection)]
    assert {(int(a), int(b), int(c), words) for a, b, c, words in listed} == {
        (one.result, one.source, one.diagnostic, one.reason) for one in known
    }


def test_stow_answers_limits_and_reasons() -> None:
    listed = re.findall(r"(?m)^\| (\d{3}) \|", section("HTTP status"))
    assert [int(status) for status in listed] == list(request.STATUSES)
    reasons = re.findall(r"(?m)^\| `([0-9A-F]{4})H` \| (\d+) \|", section("Failure Reasons"))
    assert all(int(code, 16) == int(decimal) for code, decimal in reasons)
    known = {int(reason) for reason in (*StoreStatus, *FailureReason)} - {StoreStatus.SUCCESS}
    assert {int(decimal) for _, decimal in reasons} == known
    limits, page = HttpLimits(), section("6. STOW-RS")
    assert f"{limits.request:,} bytes and {limits.parts:,} parts per request" in page
    assert f"boundary of {multipart.MAX_BOUNDARY} characters, {limits.at_once} requests" in page
    assert (limits.instance, multipart.MAX_HEADER) == (2 * 2**30, 8 * 2**10)
    pace = f"nothing came for {limits.pace.pause_s:g} s, or after the first minute less than"
    assert f"{pace} {limits.pace.slowest / 1024:g} KiB per second" in section("HTTP status")
