"""A real listener on a free port of loopback, and a sender that puts any bytes on the wire."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA

from node.accept.guard import Limits
from node.accept.listener import Listener, serve
from node.accept.precheck import identify
from node.assemble.recover import recover
from node.metrics import Registry
from node.settings import DatabaseSettings, NodeSettings, Settings, SpoolSettings
from node.store.db import Database, rows
from node.store.spool import Spool
from tests.unit.encoded import CT, EXPLICIT

VERIFICATION = "1.2.840.10008.1.1"
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"


@dataclass(frozen=True)
class Node:
    """A listener with all it writes to."""

    listener: Listener
    spool: Spool
    db: Database
    metrics: Registry
    audit: Path

    @property
    def port(self) -> int:
        return self.listener.port

    def instances(self) -> list[dict[str, Any]]:
        """The index, after everything acknowledged has reached it."""
        assert self.listener.wait_until_registered(30)
        with self.db.reader() as connection:
            return rows(connection, "SELECT * FROM instance ORDER BY sop_instance_uid")

    def files(self) -> list[Path]:
        """The instances in the spool, after everything acknowledged has been laid out."""
        assert self.listener.wait_until_registered(30)
        return list(self.spool.instances())

    def left_over(self) -> list[Path]:
        """What lies about in the spool, after everything acknowledged has been laid out."""
        assert self.listener.wait_until_registered(30)
        return list((self.spool.root / "tmp").iterdir())

    def echo(self) -> int:
        """The status of a C-ECHO on an association of its own."""
        with associated(self.port, [(VERIFICATION, [EXPLICIT])]) as assoc:
            return int(assoc.send_c_echo().Status)


@contextmanager
def listening(
    folder: Path, refuse_below: int = 0, limits: Limits | None = None, settings: Settings | None = None
) -> Iterator[Node]:
    """A node that listens while the block runs."""
    db = _database(folder)
    where = {"spool": SpoolSettings(url=folder / "state" / "spool"), "database": DatabaseSettings(url=str(db.url))}
    settings = (settings or Settings(node=NodeSettings(port=0))).model_copy(update=where)
    spool, metrics = Spool(settings.spool.url, refuse_below), Registry()
    listener = serve(settings, db, spool, metrics, limits, lost=partial(recover, db, spool, identify))
    try:
        yield Node(listener, spool, db, metrics, folder / "state" / "audit.log")
    finally:
        listener.stop(5)
        db.close()


def _database(folder: Path) -> Database:
    return Database(f"sqlite:///{folder}/state/wetread.db")


def associate(
    port: int, contexts: Sequence[tuple[str, Sequence[str]]], calling: str = "CT1", called: str = "WETREAD", **more: Any
) -> Association:
    """Ask for an association; it may come back rejected."""
    entity = AE(calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
    for abstract_syntax, syntaxes in contexts:
        entity.add_requested_context(abstract_syntax, list(syntaxes))
    handlers = [(evt.EVT_CONN_OPEN, _without_delay)]
    assoc = entity.associate("127.0.0.1", port, ae_title=called, evt_handlers=handlers, **more)
    get_msg: Any = assoc.dimse.get_msg
    # Its own thread looks for requests and would take an answer away that comes quickly; only who asked waits for one.
    assoc.dimse.get_msg = lambda block=False: get_msg(True) if block else (None, None)  # type: ignore[method-assign]
    return assoc


def _without_delay(event: Any) -> None:
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@contextmanager
def associated(port: int, contexts: Sequence[tuple[str, Sequence[str]]], **more: Any) -> Iterator[Association]:
    """An association, released at the end if it still is one."""
    assoc = associate(port, contexts, **more)
    assert assoc.is_established
    try:
        yield assoc
    finally:
        assoc.release() if assoc.is_established else assoc.abort()


def request(
    assoc: Association, dataset: bytes, sop_class: str = CT, sop_instance: str = "1.2.3.4", syntax: str = EXPLICIT
) -> int | None:
    """Send one C-STORE-RQ with `dataset` as it is, without waiting; return its context, None if there is none."""
    context = next(
        (c for c in assoc.accepted_contexts if (c.abstract_syntax, c.transfer_syntax[0]) == (sop_class, syntax)), None
    )
    if context is None:
        return None
    validators = dict(_config.VALIDATORS)
    _config.VALIDATORS["UI"] = lambda value: (True, "")
    try:
        message = C_STORE()
        message.MessageID, message.Priority = 1, 2
        message.AffectedSOPClassUID, message.AffectedSOPInstanceUID = UID(sop_class), UID(sop_instance)
        message.DataSet = BytesIO(dataset)
        assoc.dimse.send_msg(message, context.context_id)
        if not dataset:  # pynetdicom announces a data set and then sends none
            nothing = P_DATA()
            nothing.presentation_data_value_list.append((context.context_id, b"\x02"))
            assoc.dul.send_pdu(nothing)
    finally:
        _config.VALIDATORS.update(validators)
    return int(context.context_id)


def store(
    assoc: Association, dataset: bytes, sop_class: str = CT, sop_instance: str = "1.2.3.4", syntax: str = EXPLICIT
) -> int | None:
    """Send one C-STORE-RQ with `dataset` as it is and return the status; None when there is no context or no answer."""
    assoc._reactor_checkpoint.clear()
    while not assoc._is_paused:
        time.sleep(0.0005)
    try:
        if request(assoc, dataset, sop_class, sop_instance, syntax) is None:
            return None
        _, response = assoc.dimse.get_msg(block=True)
        return None if response is None or response.Status is None else int(response.Status)
    finally:
        assoc._reactor_checkpoint.set()


def connect(port: int, data: bytes = b"") -> socket.socket:
    """A bare TCP connection that has sent `data`."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(data)
    return connection


def ending(connection: socket.socket, within_s: float = 10.0) -> bytes | None:
    """What the node still says before it closes; None when it does not close in time."""
    connection.settimeout(within_s)
    said = b""
    try:
        while data := connection.recv(4096):
            said += data
    except TimeoutError:
        return None
    except ConnectionResetError:
        return said
    finally:
        connection.close()
    return said


def associate_rq(version: int = 1, application_context: str = APPLICATION_CONTEXT) -> bytes:
    """An A-ASSOCIATE-RQ with one Presentation Context, byte by byte (PS3.8 §9.3.2)."""
    context = _item(0x20, bytes((1, 0, 0, 0)) + _item(0x30, CT.encode()) + _item(0x40, EXPLICIT.encode()))
    user = _item(0x50, _item(0x51, struct.pack(">L", 16384)) + _item(0x52, b"1.2.3.4"))
    fixed = struct.pack(">HH", version, 0) + b"WETREAD".ljust(16) + b"CT1".ljust(16) + bytes(32)
    return pdu(0x01, fixed + _item(0x10, application_context.encode()) + context + user)


def p_data(*pdvs: bytes) -> bytes:
    """A P-DATA-TF with the given PDVs, each with its message control header, on context 1 (PS3.8 §9.3.5)."""
    return pdu(0x04, b"".join(struct.pack(">LB", len(pdv) + 1, 1) + pdv for pdv in pdvs))


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    """One PDU; `length` when it shall lie."""
    return struct.pack(">BBL", kind, 0, len(body) if length is None else length) + body


def read_pdu(connection: socket.socket) -> tuple[int, bytes]:
    """Read one PDU: its type and body."""
    kind, _, length = struct.unpack(">BBL", _exactly(connection, 6))
    return kind, _exactly(connection, length)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        assert part, "the connection was closed"
        data += part
    return data


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body
