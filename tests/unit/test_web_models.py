"""The pages of the models: figures, cards as text from outside, and nothing but pictures served from a bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from node.settings import Settings
from node.store.db import Database
from node.web.app import make_app
from node.web.health import Health
from node.web.models import render
from tests.unit.phantom import classifier


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    settings = Settings.model_validate(
        {
            "spool": {"url": tmp_path / "spool", "refuse_below": "1 B"},
            "database": {"url": f"sqlite:///{tmp_path}/w.db"},
            "worker": {"models": tmp_path / "models"},
        }
    )
    docs = classifier(tmp_path / "models" / "bright").folder / "docs"
    docs.mkdir()
    (docs / "README.md").write_text("# Bright\n\n<b>x</b> ![worst](worst.png) [file](../LICENSE)\n")
    (docs / "metrics.json").write_text('{"cohorts": {"north": {"auc": {"value": 0.9, "ci95": [0.8, 0.95]}}}}')
    Image.new("L", (2, 2)).save(docs / "worst.png")
    (docs / "secret.txt").write_text("no")
    app = make_app(Database(settings.database.url), settings, Health())
    return TestClient(app, base_url="http://127.0.0.1")


def test_the_overview_leads_to_the_models_and_each_to_its_card(client: TestClient) -> None:
    assert 'href="/models"' in client.get("/").text
    listing = client.get("/models").text
    assert 'href="/models/bright"' in listing
    assert 'href="/models/hippocampus"' in listing
    page = client.get("/models/bright").text
    assert "[0.800, 0.950]" in page
    assert '<img src="/models/bright/worst.png" alt="worst" />' in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "LICENSE" not in page


def test_shipped_cards_are_shown(client: TestClient) -> None:
    for name in ("chest_xray", "hippocampus", "lung_fields"):
        page = client.get(f"/models/{name}")
        assert page.status_code == 200
        assert "What it cannot do" in page.text


@pytest.mark.parametrize(
    "path",
    [
        "absent",
        "..%2f..",
        "bright/secret.txt",
        "bright/README.md",
        "bright/..%2fmodels%2fmodel.pt",
        "bright/none.png",
        f"bright/{'x' * 300}.png",
    ],
)
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert client.get(f"/models/{path}").status_code == 404


def test_pictures_are_served(client: TestClient, tmp_path: Path) -> None:
    answer = client.get("/models/bright/worst.png")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    (tmp_path / "models/bright/docs/link.png").symlink_to("/etc/passwd")
    assert client.get("/models/bright/link.png").status_code == 404


@pytest.mark.parametrize(
    ("markdown", "html"),
    [
        ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"),
        ("![x](https://example.org/a.png)", '<p><img src="" alt="x" /></p>'),
        ("![x](../../etc/a.png)", '<p><img src="" alt="x" /></p>'),
        ("[x](javascript:alert(1))", "<p>[x](javascript:alert(1))</p>"),
        ("[x](//example.org)", "<p><a>x</a></p>"),
        ("[x](https://example.org)", '<p><a href="https://example.org">x</a></p>'),
        ("# Title", "<h2>Title</h2>"),
    ],
)
def test_a_card_brings_no_code_and_leads_nowhere_it_should_not(markdown: str, html: str) -> None:
    assert str(render(markdown, "/models/x/")).strip() == html


def test_a_model_whose_figures_are_broken_is_shown_without_them(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "models" / "bright" / "docs" / "metrics.json").write_text("{")
    page = client.get("/models/bright")
    assert page.status_code == 200
    assert "None are known" in page.text
