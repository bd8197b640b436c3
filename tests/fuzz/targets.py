"""What is fuzzed: each target takes bytes, builds an input of them, and lets nothing out but the errors that are meant.

An exception of another kind, more than two seconds for one input, and memory that grows are findings.
"""

from __future__ import annotations

import atexit
import logging
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from node.accept import multipart, part10
from node.accept.multipart import Malformed, TooLarge
from node.accept.precheck import Refused, inspect
from node.configvalues import Check
from node.errors import ConfigError
from node.settings import load_settings
from tests.fuzz.grammar import Choices, some_config, some_dataset, some_multipart, some_pdus
from tests.protocol.listening import Node, connect, ending, listening
from tests.unit.encoded import CT

SLOWEST_S = 2.0
MOST_GROWTH = 256 * 2**20
"""Bytes that the process may grow by, over all inputs since `count_from_here` or the import."""
_CHECKS: tuple[Check, ...] = ("lenient", "standard", "strict")

Target = Callable[[bytes], None]


class Finding(AssertionError):
    """What must not happen has happened."""


def precheck(data: bytes) -> None:
    """The walk over a data set and what is asked of it."""
    choices = Choices(data)
    check = _CHECKS[choices.number(3)]
    dataset, syntax = some_dataset(choices)
    try:
        inspect(dataset, syntax, CT, "1.2.3.4", check)
    except Refused as refused:
        assert len(refused.reason) <= 64  # noqa: PT017 - part of what is promised


def body(data: bytes) -> None:
    """A multipart body in any pieces, and the Part 10 files in it."""
    choices = Choices(data)
    size = 1 + choices.number(200)
    boundary, sent = some_multipart(choices)
    pieces = (sent[at : at + size] for at in range(0, len(sent), size))
    try:
        for part in multipart.parts(pieces, boundary, 20):
            try:
                _, chunks = part10.read_head(part.body)
                for _ in chunks:
                    pass
            except Refused:
                continue
    except (Malformed, TooLarge):
        return


def config(data: bytes) -> None:
    """A configuration file as it is loaded."""
    path = Path(_folder()) / f"{threading.get_ident()}.toml"
    path.write_bytes(some_config(Choices(data)).encode("utf-8", "surrogateescape"))
    try:
        load_settings(path)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017 - as above


def pdus(data: bytes) -> None:
    """One connection to a listener that stays; whatever is sent, it answers or closes, and goes on listening."""
    node = _node()
    connection = connect(node.port)
    try:
        connection.sendall(some_pdus(Choices(data)))
        connection.shutdown(1)
    except OSError:  # it had closed before all was sent
        pass
    if ending(connection, SLOWEST_S) is None:
        raise Finding("the listener neither answered nor closed")
    if not node.listener.is_alive() or _torn:
        raise Finding(f"the listener is torn: {_torn}")


TARGETS: dict[str, Target] = {"precheck": precheck, "body": body, "config": config, "pdus": pdus}


def bounded(target: Target, data: bytes) -> None:
    """Run one input and raise `Finding` when it took too long or too much."""
    started = time.monotonic()
    target(data)
    if (took := time.monotonic() - started) > SLOWEST_S:
        raise Finding(f"one input took {took:.1f} s")
    if (grown := _peak() - _memory_before) > MOST_GROWTH:
        raise Finding(f"the process grew by {grown:,} bytes")


def count_from_here() -> None:
    """Let the growth of the process count from now: what ran in it before does not."""
    global _memory_before
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now (proc(5))
    _memory_before = _peak()


def _peak() -> int:
    """Return the most bytes that were ever resident."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024


_memory_before = _peak()
_stack = ExitStack()
_torn: list[str] = []
_kept: dict[str, Node | str] = {}


def _folder() -> str:
    if "folder" not in _kept:
        atexit.register(_stack.close)
        _kept["folder"] = _stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz"))
    return str(_kept["folder"])


def _node() -> Node:
    if "node" not in _kept:
        threading.excepthook = lambda args: _torn.append(f"{args.exc_type.__name__} in {args.thread}")
        logging.disable(logging.CRITICAL)
        _kept["node"] = _stack.enter_context(listening(Path(_folder())))
    found = _kept["node"]
    assert isinstance(found, Node)
    return found


def let_go() -> None:
    """Stop the listener and remove what was written."""
    _stack.close()
    _kept.clear()
    logging.disable(logging.NOTSET)
