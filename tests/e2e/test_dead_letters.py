"""What cannot go on waits for a person, who lists it, reads why, and revives it or gives it up."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from node import bundles, trust
from node.simulate import phantoms, scanner
from node.simulate.pacs import Pacs
from tests.e2e import wetread_node
from tests.e2e.orthanc import free_port
from tests.e2e.wetread_node import ROOT, WetreadNode

LONG, SHORT = 'job_timeout = "200 s"', 'job_timeout = "8 s"'
MORE = f"""
retry = "1 s"

[worker]
models = "models"
{LONG}
max_attempts = 2
"""
ROUTES = """
[[route]]
name = "MR hangs"
when = {ModalitiesInStudy = "MR"}
models = ["stuck"]
decline = "never"
send_to = ["pacs"]

[[route]]
name = "films"
when = {ModalitiesInStudy = "DX"}
models = ["lung_fields"]
decline = "never"
send_to = ["pacs"]
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WetreadNode, Pacs]]:
    """A node with a Model Bundle whose network never answers, and a PACS that is not there yet."""
    folder = tmp_path_factory.mktemp("node")
    stuck(folder / "models" / "stuck")
    port = free_port()
    pacs = Pacs(folder / "pacs", "SIM_PACS", port=free_port(), peers={"WETREAD": ("127.0.0.1", port)})
    with ExitStack() as stack:
        stack.callback(pacs.stop)
        at = ("SIM_PACS", pacs.port)
        yield (
            stack.enter_context(wetread_node.running(folder, port, at, free_port(), routes=ROUTES, more=MORE)),
            pacs,
        )


def stuck(folder: Path) -> None:
    """The hippocampus bundle with a first transform that sleeps, trusted."""
    shutil.copytree(ROOT / "models" / "hippocampus", folder)
    path = folder / "configs" / "inference.json"
    inference = json.loads(path.read_text())
    sleep = {"_target_": "Lambdad", "keys": "image", "func": "$lambda image: __import__('time').sleep(600)"}
    inference["preprocessing"]["transforms"].insert(1, sleep)
    path.write_text(json.dumps(inference))
    trust.pin([bundles.load(folder)], folder.parent.parent / "trusted.toml")


@pytest.mark.timeout(600)
def test_dead_letters_are_listed_shown_retried_and_dropped(node: tuple[WetreadNode, Pacs]) -> None:
    running, pacs = node
    slices, _ = phantoms.volume(modality="MR")
    film, _ = phantoms.chest_film(seed=1, size=512)
    assert scanner.send([film], "127.0.0.1", running.port, ae="STORESCU").ok
    dead = wait_for_dead(running, "delivery", 3)
    assert {letter["document"] for letter in dead} == {"SR", "SEG", "SC"}
    assert all(f"wetread dead retry {letter['id']}" in letter["reason"] for letter in dead)

    running.restart_worker(LONG, SHORT)  # a film takes its time on a busy machine; what hangs shall not take as long
    assert scanner.send(slices, "127.0.0.1", running.port, ae="STORESCU").ok
    job = wait_for_dead(running, "job")[0]
    assert job["bundle"] == "stuck"
    assert "job_timeout (8 s)" in job["reason"]
    assert job["attempts"] == 2
    states = [event["to_state"] for event in running.wetread("dead", "show", job["id"])["history"]]
    assert states == ["QUEUED", "RUNNING", "QUEUED", "RUNNING", "DEAD"]

    command(running, "dead", "drop", job["id"])
    assert running.wetread("jobs", "show", job["id"])["state"] == "DROPPED"
    pacs.start()
    assert len(command(running, "dead", "retry", "--all").splitlines()) == 3
    running.wait_for_studies({str(film.StudyInstanceUID)}, {"DONE"}, timeout_s=60)
    assert running.wetread("dead", "list") == []
    assert {row["state"] for row in running.wetread("deliveries", "list")} == {"COMMITTED"}
    assert len(pacs.held) == 3


def wait_for_dead(running: WetreadNode, kind: str, count: int = 1, timeout_s: float = 180) -> list[dict[str, Any]]:
    dead = f"SELECT id FROM {kind} WHERE state = 'DEAD'"  # noqa: S608 - our own names
    running.wait(lambda: len(running.ask(dead)) >= count, timeout_s, lambda: f"{count} dead {kind}")
    found = [letter for letter in running.wetread("dead", "list") if letter["kind"] == kind]
    assert len(found) == count
    return found


def command(running: WetreadNode, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "node.cli", *arguments, "--config", str(running.config)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
