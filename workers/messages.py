"""What may come out of a queue: our own messages, and of those nothing but the task and its one argument.

Whoever can write into the broker can push anything. kombu and Celery raise on much of it in the worker's event loop,
which ends the worker, and write the rest into the log; so each message is looked at before they see it. What is none
of ours is dropped with a line that names the queue. Nothing is lost with it: due jobs are rung for again from the
database. A message is never unpickled, and its content is never logged.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import logging
import time
import uuid
from typing import Any

from celery import Celery
from kombu.transport import redis

from node import broker

MAX_SIZE = 64 * 1024
"""Bytes of a message; ours have fewer than 2,000."""
TELL_EVERY_S = 60.0
"""How long further dropped messages of a queue are only counted."""
_log = logging.getLogger(__name__)


class NotOurs(Exception):
    """Why a message is none of ours, in words without its content."""


def sanitize(data: bytes) -> dict[str, Any]:
    """Return the message in a fresh envelope: task, argument, and where it came from. Raises `NotOurs`."""
    if len(data) > MAX_SIZE:
        raise NotOurs(f"{len(data)} bytes")
    envelope = _loads(data)
    task = _part(envelope, "headers").get("task")
    queue = next((queue for queue, ours in broker.TASKS.items() if ours == task), None)
    if queue is None:
        raise NotOurs("another task")
    if envelope.get("content-type") != "application/json":
        raise NotOurs("another serializer than JSON")
    body = json.dumps([[_argument(envelope.get("body"))], {}, {"callbacks": None, "errbacks": None}])
    number = str(uuid.uuid4())  # also the tag: a known one would end a message that is not this one
    return {
        "body": base64.b64encode(body.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": task, "id": number, "root_id": number, "parent_id": None, "group": None},
        "properties": {
            "correlation_id": number,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": number,
        },
    }


class Listener(Celery):  # type: ignore[misc]  # celery is untyped
    """A Celery app whose worker is handed nothing but what `sanitize` lets through; `memory://` is ours alone."""

    def connection_for_read(self, url: str | None = None, **options: Any) -> Any:
        """Return a connection to take messages from, as Celery's worker asks for it."""
        connection = super().connection_for_read(url, **options)
        if issubclass(connection.get_transport_cls(), redis.Transport):
            connection.transport_cls = _Transport
        return connection


def _loads(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise NotOurs("no JSON") from None


def _part(envelope: Any, name: str) -> dict[str, Any]:
    part = envelope.get(name) if isinstance(envelope, dict) else None
    if not isinstance(part, dict):
        raise NotOurs("no message of Celery")
    return part


def _argument(body: Any) -> str:
    """Return the one argument of our tasks; whether it is an id is for the task to say."""
    try:
        found = _loads(base64.b64decode(body, validate=True))
    except (TypeError, ValueError, binascii.Error):
        raise NotOurs("a body that is not base64") from None
    match found:
        case [[str(argument)], dict(keywords), *_] if not keywords:
            return argument
    raise NotOurs("other arguments than one id")


class _Client(redis.PrefixedStrictRedis):
    """The client that a channel takes messages with; kombu takes off the key prefix at the same place."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]
        self._dropped, self._told_at = 0, -TELL_EVERY_S

    def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
        """Return what Redis said; a message that is none of ours is as good as none."""
        said = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        if command_name != "BRPOP" or not said:
            return said
        key, data = said
        try:
            return key, json.dumps(sanitize(data)).encode()
        except NotOurs as why:
            self._tell(key, why)
            return None

    def _tell(self, key: Any, why: NotOurs) -> None:
        self._dropped += 1
        if time.monotonic() - self._told_at < TELL_EVERY_S:
            return
        queue = key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
        _log.warning(
            "Messages in queue %s of the broker are none of ours: %d dropped, the last was %s. No job is lost, each is "
            "rung for again. Somebody else writes into this broker: give the node one of its own, with a password.",
            queue,
            self._dropped,
            why,
            extra={"action": "message_dropped", "queue": queue, "count": self._dropped},
        )
        self._dropped, self._told_at = 0, time.monotonic()


class _Channel(redis.Channel):
    def _get_client(self) -> Any:
        return functools.partial(_Client, global_keyprefix=self.global_keyprefix)


class _Transport(redis.Transport):
    Channel = _Channel
