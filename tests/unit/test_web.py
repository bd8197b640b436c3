from __future__ import annotations

import io
import logging
import re
import socket
from contextlib import ExitStack
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from starlette.testclient import TestClient

from node.errors import Permanent
from node.log import LINES, Sparing
from node.settings import Settings, WebSettings
from node.store import deliveries, jobs, studies
from node.store.db import Database
from node.store.jobs import Document, NewJob
from node.store.spool import Spool
from node.store.studies import Received
from node.web.app import make_app
from node.web.health import Health
from node.web.server import serve

STUDY = "1.2.826.0.1.3680043.8.498.1"
EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(1)>{{7*7}}'


class Node:
    """A database and a spool with one finished study, and a client for its pages."""

    def __init__(self, folder: Path) -> None:
        spool = {"url": folder / "spool", "refuse_below": "1 B"}
        self.settings = Settings.model_validate({"spool": spool, "database": {"url": f"sqlite:///{folder}/w.db"}})
        self.db = Database(self.settings.database.url)
        self.spool = Spool(self.settings.spool.url, 1)
        self.health = Health()

    def client(self) -> TestClient:
        return TestClient(make_app(self.db, self.settings, self.health), base_url="http://127.0.0.1")

    def receive(self, number: int = 1, study: str = STUDY) -> None:
        received = Received(
            sop_instance_uid=f"{study}.1.{number}",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            study_instance_uid=study,
            series_instance_uid=f"{study}.1",
            sha256=f"{number:064d}",
            path=f"instances/00/{number:064d}.dcm",
            size=1000,
            calling_ae=EVIL,
            is_own_result=False,
            received_at=1_000.0,
        )
        studies.register(self.db, [received])

    def read(self, summary: str = "Volume 2.4 mL", reason: str = "quiet for 60 s") -> None:
        """Take the study through to a delivery that waits."""
        revision = studies.complete(self.db, STUDY, 1_060.0, reason)
        assert revision is not None
        job = NewJob(STUDY, revision, f"{STUDY}.1", "hippocampus", "1.0.0", "ab", "crops", ("SR",), ("pacs",))
        assert studies.routed(self.db, STUDY, revision, [job], "1 job", 1_061.0)
        claimed = jobs.claim(self.db, jobs.listing(self.db)[0]["id"], "w", 1_062.0)
        assert claimed is not None
        stored = self.spool.store_result(key_image())
        document = Document(
            "SC", "1.2.840.10008.5.1.4.1.1.7", "2.25.1", "2.25.2", stored.path, stored.sha256, stored.size
        )
        assert jobs.reported(self.db, claimed, "w", [document], summary, 1_070.0)


def key_image() -> bytes:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "2.25.1"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.BitsAllocated = 2, 4, 3, 8
    ds.PixelData = bytes((200, 0, 0)) * 4 + bytes((0, 0, 200)) * 4
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


class Tags(HTMLParser):
    """Collects elements and the text around them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_an_empty_node_says_how_to_begin(node: Node) -> None:
    answer = node.client().get("/")
    assert answer.status_code == 200
    assert "No study has arrived yet" in answer.text
    assert "WETREAD" in answer.text


def test_a_study_shows_its_state_findings_deliveries_and_history(node: Node) -> None:
    node.receive()
    node.read()
    overview = Tags(node.client().get("/").text)
    assert "Volume 2.4 mL" in overview.text
    assert ("a", {"class": "uid", "href": f"/studies/{STUDY}"}) in overview.tags
    page = node.client().get(f"/studies/{STUDY}")
    assert page.status_code == 200
    for expected in (
        "Volume 2.4 mL",
        "quiet for 60 s",
        "2.25.1",
        "pacs",
        "hippocampus",
        "reading",
        "1970-01-01 00:17:40",
    ):
        assert expected in page.text, expected
    assert not re.search(r"Patient", page.text)


def test_the_key_image_is_the_secondary_capture(node: Node) -> None:
    node.receive()
    node.read()
    answer = node.client().get(f"/studies/{STUDY}/key-image-0.png")
    assert answer.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(answer.content))
    assert image.size == (4, 2)
    assert image.getpixel((0, 0)) == (200, 0, 0)
    assert image.getpixel((3, 1)) == (0, 0, 200)
    assert node.client().get(f"/studies/{STUDY}/key-image-1.png").status_code == 404


def test_text_of_a_stranger_is_escaped(node: Node) -> None:
    node.receive()
    node.read(summary=EVIL, reason=EVIL)
    for path in ("/", f"/studies/{STUDY}"):
        page = Tags(node.client().get(path).text)
        assert EVIL in page.text
        assert [a for t, a in page.tags if t == "script"] == [{"src": "/static/refresh.js", "defer": None}]
        assert all("onerror" not in attributes for _, attributes in page.tags)


def test_every_asset_is_our_own_and_every_answer_has_the_headers(node: Node) -> None:
    node.receive()
    node.read()
    client = node.client()
    for path in ("/", f"/studies/{STUDY}", "/none", "/static/wetread.css", "/healthz", "/metrics"):
        answer = client.get(path)
        assert answer.headers["content-security-policy"].startswith("default-src 'self'"), path
        assert answer.headers["x-content-type-options"] == "nosniff"
        for tag, attributes in Tags(answer.text).tags if "html" in answer.headers["content-type"] else ():
            for name in ("src", "href"):
                target = attributes.get(name) or "/"
                assert target.startswith(("/", "#")), (tag, target)
            assert "style" not in attributes
    for asset in ("wetread.css", "refresh.js", "icon.svg"):
        assert client.get(f"/static/{asset}").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/studies/1.2.3",
        "/studies/..%2f..%2fetc",
        "/studies/x%00",
        "/none",
        f"/studies/{STUDY}/key-image-0.png",
    ],
)
def test_what_is_not_there_is_404_and_not_repeated(node: Node, path: str) -> None:
    answer = node.client().get(path)
    assert answer.status_code == 404
    assert "etc" not in answer.text
    assert "Traceback" not in answer.text


def test_pages_only_read(node: Node) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert node.client().request(method, "/").status_code == 405


def test_a_page_says_what_may_be_done_with_it_and_sends_nobody_elsewhere(node: Node) -> None:
    client = node.client()
    assert set(client.post("/").headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert client.head("/").status_code == 200
    for path in ("/models/", f"/studies/{STUDY}/", "/static"):
        assert client.get(path, follow_redirects=False).status_code == 404


@pytest.mark.parametrize("number", ["-1", "1.0", "٣", "9" * 5000])
def test_a_number_of_a_key_image_that_is_none_is_404(node: Node, number: str) -> None:
    node.receive()
    node.read()
    assert node.client().get(f"/studies/{STUDY}/key-image-{number}.png").status_code == 404


def test_a_key_image_whose_file_is_gone_is_404(node: Node) -> None:
    node.receive()
    node.read()
    for path in (node.spool.root / "results").rglob("*.dcm"):
        path.unlink()
    assert node.client().get(f"/studies/{STUDY}/key-image-0.png").status_code == 404


def test_a_fault_of_ours_has_the_headers_and_says_nothing(node: Node) -> None:
    node.receive()
    node.read()
    for path in (node.spool.root / "results").rglob("*.dcm"):
        path.chmod(0o600)
        path.write_bytes(b"PATIENT^NAME")
    client = TestClient(
        make_app(node.db, node.settings, node.health), base_url="http://127.0.0.1", raise_server_exceptions=False
    )
    answer = client.get(f"/studies/{STUDY}/key-image-0.png")
    assert answer.status_code == 500
    assert "PATIENT" not in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    assert answer.headers["cache-control"] == "no-store"


def test_without_a_token_only_local_names_are_answered(node: Node) -> None:
    assert node.client().get("/", headers={"Host": "evil.example"}).status_code == 400
    assert node.client().get("/", headers={"Host": "localhost:8080"}).status_code == 200


def test_with_a_token_nobody_else_gets_in(node: Node, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("correct horse battery\n")
    node.settings = node.settings.model_copy(update={"web": WebSettings(token_file=token)})
    client = node.client()
    assert client.get("/healthz").status_code == 200
    for path in ("/", "/metrics", "/readyz", f"/studies/{STUDY}"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/", headers={"Authorization": "Bearer correct horse battery"}).status_code == 200
    assert client.get("/", auth=("anyone", "correct horse battery")).status_code == 200
    assert client.get("/", auth=("anyone", "wrong")).status_code == 401
    assert client.get("/", headers={"Authorization": "Basic %%%"}).status_code == 401
    token.write_text("short")
    with pytest.raises(Permanent, match="16 characters"):
        node.client()


def test_readyz_names_what_is_wrong(node: Node) -> None:
    node.health.good("assemble")
    ready = node.client().get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    node.health.bad("doorbell", "The broker does not answer.")
    degraded = node.client().get("/readyz")
    assert degraded.status_code == 503
    assert degraded.json()["checks"] == {
        "database": "ok",
        "spool": "ok",
        "assemble": "ok",
        "doorbell": "The broker does not answer.",
    }
    assert "The broker does not answer." in node.client().get("/").text


def test_metrics_count_by_state(node: Node) -> None:
    node.receive(1)
    node.receive(2, study="1.2.3.4")
    node.read()
    node.health.bad("route", "x")
    text = node.client().get("/metrics").text
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert samples['wetread_studies{state="RECEIVING"}'] == "1"
    assert samples['wetread_studies{state="ROUTED"}'] == "1"
    assert samples['wetread_jobs{state="REPORTED"}'] == "1"
    assert samples['wetread_deliveries{state="PENDING"}'] == "1"
    assert samples["wetread_instances"] == "2"
    assert samples['wetread_stage_up{stage="route"}'] == "0"
    assert int(samples["wetread_spool_free_bytes"]) > 0
    assert STUDY not in text


def test_dead_letters_are_announced(node: Node) -> None:
    node.receive()
    node.read()
    claimed = deliveries.claim(node.db, deliveries.listing(node.db)[0]["id"], "w", 1_080.0)
    assert claimed is not None
    deliveries.dead(node.db, claimed, "w", "0122", "SOP class not supported", 1_081.0)
    assert "1 dead letter" in node.client().get("/").text
    assert "SOP class not supported" in node.client().get(f"/studies/{STUDY}").text


def test_many_studies_are_paged(node: Node) -> None:
    for number in range(55):
        node.receive(number, study=f"1.2.{number + 1}")
    first, second = node.client().get("/").text, node.client().get("/?page=2").text
    assert first.count("/studies/1.2.") == 50
    assert second.count("/studies/1.2.") == 5
    assert "Older" in first
    assert "Older" not in second


def test_a_request_that_does_not_come_ends_its_connection(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.web.server.HEADER_WITHIN_S", 0.2)
    node.settings = node.settings.model_copy(update={"web": node.settings.web.model_copy(update={"port": 0})})
    server = serve(node.db, node.settings, node.health)
    whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    try:
        for begun in (b"", b"GET /heal", whole, whole + b"GET"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
                connection.sendall(begun)
                said = b""
                while data := connection.recv(4096):
                    said += data
            assert said.count(b"HTTP/1.1 200") == (whole in begun)
            assert said.count(b"HTTP/1.1 408") == 1
    finally:
        server.stop()


def test_connections_on_which_nothing_happens_keep_nobody_outside(node: Node) -> None:
    import httpx

    node.settings = node.settings.model_copy(update={"web": node.settings.web.model_copy(update={"port": 0})})
    server = serve(node.db, node.settings, node.health)
    address = ("127.0.0.1", server.port)
    with ExitStack() as stack:
        stack.callback(server.stop)
        for _ in range(3):
            for _ in range(60):
                stack.enter_context(socket.create_connection(address, timeout=30))
            assert httpx.get(f"http://127.0.0.1:{server.port}/healthz", timeout=30).status_code == 200


def test_nonsense_fills_no_log(node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("node.web.server._SPARING", Sparing(lambda record: record.levelno == logging.WARNING))
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "filters", [])  # those of servers before
    node.settings = node.settings.model_copy(update={"web": node.settings.web.model_copy(update={"port": 0})})
    server = serve(node.db, node.settings, node.health)

    def nonsense(times: int) -> list[str]:
        caplog.clear()
        for _ in range(times):
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
                connection.sendall(b"PATIENT^NAME\r\n\r\n")
                assert connection.recv(4096).startswith(b"HTTP/1.1 400")
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    try:
        monkeypatch.setattr("node.log.LINES_WITHIN_S", 1e9)
        assert nonsense(50) == ["Invalid HTTP request received."] * LINES
        monkeypatch.setattr("node.log.LINES_WITHIN_S", 0.0)
        assert nonsense(1) == [f"Invalid HTTP request received. ({50 - LINES} such lines before it were left out)"]
    finally:
        server.stop()


def test_the_server_listens_and_stops(node: Node) -> None:
    import httpx

    node.settings = node.settings.model_copy(update={"web": node.settings.web.model_copy(update={"port": 0})})
    server = serve(node.db, node.settings, node.health)
    try:
        assert httpx.get(f"http://127.0.0.1:{server.port}/healthz", timeout=10).json() == {"status": "ok"}
        taken = node.settings.model_copy(update={"web": node.settings.web.model_copy(update={"port": server.port})})
        with pytest.raises(Permanent, match="Address already in use"):
            serve(node.db, taken, node.health)
    finally:
        server.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{server.port}/healthz", timeout=2)
