from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from node import cli
from node.settings import Settings, load_settings
from node.simulate.pacs import Pacs
from node.store import deliveries, jobs, studies
from node.store.db import Database
from node.store.jobs import Document, NewJob
from node.store.locks import lock_state
from node.store.studies import Received
from tests.unit.phantom import LAYER, bright_spot

ROOT = Path(__file__).resolve().parents[2]
STUDY = "1.2.826.0.1.3680043.8.498.7"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "wetread.toml"
    path.write_text('[node]\nport = 0\n[web]\nport = 0\n[spool]\nrefuse_below = "1 MB"\n')
    (tmp_path / "routes.toml").write_text("")
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> object:
    def command(*arguments: object) -> tuple[int, str, str]:
        status = cli.run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert status == 0 or len(err.splitlines()) == 1, err
        return status, out, err

    return command


def wetread(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload,no-any-return]


def fill(config: Path, documents: int = 1) -> tuple[Database, str, str]:
    """Make a study with a job that was reported and whose deliveries are dead; return the ids of the job and of one."""
    db = Database(load_settings(config).database.url)
    received = Received(f"{STUDY}.1.1", "1.2.3", "1.2.4", STUDY, f"{STUDY}.1", "a" * 64, "p", 1, "CT", False, 1.0)
    studies.register(db, [received])
    assert studies.complete(db, STUDY, 2.0, "quiet for 60 s") == 1
    new = NewJob(STUDY, 1, f"{STUDY}.1", "hippocampus", "1.0.0", "ab", "crops", ("SR",), ("pacs",))
    studies.routed(db, STUDY, 1, [new], "1 job", 3.0)
    claimed = jobs.claim(db, jobs.listing(db)[0]["id"], "w", 4.0)
    assert claimed is not None
    sr = ("SR", "1.2.840.10008.5.1.4.1.1.88.34")
    filed = [Document(*sr, f"2.25.{n}", "2.25.9", f"results/{n}.dcm", f"{n:064}", 1) for n in range(1, documents + 1)]
    jobs.reported(db, claimed, "w", filed, "Volume 2.4 mL", 5.0)
    for row in deliveries.listing(db, limit=documents):
        delivery = deliveries.claim(db, row["id"], "w", 6.0)
        assert delivery is not None
        deliveries.dead(db, delivery, "w", "0122", "SOP class not supported", 7.0)
    return db, claimed.id, delivery.id


def test_listings_say_what_the_database_knows(config: Path, run: object) -> None:
    _, job, delivery = fill(config)
    for noun, name, expected in (
        ("studies", STUDY, "ROUTED"),
        ("jobs", job, "Volume 2.4 mL"),
        ("deliveries", delivery, "SOP class not supported"),
    ):
        status, out, _ = run(noun, "list", "--config", config)  # type: ignore[operator]
        assert status == 0
        assert name in out
        assert expected in out
        status, out, _ = run(noun, "list", "--json", "--config", config)  # type: ignore[operator]
        assert name in (json.loads(out)[0].get("id"), json.loads(out)[0].get("study_instance_uid"))
        status, out, _ = run(noun, "show", name, "--config", config)  # type: ignore[operator]
        assert status == 0
        assert "history" in out
        assert json.loads(run(noun, "show", name, "--json", "--config", config)[1])["history"]  # type: ignore[operator]


def test_listings_can_be_narrowed(config: Path, run: object) -> None:
    fill(config)
    assert "no studies" in run("studies", "list", "--state", "done", "--config", config)[1]  # type: ignore[operator]
    assert STUDY in run("studies", "list", "--state", "routed", "--config", config)[1]  # type: ignore[operator]
    status, _, err = run("studies", "list", "--state", "asleep", "--config", config)  # type: ignore[operator]
    assert (status, "RECEIVING" in err) == (2, True)
    assert run("jobs", "list", "--limit", "0", "--config", config)[0] == 2  # type: ignore[operator]


def test_after_an_outage_every_dead_letter_is_listed_and_revived(config: Path, run: object) -> None:
    fill(config, documents=120)  # more than a listing shows unless asked
    letters = json.loads(run("dead", "list", "--config", config, "--json")[1])  # type: ignore[operator]
    assert len(letters) == 120
    assert run("dead", "show", letters[-1]["id"], "--config", config)[0] == 0  # type: ignore[operator]
    assert run("dead", "retry", "--all", "--config", config)[0] == 0  # type: ignore[operator]
    assert "no dead letters" in run("dead", "list", "--config", config)[1]  # type: ignore[operator]


def test_a_dead_letter_can_be_read_revived_and_dropped(config: Path, run: object) -> None:
    db, job, delivery = fill(config)
    status, out, _ = run("dead", "list", "--config", config)  # type: ignore[operator]
    assert (status, delivery in out, "SOP class not supported" in out) == (0, True, True)
    assert job not in out
    assert "0122" in run("dead", "show", delivery, "--config", config)[1]  # type: ignore[operator]
    status, out, _ = run("dead", "retry", delivery, "--config", config)  # type: ignore[operator]
    assert (status, out) == (0, f"delivery {delivery} will be tried again\n")
    assert deliveries.show(db, delivery)["state"] == "PENDING"
    status, _, err = run("dead", "drop", delivery, "--config", config)  # type: ignore[operator]
    assert (status, "no dead letter" in err) == (1, True)
    claimed = deliveries.claim(db, delivery, "w", 2e9)
    assert claimed is not None
    deliveries.dead(db, claimed, "w", "0122", "again", 2e9)
    assert run("dead", "drop", "--all", "--config", config)[0] == 0  # type: ignore[operator]
    assert deliveries.show(db, delivery)["state"] == "DROPPED"
    assert "no dead letters" in run("dead", "list", "--config", config)[1]  # type: ignore[operator]
    assert run("dead", "retry", "--config", config)[0] == 2  # type: ignore[operator]


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["jobs", "list", "--config", "none.toml"], 2, "none.toml: there is no such file"),
        (["jobs", "show", "x"], 1, "There is no database"),
        (["send", "nowhere", "127.0.0.1:1"], 2, "'nowhere' does not exist"),
        (["send", str(ROOT / "config"), "127.0.0.1"], 2, "is not HOST:PORT"),
        (["echo", "127.0.0.1:99999"], 2, "is not HOST:PORT"),
        (["echo", "127.0.0.1:1"], 1, "does not answer"),
        (["echo", "nobody"], 2, "neither HOST:PORT nor a configured destination"),
        (["read", str(ROOT / "config"), "--model", "none", "--out", "x"], 1, 'There is no Model Bundle "none"'),
        (["read", str(ROOT / "config"), "--model", "m", "--out", "x", "--results", "PDF"], 2, "PDF is none of"),
        (["models", "show", "none"], 1, "There is no Model Bundle"),
    ],
)
def test_an_error_is_one_line_and_a_status(
    run: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    got, out, err = run(*arguments)  # type: ignore[operator]
    assert (got, out) == (status, "")
    assert err.startswith("wetread: ")
    assert expected in err
    assert not (tmp_path / "state").exists()


def test_a_wrong_configuration_is_status_2_with_its_line(config: Path, run: object) -> None:
    config.write_text("[node]\nprot = 1\n")
    for command in (
        ["check"],
        ["serve"],
        ["worker"],
        ["config", "show"],
        ["jobs", "list"],
        ["route", "explain", config.parent],
    ):
        status, _, err = run(*command, "--config", config)  # type: ignore[operator]
        assert (status, f"{config}:2: [node] prot: unknown key" in err) == (2, True), command


def test_an_unexpected_error_is_still_one_line(config: Path, run: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "listing", lambda *a, **k: 1 / 0)
    fill(config)[0].close()
    status, _, err = run("studies", "list", "--config", config)  # type: ignore[operator]
    assert (status, "unexpected ZeroDivisionError" in err) == (1, True)


def test_send_and_echo_speak_dicom(tmp_path: Path, run: object) -> None:
    image = get_testdata_file("CT_small.dcm")
    (tmp_path / "readme.txt").write_text("no DICOM")
    (tmp_path / "ct.dcm").write_bytes(Path(str(image)).read_bytes())
    with Pacs(tmp_path / "pacs") as pacs:
        peer = f"127.0.0.1:{pacs.port}"
        assert run("echo", peer, "--called", "SIM_PACS") == (0, f"SIM_PACS at {peer} answers\n", "")  # type: ignore[operator]
        assert run("echo", peer, "--called", "OTHER")[0] == 1  # type: ignore[operator]
        status, out, _ = run("send", tmp_path / "ct.dcm", peer, "--called", "SIM_PACS", "--json")  # type: ignore[operator]
        assert status == 0
        assert json.loads(out)["sent"][0]["status"] == "0000H"
        assert len(pacs.held) == 1


def test_check_names_what_works_and_what_does_not(config: Path, run: object, tmp_path: Path) -> None:
    status, out, _ = run("check", "--config", config)  # type: ignore[operator]
    assert status == 0, out
    assert all(line.startswith("OK") for line in out.splitlines())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config.write_text(
            f'[node]\nport = {port}\n[web]\nport = 0\n[spool]\nrefuse_below = "9999 TB"\n'
            '[destination.pacs]\nhost = "127.0.0.1"\nport = 1\nae_title = "PACS"\n'
        )
        status, out, err = run("check", "--json", "--config", config)  # type: ignore[operator]
    assert status == 1
    bad = {line["what"] for line in json.loads(out) if not line["ok"]}
    assert bad == {"spool", "DICOM port", "destination pacs"}
    assert "3 of" in err


def test_check_works_beside_the_node_whose_configuration_it_is(config: Path, run: object, tmp_path: Path) -> None:
    with socket.socket() as taken, ExitStack() as node:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config.write_text(
            f'[node]\nport = {taken.getsockname()[1]}\nstate = "{tmp_path / "state"}"\n[web]\nport = 0\n'
            '[destination.pacs]\nhost = "127.0.0.1"\nport = 1\nae_title = "PACS"\n'
        )
        for running in (False, True):
            if running:
                node.enter_context(lock_state(tmp_path / "state", "listener"))
            _, out, _ = run("check", "--json", "--no-echo", "--config", config)  # type: ignore[operator]
            [port] = [line for line in json.loads(out) if line["what"] == "DICOM port"]
            assert port["ok"] == running, port
            assert ("it should be its own" in port["message"]) == running


def test_check_tries_every_file_that_a_start_needs(config: Path, run: object, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff" * 32)
    (tmp_path / "short").write_text("abc")
    config.write_text(
        f'[node]\nport = 0\nstate = "{tmp_path / "token"}"\n[web]\nport = 0\ntoken_file = "{tmp_path / "token"}"\n'
        f'[tls]\ncertificate = "{tmp_path / "none.pem"}"\nkey = "{tmp_path / "none.pem"}"\n'
        f'[[peer]]\nname = "ct"\nae_title = "CT"\naddress = "10.0.0.1"\nuser = "ct"\n'
        f'passcode_file = "{tmp_path / "short"}"\n'
        '[broker]\nurl = "redis://127.0.0.1:1/0"\n[database]\nurl = "postgresql://u@127.0.0.1:1/n?nonsense=1"\n'
    )
    _, out, _ = run("check", "--json", "--config", config)  # type: ignore[operator]
    bad = {line["what"]: line["message"] for line in json.loads(out) if not line["ok"]}
    assert sorted(bad) == ["TLS", "broker", "database", "peers", "state folder", "web port"]
    assert "must hold text" in bad["web port"]
    assert "the driver does not take it" in bad["database"]
    assert "at least 8 characters" in bad["peers"]


def test_check_finds_a_route_that_would_never_get_its_saliency_map(config: Path, run: object, tmp_path: Path) -> None:
    bright_spot(tmp_path / "bundles" / "looks", LAYER)
    config.write_text(
        f'[node]\nport = 0\n[web]\nport = 0\n[worker]\nmodels = "{tmp_path / "bundles"}"\n'
        '[destination.pacs]\nhost = "127.0.0.1"\nport = 1\nae_title = "PACS"\n'
    )
    found = {}
    for model in ("looks", "lung_fields"):
        route = f'[[route]]\nname = "maps"\nmodels = ["{model}"]\nsend_to = ["pacs"]\nresults = ["SALIENCY"]\n'
        config.with_name("routes.toml").write_text(route)
        _, out, _ = run("check", "--json", "--no-echo", "--config", config)  # type: ignore[operator]
        found[model] = next(line for line in json.loads(out) if line["what"] == "route maps")
    assert (found["looks"]["ok"], found["looks"]["message"]) == (True, "saliency maps of looks")
    assert not found["lung_fields"]["ok"]
    assert "none of its models has [explain]" in found["lung_fields"]["message"]


def test_check_finds_a_route_that_would_never_get_its_parametric_map(config: Path, run: object) -> None:
    found = {}
    for model in ("hippocampus", "lung_fields", "chest_xray"):
        route = f'[[route]]\nname = "maps"\nmodels = ["{model}"]\nsend_to = ["pacs"]\nresults = ["PM"]\n'
        config.write_text(
            '[node]\nport = 0\n[web]\nport = 0\n[destination.pacs]\nhost = "127.0.0.1"\nport = 1\nae_title = "PACS"\n'
        )
        config.with_name("routes.toml").write_text(route)
        _, out, _ = run("check", "--json", "--no-echo", "--config", config)  # type: ignore[operator]
        found[model] = next(line for line in json.loads(out) if line["what"] == "route maps")
    assert (found["hippocampus"]["ok"], found["hippocampus"]["message"]) == (True, "Parametric Maps of hippocampus")
    for films in ("lung_fields", "chest_xray"):
        assert not found[films]["ok"]
        assert "none of its models can make a Parametric Map" in found[films]["message"]


def test_config_init_writes_what_loads_and_never_over_a_file(tmp_path: Path, run: object) -> None:
    status, out, _ = run("config", "init", tmp_path / "etc")  # type: ignore[operator]
    assert (status, len(out.splitlines())) == (0, 2)
    assert load_settings(tmp_path / "etc" / "wetread.toml").node == Settings().node
    status, _, err = run("config", "init", tmp_path / "etc")  # type: ignore[operator]
    assert (status, "exists already; nothing was written" in err) == (1, True)


def test_config_show_masks_passwords(config: Path, run: object) -> None:
    config.write_text(
        '[database]\nurl = "postgresql://wetread:s3cret@db/wetread"\n[broker]\nurl = "redis://:s3cret@h/0"\n'
    )
    for arguments in ((), ("--json",)):
        status, out, _ = run("config", "show", *arguments, "--config", config)  # type: ignore[operator]
        assert status == 0
        assert "s3cret" not in out
        assert "***@db/wetread" in out


def test_models_can_be_listed_and_a_broken_one_is_named(config: Path, run: object, tmp_path: Path) -> None:
    broken = tmp_path / "models" / "broken" / "configs"
    broken.mkdir(parents=True)
    (broken / "metadata.json").write_text('{"version": "1.0.0"}')
    (broken / "dicom.toml").write_text('label = "x"\n')
    status, out, err = run("models", "check", broken.parent, "--config", config)  # type: ignore[operator]
    assert status == 1
    assert "broken" in out
    assert "cannot be used: broken" in err
    assert run("models", "list", "--json", "--config", config)[0] == 0  # type: ignore[operator]


def test_a_closed_pipe_ends_quietly(config: Path) -> None:
    fill(config)[0].close()
    command = [sys.executable, "-m", "node.cli", "studies", "list", "--json", "--config", str(config)]
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        command, cwd=ROOT, stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_narrow_locale_does_not_stop_a_listing(config: Path) -> None:
    db, *_ = fill(config)
    received = Received("1.2.3.4", "1.2.3", "1.2.4", "1.2.9", "1.2.9.1", "c" * 64, "q", 1, "CT", False, 1.0)
    studies.register(db, [received])
    studies.complete(db, "1.2.9", 2.0, "ruhig für 60 s → fertig")
    env = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = wetread("studies", "list", "--config", config, env=env)
    assert (done.returncode, "ruhig f" in done.stdout) == (0, True), done.stderr


def test_ctrl_c_is_130() -> None:
    code = "import os, signal, click; from node import cli\n"
    code += "@cli.wetread.command()\ndef wait(): os.kill(os.getpid(), signal.SIGINT); signal.pause()\n"
    code += "cli.main(['wait'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "wetread: interrupted\n")


def test_version() -> None:
    done = wetread("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("wetread")
