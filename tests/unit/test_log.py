"""Nothing a stranger wrote reaches the log; one line per event; the fields are a closed list."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator

import pytest

from node import log
from node.errors import NoRoom
from node.settings import LogSettings

CANARY = "MUSTERMANN^ERIKA"


@pytest.fixture
def text() -> Iterator[io.StringIO]:
    yield from _configured("text")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    yield from _configured("json")


def _configured(kind: str) -> Iterator[io.StringIO]:
    hooks = sys.excepthook, threading.excepthook, logging.raiseExceptions
    stream = io.StringIO()
    handler = log.configure(LogSettings(level="debug", format=kind), stream)  # type: ignore[arg-type]
    yield stream
    logging.getLogger().removeHandler(handler)
    logging.captureWarnings(False)
    sys.excepthook, threading.excepthook, logging.raiseExceptions = hooks


def test_our_message_with_its_action_and_allowed_fields(text: io.StringIO) -> None:
    extra = {"action": "study_complete", "study_instance_uid": "1.2.3", "patient_name": CANARY, "count": 3}
    logging.getLogger("node.assemble").info("The study is complete.", extra=extra)
    line = text.getvalue()
    assert line.endswith("Z INFO    The study is complete. action=study_complete count=3 study_instance_uid=1.2.3\n")
    assert CANARY not in line


def test_json_lines_can_be_read_back(lines: io.StringIO) -> None:
    extra = {"action": "instance_refused", "status": "C000", "reason": 'x "y" \n z'}
    logging.getLogger("node.accept").warning("Refused.", extra=extra)
    (line,) = lines.getvalue().splitlines()
    found = json.loads(line)
    assert found["level"] == "warning"
    assert found["logger"] == "node.accept"
    assert found["message"] == "Refused."
    assert found["reason"] == 'x "y" \\n z'


@pytest.mark.parametrize("evil", ["A\n2026-01-01T00:00:00.000Z ERROR  fake", "A\r\nB", "\x1b[31mred", "a\u2028b"])
def test_a_field_cannot_begin_a_new_line(text: io.StringIO, evil: str) -> None:
    logging.getLogger("node.accept").info("Hello.", extra={"action": "x", "calling_ae": evil})
    assert len(text.getvalue().splitlines()) == 1
    assert "\x1b" not in text.getvalue()


def test_other_packages_are_reduced_to_where_and_what(text: io.StringIO) -> None:
    foreign = logging.getLogger("pynetdicom.dul")
    foreign.info("chatter %s", CANARY)
    foreign.error("Invalid value '%s'", CANARY)
    foreign.exception(ValueError(CANARY))
    foreign.error(ValueError(CANARY))
    written = text.getvalue()
    assert CANARY not in written
    assert len(written.splitlines()) == 3
    assert "pynetdicom.dul reports a problem in test_log." in written
    assert "(ValueError)" in written


def test_an_exception_is_named_but_its_text_is_not_repeated(text: io.StringIO) -> None:
    def fail() -> None:
        raise ValueError(CANARY)

    try:
        fail()
    except ValueError:
        logging.getLogger("node.accept").exception("It failed.", extra={"action": "x"})
    written = text.getvalue()
    assert CANARY not in written
    assert "ValueError at test_log.py:" in written
    assert "fail" in written
    assert len(written.splitlines()) == 1


def test_our_own_exceptions_speak(text: io.StringIO) -> None:
    logging.getLogger("node.accept").error("It failed.", extra={"error": log.describe(NoRoom("3 bytes are free"))})
    assert "3 bytes are free" in text.getvalue()


def test_warnings_are_reduced_to_their_category(text: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"Invalid value {CANARY}", UserWarning, stacklevel=1)
    assert CANARY not in text.getvalue()
    assert "warning UserWarning at test_log.py:" in text.getvalue()


def test_a_thread_that_dies_leaves_one_line_without_values(
    text: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    def die() -> None:
        raise KeyError(CANARY)

    thread = threading.Thread(target=die, name="worker-7")
    thread.start()
    thread.join()
    assert CANARY not in text.getvalue() + capfd.readouterr().err
    assert "Thread worker-7 ended by an exception." in text.getvalue()
    assert "KeyError" in text.getvalue()


def test_a_record_that_cannot_be_formatted_is_not_printed(text: io.StringIO, capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("node.accept").info("%d", CANARY)
    assert CANARY not in text.getvalue() + capfd.readouterr().err


def test_configuring_twice_writes_once(text: io.StringIO) -> None:
    again = io.StringIO()
    handler = log.configure(LogSettings(), again)
    logging.getLogger("node.accept").info("Hello.")
    logging.getLogger().removeHandler(handler)
    assert text.getvalue() == ""
    assert len(again.getvalue().splitlines()) == 1
