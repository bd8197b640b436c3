from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from node import bundles, cli, trust
from node.bundles import Bundle
from node.daemon import Node
from node.errors import BundleError, ConfigError
from node.settings import Settings, load_routes, load_settings
from node.store import jobs
from tests.unit.jobs_on_disk import make_bundle, open_desk, queue_job, settings_in
from tests.unit.phantom import body, save, segmenter, stack
from workers import tasks


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose own models are below `models`: one, `liver`, that nobody trusts yet."""
    segmenter(tmp_path / "models" / "liver")
    path = tmp_path / "etc" / "wetread.toml"
    path.parent.mkdir()
    path.write_text('[worker]\nmodels = "../models"\ndevice = "cpu"\n')
    return path


@pytest.fixture
def run(config: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def command(*arguments: object) -> tuple[int, str, str]:
        status = cli.run([*map(str, arguments), "--config", str(config)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return command


def liver(config: Path) -> Bundle:
    return bundles.load(load_settings(config).worker.models / "liver")  # type: ignore[operator]


def plant(bundle: Bundle, marker: Path) -> None:
    """Make the bundle run code of a stranger, were it ever run."""
    path = bundle.folder / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["inferer"] = f"$open({str(marker)!r}, 'w')"
    path.write_text(json.dumps(config))


def test_a_bundle_is_pinned_beside_the_configuration_and_then_runs(config: Path, run: Any) -> None:
    settings = load_settings(config)
    assert settings.worker.trusted == config.parent / "trusted.toml"
    assert trust.standing(liver(config), settings) == "not trusted"
    status, out, _ = run("models", "trust", "liver")
    assert (status, f"pinned in {config.parent / 'trusted.toml'}" in out) == (0, True)
    assert trust.find("liver", settings) == liver(config)
    assert stat.S_IMODE(settings.worker.trusted.stat().st_mode) == 0o644
    assert sorted(path.name for path in config.parent.iterdir()) == ["trusted.toml", "wetread.toml"]


def test_an_unpinned_bundle_is_refused_with_the_remedy(config: Path) -> None:
    with pytest.raises(BundleError, match=r"is not trusted, .* wetread models trust liver"):
        trust.find("liver", load_settings(config))


@pytest.mark.parametrize(
    "name", ["configs/dicom.toml", "configs/extra.json", "scripts/net.py", "net.py", "models/b.pt"]
)
def test_a_changed_file_is_refused(config: Path, name: str) -> None:
    settings = load_settings(config)
    trust.pin([liver(config)], settings.worker.trusted)
    path = liver(config).folder / name
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write("# changed\n")
    with pytest.raises(BundleError, match=r"has changed since it was trusted: its digest is now [0-9a-f]{12}"):
        trust.find("liver", settings)


@pytest.mark.parametrize("name", ["docs/README.md", "LICENSE", "scripts/__pycache__/net.cpython-311.pyc"])
def test_what_decides_nothing_may_change(config: Path, name: str) -> None:
    settings = load_settings(config)
    trust.pin([liver(config)], settings.worker.trusted)
    path = liver(config).folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("changed")
    trust.find("liver", settings)


def test_a_linked_folder_is_refused(config: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (liver(config).folder / "scripts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"scripts is a link to a folder; copy the folder into the bundle"):
        _ = liver(config).digest


def test_pins_of_others_are_kept_and_trusting_again_moves_the_pin(config: Path, tmp_path: Path) -> None:
    file = load_settings(config).worker.trusted
    other = segmenter(tmp_path / 'o"dd näme')
    trust.pin([liver(config)], file)
    trust.pin([other], file)
    plant(liver(config), tmp_path / "marker")
    trust.pin([liver(config)], file)
    assert {name: pin.digest for name, pin in trust.read_pins(file).items()} == {
        "liver": liver(config).digest,
        other.name: other.digest,
    }


def test_a_broken_file_of_pins_is_named_with_its_line(config: Path) -> None:
    file = load_settings(config).worker.trusted
    file.write_text('[liver]\nversion = "1"\ndigest = "short"\n')
    with pytest.raises(ConfigError, match=r"trusted\.toml:3: "):
        trust.standing(liver(config), load_settings(config))


def test_a_name_is_trusted_with_its_own_digest_alone(config: Path, tmp_path: Path) -> None:
    settings = load_settings(config)
    twin = segmenter(tmp_path / "twin")
    assert twin.digest == liver(config).digest
    trust.pin([twin], settings.worker.trusted)
    assert trust.standing(liver(config), settings) == "not trusted"


def test_looking_and_listing_run_nothing_and_pin_nothing(config: Path, run: Any, tmp_path: Path) -> None:
    plant(liver(config), tmp_path / "marker")
    status, out, _ = run("models", "trust", "liver", "--look")
    assert status == 0
    assert f"! $open('{tmp_path}/marker', 'w')" in out
    assert "reaches files" in out
    for command in (
        ["list"],
        ["show", "liver"],
        ["check", "--no-run", "liver"],
        ["trust", "--look", "liver", "--json"],
    ):
        assert run("models", *command)[0] == 0
    assert not (config.parent / "trusted.toml").exists()
    assert not (tmp_path / "marker").exists()


def test_a_terminal_shows_what_stands_there_and_obeys_none_of_it(config: Path, run: Any, tmp_path: Path) -> None:
    hidden = "$open('/x')  # \x1b[2K\x1b[1A\n\u202e"
    bundle = liver(config)
    path = bundle.folder / "configs" / "inference.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"inferer": {"a\x1b[2K": hidden}}))
    status, out, _ = run("models", "trust", "liver", "--look")
    assert status == 0
    assert "\x1b" not in out
    assert "! $open('/x')  # \\x1b[2K\\x1b[1A\\n\\u202e" in out
    assert "inferer::a\\x1b[2K" in out


def test_an_untrusted_bundle_is_neither_checked_by_running_nor_read_with(
    config: Path, run: Any, tmp_path: Path
) -> None:
    plant(liver(config), tmp_path / "marker")
    series = save(stack(body()), tmp_path / "in")[0].parent
    status, _, err = run("read", series, "--model", "liver", "--out", tmp_path / "out")
    assert (status, "wetread models trust liver" in err) == (1, True)
    status, out, err = run("models", "check", "liver")
    assert (status, "wetread models trust liver" in out) == (1, True)
    assert not (tmp_path / "marker").exists()


def test_listings_say_how_each_stands(config: Path, run: Any) -> None:
    def stands() -> str:
        rows = {row["name"]: row["trust"] for row in json.loads(run("models", "list", "--json")[1])}
        return str(rows["liver"])

    assert stands() == "not trusted"
    run("models", "trust", "liver")
    assert stands() == "trusted"
    (liver(config).folder / "configs" / "more.json").write_text("{}")
    assert stands() == "changed"
    assert '"trust": "changed"' in run("models", "show", "liver", "--json")[1]


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_other_code_is_shown_and_not_pinned(config: Path, run: Any, tmp_path: Path) -> None:
    torch.save({"weight": Bomb(tmp_path / "marker")}, liver(config).folder / "models" / "model.pt")
    status, out, err = run("models", "trust", "liver")
    assert (status, "posix.mkdir" in out, "posix.mkdir" in err) == (1, True, True)
    assert not (config.parent / "trusted.toml").exists()
    assert run("models", "check", "liver")[0] == 1
    assert not (tmp_path / "marker").exists()


def test_one_bundle_or_the_shipped_ones(run: Any) -> None:
    assert run("models", "trust")[0] == 2
    assert run("models", "trust", "liver", "--shipped")[0] == 2


def test_a_job_for_a_bundle_that_is_not_trusted_is_a_dead_letter_until_it_is(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    bundle = make_bundle(tmp_path)
    settings.worker.trusted.unlink()
    desk = open_desk(settings)
    job = queue_job(desk.db, desk.spool, bundle)
    tasks.read(desk, job)
    shown = jobs.show(desk.db, job)
    assert (shown["state"], "wetread models trust fake" in shown["reason"]) == ("DEAD", True)
    trust.pin([bundle], settings.worker.trusted)
    jobs.retry(desk.db, job, desk.now())
    tasks.read(desk, job)
    assert jobs.show(desk.db, job)["state"] == "REPORTED"
    desk.readers.stop()


def test_a_bundle_that_does_not_load_keeps_no_other_from_reading(config: Path, run: Any) -> None:
    (liver(config).folder / "configs" / "dicom.toml").write_text("label = 1\n")
    status, out, err = run("models", "list")
    assert (status, "hippocampus" in out, "left out: liver" in err) == (0, True, True)
    assert run("models", "check", "--no-run")[0] == 1


def test_the_shipped_bundles_are_pinned_as_they_are() -> None:
    pins = {name: pin.digest for name, pin in trust.read_pins(trust.SHIPPED_PINS).items()}
    found = {bundle.name: bundle.digest for bundle in bundles.available()}
    assert pins == found, "a shipped bundle has changed: run `wetread models trust --shipped` and commit the file"
    assert all(trust.standing(bundle, Settings()) == "trusted" for bundle in bundles.available())


def test_the_node_starts_without_a_bundle_that_is_not_trusted_and_says_so(
    config: Path, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    text = '[node]\nport = 0\n[web]\nport = 0\n[spool]\nrefuse_below = "1 MB"\n'
    config.write_text(text + config.read_text() + '[destination.pacs]\nhost = "127.0.0.1"\nport = 1\nae_title = "P"\n')
    (config.parent / "routes.toml").write_text(
        '[[route]]\nname = "a"\nmodels = ["liver", "hippocampus"]\nsend_to = ["pacs"]\n'
    )
    _, out, _ = run("check", "--no-echo", "--json")
    results = {row["what"]: row for row in json.loads(out)}
    assert (results["model hippocampus"]["ok"], results["model liver"]["ok"]) == (True, False)
    assert "wetread models trust liver" in results["model liver"]["message"]
    settings = load_settings(config)
    with Node(settings, load_routes(config.parent / "routes.toml", settings)):
        pass
    warned = [record.getMessage() for record in caplog.records if "is not trusted" in record.getMessage()]
    assert len(warned) == 1
    assert "liver" in warned[0]
