"""Logging: one line per event, as text or JSON, with a stable `action` and no word that a stranger wrote.

Only the fields of `FIELDS` leave through `extra=`. Records of other packages, captured warnings and exceptions are
reduced to where and what kind, because their texts carry values of data sets. No patient name, ID, birth date or
accession number can be logged: nothing here accepts one.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TextIO

from node.clock import to_datetime
from node.errors import WetreadError
from node.settings import LogSettings

OUR_PACKAGES = ("node", "workers")
FIELDS = frozenset(
    {"action", "study_instance_uid", "series_instance_uid", "sop_instance_uid", "sop_class_uid", "transaction_uid"}
    | {"transfer_syntax_uid", "calling_ae", "called_ae", "address", "port", "peer", "destination", "status"}
    | {"job_id", "delivery_id", "bundle", "route", "revision", "attempts", "worker", "state", "reason", "error"}
    | {"count", "size", "duration_s", "signal", "path", "device"}
)
"""The names that `extra=` may carry; any other is dropped."""
MAX_VALUE = 200
"""Characters of one field; the message itself may have ten times as many."""

_QUIET = ("pynetdicom", "pydicom", "celery", "kombu", "amqp", "uvicorn.access", "PIL", "matplotlib", "asyncio")


def configure(settings: LogSettings, stream: TextIO | None = None) -> logging.Handler:
    """Send all logging of this process to `stream` (standard error) as `settings` say, and return the handler.

    Uncaught exceptions of threads and of the process end in the same place, without the values they carry.
    """
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h.formatter, _Formatter)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for package in OUR_PACKAGES:
        logging.getLogger(package).setLevel(settings.level.upper())
    for package in _QUIET:
        logging.getLogger(package).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a failing handler prints the record, values and all, on standard error
    threading.excepthook = _on_thread_exception
    sys.excepthook = _on_exception
    return handler


def safe(value: object, limit: int = MAX_VALUE) -> str:
    """Return `value` as one line of printable text of at most `limit` characters; control characters are escaped."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(value))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def describe(error: BaseException) -> str:
    """Return what may be logged of an exception: our own messages whole, of all others the class and the place."""
    if isinstance(error, WetreadError):
        return safe(error, MAX_VALUE * 10)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {_place(frames[-1])}" if frames else ""
    return f"{type(error).__name__}{where}"


class _Formatter(logging.Formatter):
    """Turns a record into safe parts."""

    def message(self, record: logging.LogRecord) -> str:
        """Return the message of our own record; of a foreign one only where it was written and what was raised."""
        if record.name.split(".")[0] in OUR_PACKAGES:
            return safe(record.getMessage(), MAX_VALUE * 10)
        if record.name == "py.warnings":
            return f"warning {_warning_category(record)}"
        raised = record.exc_info[1] if record.exc_info else record.msg
        kind = f" ({type(raised).__name__})" if isinstance(raised, BaseException) else ""
        return f"{record.name} reports a problem in {record.module}.{record.funcName}:{record.lineno}{kind}"

    def fields(self, record: logging.LogRecord) -> Mapping[str, str | int | float | bool]:
        """Return the allow-listed extra fields, and the exception with its frames but without its text."""
        found: dict[str, str | int | float | bool] = {}
        for name in sorted(FIELDS & record.__dict__.keys()):
            value = record.__dict__[name]
            found[name] = value if isinstance(value, int | float) else safe(value)
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            found["error"] = describe(error)
            frames = traceback.extract_tb(error.__traceback__)[-8:]
            found["frames"] = " < ".join(_place(frame) for frame in reversed(frames))
        return found


class TextFormatter(_Formatter):
    """`2026-01-31T12:00:00.000Z INFO message action=… key=…`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        extra = "".join(f" {name}={_quoted(value)}" for name, value in self.fields(record).items())
        return f"{_time(record)} {record.levelname:<7} {self.message(record)}{extra}"


class JsonFormatter(_Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        head = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        return json.dumps({**head, "message": self.message(record), **self.fields(record)}, ensure_ascii=True)


def _time(record: logging.LogRecord) -> str:
    return to_datetime(record.created).strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(record.msecs):03d}Z"


def _quoted(value: str | int | float | bool) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "=') else text


def _place(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}"


def _warning_category(record: logging.LogRecord) -> str:
    """Return `UserWarning at file.py:12` of a captured `file.py:12: UserWarning: text that may hold values`."""
    parts = record.getMessage().split(":", 3)
    return f"{safe(parts[2].strip())} at {safe(parts[0].rsplit('/', 1)[-1])}:{safe(parts[1])}" if len(parts) > 3 else ""


LINES, LINES_WITHIN_S = 20, 60.0
"""Lines of one kind that others may cause at will, and in how many seconds."""


class Sparing(logging.Filter):
    """Counts what goes beyond `LINES` of those that `applies` to: who is outside may cause one each time, and fill a
    disk."""

    def __init__(self, applies: Callable[[logging.LogRecord], bool]) -> None:
        super().__init__()
        self._applies = applies
        self._lock = threading.Lock()
        self._since, self._written, self._more = float("-inf"), 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the line is written; the first after a pause tells how many were not."""
        if not self._applies(record):
            return True
        with self._lock:
            if time.monotonic() - self._since >= LINES_WITHIN_S:
                more, self._since, self._written, self._more = self._more, time.monotonic(), 0, 0
                if more:
                    record.msg = f"{record.msg} ({more} such lines before it were left out)"
            self._written += 1
            self._more += self._written > LINES
            return self._written <= LINES


def _on_thread_exception(args: threading.ExceptHookArgs) -> None:
    if isinstance(args.exc_value, SystemExit):
        return
    name = args.thread.name if args.thread else "?"
    info = (args.exc_type, args.exc_value, args.exc_traceback) if args.exc_value is not None else None
    logging.getLogger(__name__).error("Thread %s ended by an exception.", name, exc_info=info, extra=_DIED)


def _on_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger(__name__).critical("The process ended.", exc_info=(kind, error, trace), extra=_DIED)


_DIED = {"action": "uncaught_exception"}
