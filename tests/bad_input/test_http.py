"""What is wrong in a request to the HTTP face beside the instances themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from node.web import auth
from tests.protocol.stowing import FORM, PLAIN, HttpNode, multipart, part10, raw, request, serving, status_of

TOKEN = "correct horse battery"  # noqa: S105 - nobody's


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpNode]:
    with serving(tmp_path_factory.mktemp("node")) as running:
        yield running


def test_who_has_no_token_stores_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, token=TOKEN) as node:
        for header in ("", "Bearer", "Bearer wrong", "Bearer correct horse batterie", "Basic %%%", "Digest x"):
            assert node.post(multipart(part10()), Authorization=header).status_code == 401
        assert not list(node.node.files())
        assert node.store(part10()) == (200, [])


def test_guessing_tokens_is_429_for_the_guesser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, token=TOKEN) as node:
        page = f"http://127.0.0.1:{node.port}/readyz"
        given = [
            httpx.get(page, verify=PLAIN, headers={"Authorization": f"Bearer guess {n}"}).status_code for n in range(25)
        ]
        assert given == [401] * auth.MOST_GUESSES + [429] * (25 - auth.MOST_GUESSES)
        refused = httpx.get(page, verify=PLAIN, headers={"Authorization": "Bearer one more"})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
        assert httpx.get(page, verify=PLAIN, headers=node.headers).status_code == 200, (
            "whoever has it came through the same proxy"
        )
        assert node.store(part10())[0] == 200
        assert httpx.get(f"http://127.0.0.1:{node.port}/healthz", verify=PLAIN).status_code == 200
        monkeypatch.setattr(auth, "GUESSES_WITHIN_S", 0.0)
        assert httpx.get(page, verify=PLAIN, headers={"Authorization": "Bearer one more"}).status_code == 401


def test_a_length_beyond_the_limit_is_413_before_a_byte_is_read(node: HttpNode) -> None:
    started = time.monotonic()
    said = raw(node.port, request(f"Content-Type: {FORM}", "Content-Length: 4294967296", "Expect: 100-continue"))
    assert status_of(said) == 413
    assert time.monotonic() - started < 2


QUERIES = ("page=-1", "page=0", "page=1e5", "page=99999999999999999999", "page=x", "state=NONE")
SQL = ("state=DONE'--", "state=DONE OR 1=1", "page=1;DROP TABLE study")


@pytest.mark.parametrize("query", [*QUERIES, *SQL])
def test_queries_that_are_none_are_400(node: HttpNode, query: str) -> None:
    name, _, value = query.partition("=")
    answer = httpx.get(f"http://127.0.0.1:{node.port}/", verify=PLAIN, params={name: value})
    assert answer.status_code == 400
    assert len(value) < 3 or value not in answer.text
    assert (
        httpx.get(f"http://127.0.0.1:{node.port}/", verify=PLAIN, params={"state": "done", "page": "1"}).status_code
        == 200
    )


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a": NaN}', b'"' + b"x" * 10_000_000 + b'"'])
def test_json_is_taken_nowhere(node: HttpNode, body: bytes) -> None:
    kind = {"Content-Type": "application/json"}
    assert httpx.post(f"http://127.0.0.1:{node.port}/", content=body, headers=kind, verify=PLAIN).status_code == 405
    assert httpx.post(f"{node.url}/studies", content=body, headers=kind, verify=PLAIN).status_code == 415
