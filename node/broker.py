"""The doorbell's wire: which broker, the Celery settings that go with it, and `Bell`, which rings.

The broker is the one that is configured, else the one in `$WETREAD_BROKER_URL`, else a Valkey or Redis server of our
own on a private socket, else the memory of this process. It never holds anything that the database does not.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node import clock, embedded
from node.configvalues import broker_url
from node.errors import BrokerUnavailable, ConfigError
from node.settings import Settings

if TYPE_CHECKING:
    from celery import Celery

log = logging.getLogger(__name__)

ENVIRONMENT = "WETREAD_BROKER_URL"
MEMORY = "memory://"
TASKS = {"read": "wetread.read", "send": "wetread.send"}
"""Queue → the one task in it; a message carries the id of a job or a delivery and nothing else."""

MAX_WAITING = 1000
"""Messages in a queue with which it is full: ringing stops until half of them are taken. Each says that there is work,
and which is next says the database, so that more of them, all ids once more every half minute, would say nothing."""


VISIBILITY_S, RESTORE_S = 600, 5
"""A message that a killed worker had taken and not answered goes to another after so long, looked for so often."""
_OVERDUE_S = 60
"""How much later than that a message which still lies there means that no worker looks."""


@contextmanager
def resolve(settings: Settings, state: Path) -> Iterator[str]:
    """Yield the broker's URL; an embedded server runs until the block ends, or until this process does.

    Where another process of this node already runs the embedded server, that one is used. Raises `ConfigError`
    for a URL that must not be used and `BrokerUnavailable` when the embedded server does not start.
    """
    source, url = "wetread.toml [broker]", settings.broker.url
    if url == "embedded" and os.environ.get(ENVIRONMENT):
        source, url = f"${ENVIRONMENT}", os.environ[ENVIRONMENT]
    if url != "embedded":
        check_url(url, source)
        yield url
        return
    binary = embedded.find_binary()
    if binary is None:
        log.warning("No valkey-server or redis-server was found: jobs are announced within this process only.")
        yield MEMORY
        return
    with _embedded(binary, state.resolve()) as found:
        yield found


def check_url(url: str, source: str) -> None:
    """Raise `ConfigError` for a broker that loses tasks, or that anybody on the network could ring."""
    try:
        broker_url(url)
    except ValueError as error:
        raise ConfigError(source, None, f"url: {error}") from None


def make_app(url: str, kind: type[Celery] | None = None) -> Celery:
    """Return a Celery app for `url`, of the class `kind`; it has no tasks of its own, those are the worker's.

    Early acknowledgement, no result backend, JSON only, no prefetch: the database decides who runs what.
    """
    from celery import Celery  # costs 0.2 s, which `wetread --help` need not pay

    app = (kind or Celery)("wetread", broker=url)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=False,
        task_publish_retry=False,
        task_routes={task: {"queue": queue} for queue, task in TASKS.items()},
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=url.startswith("redis"),
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=_transport_options(url),
    )
    return app


def _transport_options(url: str) -> dict[str, Any]:
    if not url.startswith("redis"):
        return {}
    return {
        "visibility_timeout": VISIBILITY_S,
        "unacked_restore_interval": RESTORE_S,
        "unacked_restore_throttle": 1,
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        "global_keyprefix": "wetread:",
        # Without these a publish waits for ever while the broker is down (kombu: Connection.default_channel).
        "max_retries": 1,
        "interval_start": 0,
        "interval_step": 0,
    }


def make_ring(url: str) -> Bell:
    """Return the ring for the broker at `url`, as the doorbell wants it."""
    return Bell(make_app(url))


class Bell:
    """Rings for a job or a delivery: `bell("read", job_id)`. Says once in the log when the broker goes and returns, and
    once that a queue is full, until it was empty."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._down = False
        self._full: set[str] = set()
        self._told: set[str] = set()

    def takes(self, kind: str) -> bool:
        """Say whether the queue `kind` takes messages: not from when it was full until half of them are taken.

        Raises `BrokerUnavailable`.
        """
        if kind in self._full:
            with self._reached(), self._app.producer_pool.acquire(block=True, timeout=5) as producer:
                self._judge(kind, _waiting(producer.channel, kind), MAX_WAITING // 2)
        return kind not in self._full

    def __call__(self, kind: str, row_id: str) -> None:
        """Publish one id to the queue `kind`; raises `BrokerUnavailable`, and then nothing was published."""
        with self._reached(), self._app.producer_pool.acquire(block=True, timeout=5) as producer:
            self._judge(kind, _waiting(producer.channel, kind), MAX_WAITING - 1)
            if kind not in self._full:
                self._app.send_task(TASKS[kind], args=[row_id], queue=kind, producer=producer, retry=False)
        if kind in self._full:
            raise BrokerUnavailable(f"The queue {kind} is full.")

    @contextmanager
    def _reached(self) -> Iterator[None]:
        from kombu.exceptions import KombuError
        from redis.exceptions import RedisError

        try:
            yield
        except (KombuError, RedisError, OSError) as error:
            self._note(down=True, why=type(error).__name__)
            raise BrokerUnavailable from error
        self._note(down=False)

    def _judge(self, kind: str, waiting: int, most: int) -> None:
        """Note that a queue is full, or is not any more: workers that are behind are no fault, and no worker may be."""
        if waiting <= most:
            self._full.discard(kind)
        elif kind not in self._full:
            self._full.add(kind)
            if kind not in self._told:
                self._told.add(kind)
                what = "%d messages wait in queue %s: workers are behind, or none runs. The rest stays in the database."
                log.warning(what, waiting, kind, extra={"action": "queue_full"})
        if not waiting:
            self._told.discard(kind)

    def _note(self, *, down: bool, why: str = "") -> None:
        if down and not self._down:
            log.warning(
                "The broker does not answer (%s); jobs wait in the database.", why, extra={"action": "broker_down"}
            )
        if self._down and not down:
            log.info("The broker is back.", extra={"action": "broker_up"})
        self._down = down


def _waiting(channel: Any, queue: str) -> int:
    """Return how many messages wait; not `passive`, for which kombu 5.7 forgets the key prefix and finds no queue."""
    return int(channel.queue_declare(queue=queue).message_count)


@contextmanager
def _embedded(binary: Path, state: Path) -> Iterator[str]:
    """Own the embedded server, or use the one whose owner holds the lock; the kernel frees the lock of the dead."""
    folder = state / "broker"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    socket = embedded.socket_path(state)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            embedded.wait_until_ready(socket)
            yield f"redis+socket://{socket}"
            return
        with embedded.Server(binary, folder, socket):
            yield f"redis+socket://{socket}"
    finally:
        os.close(descriptor)


def waiting(settings: Settings, state: Path) -> dict[str, int]:
    """Return queue → messages in it, "unacked" those that ought to have gone to another worker; {} without a broker.

    A worker answers a message before it works on it. One that is killed between leaves it behind, which costs nothing:
    the job is rung for again, and the message comes to a worker after `VISIBILITY_S`. Until then it is not counted.
    Starts nothing: an embedded server that does not run has no messages.
    """
    from redis import Redis
    from redis.exceptions import RedisError

    url = os.environ.get(ENVIRONMENT, "") if settings.broker.url == "embedded" else settings.broker.url
    if not url:
        url = f"unix://{embedded.socket_path(state.resolve())}"
    try:
        with Redis.from_url(
            url.replace("redis+socket://", "unix://"), socket_timeout=5, socket_connect_timeout=2
        ) as asked:
            found = {queue: int(asked.llen(f"wetread:{queue}")) for queue in TASKS}
            overdue = clock.now() - VISIBILITY_S - RESTORE_S - _OVERDUE_S
            return found | {"unacked": int(asked.zcount("wetread:unacked_index", "-inf", overdue))}
    except (RedisError, OSError, ValueError):
        return {}
