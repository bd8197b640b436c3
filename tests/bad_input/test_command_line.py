"""What is wrong on the command line, in configuration files and in bundles: one line, the place, the exit status."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from node import bundles, cli

PACS = '[destination.pacs]\nhost = "h"\nport = 1\nae_title = "A"\n'


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    status = cli.run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert len(err.splitlines()) <= 1
    return status, err + out


FAULTS = {
    "YAML": ("a: &a [*a, *a]\n", "1: not valid TOML"),
    "a YAML object": ("x: !!python/object:os.system\n", "1: not valid TOML"),
    "double key": ("[node]\nport = 1\nport = 2\n", "3: not valid TOML"),
    "tabs and noise": ("\t\x00\n", "1: not valid TOML"),
    "unknown key": ("[node]\nprot = 1\n", '2: [node] prot: unknown key; did you mean "port"?'),
    "wrong unit": ('[spool]\nrefuse_below = "10 apples"\n', "2: [spool] refuse_below: '10 apples' is not a size"),
    "port 70000": ("[node]\nport = 70000\n", "2: [node] port: input should be less than or equal to 65535"),
    "port 0 of a destination": (PACS.replace("port = 1", "port = 0"), "3: [destination.pacs] port: input should be"),
    "long AE Title": ('[node]\nae_title = "SEVENTEEN-LETTERS"\n', '2: [node] ae_title: "SEVENTEEN-LETTERS" has 17'),
    "AE Title with a backslash": ("[node]\nae_title = 'A\\B'\n", "2: [node] ae_title: "),
    "one port twice": ("[node]\nport = 8080\n", "2: [node] port: 8080 is also the port of [web]"),
    "one port twice, all addresses": (
        '[node]\nport = 104\n[web]\nport = 104\nbind = "0.0.0.0"\ntoken_file = "t"\n',
        "2: [node] port: 104 is also the port of [web]",
    ),
    "how to judge": ('[ingest]\ncheck = "loose"\n', "2: [ingest] check: input should be 'lenient', 'standard' or"),
    "deep": ("a = " + "[" * 5000 + "\n", "1: not valid TOML"),
}


@pytest.mark.parametrize(("text", "expected"), FAULTS.values(), ids=FAULTS)
def test_a_wrong_configuration_is_status_2_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str
) -> None:
    path = tmp_path / "wetread.toml"
    path.write_text(text)
    for command in (["check"], ["serve"], ["config", "show"]):
        status, said = run(capsys, *command, "--config", path)
        assert status == 2
        assert said.startswith(f"wetread: {path}:{expected}")


def test_a_folder_or_an_unreadable_file_for_a_configuration_is_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin.toml").write_bytes(b'[node]\nae_title = "\xe4"\n')
    for path in (tmp_path, tmp_path / "latin.toml", tmp_path / "none.toml"):
        status, said = run(capsys, "check", "--config", path)
        assert (status, str(path) in said) == (2, True)


def test_a_folder_that_cannot_be_written_is_named_by_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "wetread.toml").write_text('[spool]\nurl = "file/spool"\n[web]\nport = 0\n[node]\nport = 0\n')
    (tmp_path / "routes.toml").write_text("")
    status, said = run(capsys, "check", "--no-echo", "--config", tmp_path / "wetread.toml")
    assert status != 0
    assert "file" in said


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a shipped bundle beside a configuration that looks for bundles there."""
    folder = tmp_path / "models" / "mine"
    shutil.copytree(bundles.SHIPPED / "lung_fields", folder)
    config = tmp_path / "wetread.toml"
    config.write_text(f'[worker]\nmodels = "models"\n[spool]\nurl = "{tmp_path}/state/spool"\n')
    monkeypatch.setitem(os.environ, "WETREAD_CONFIG", str(config))
    return folder


@pytest.mark.parametrize(
    "version", ["latest", "1.0 final", "", "1..2", "1.0\n2.0", "1.0; rm", 1e300, None, ["1"], "9" * 80]
)
def test_a_version_that_is_none_is_named(bundle: Path, capsys: pytest.CaptureFixture[str], version: object) -> None:
    path = bundle / "configs" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": version}))
    status, said = run(capsys, "models", "show", "mine")
    assert status in (1, 2)
    assert f"{path}: version: " in said
    assert "PEP 440" in said
    assert said.count("\n") <= 1


@pytest.mark.parametrize("version", ["0.5.3", "1.0rc1", "1!2.0.post3", "2024.1.dev4+ab.c", "3", 1.2])
def test_a_version_of_pep_440_is_one(bundle: Path, version: object) -> None:
    path = bundle / "configs" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": version}))
    assert bundles.load(bundle).version == str(version)


@pytest.mark.parametrize("key", ["version", "network"])
def test_a_wrong_bundle_is_refused_with_its_file_and_key(
    bundle: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    if key == "version":
        path = bundle / "configs" / "metadata.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    else:
        path = bundle / "configs" / "dicom.toml"
        path.write_text("label = 1\n")
    for command in (["models", "trust", "mine"], ["models", "show", "mine"]):
        status, said = run(capsys, *command)
        assert status in (1, 2)
        assert f"{path}: " in said
    assert run(capsys, "models", "trust", "../mine")[0] != 0
    assert not (bundle.parent.parent / "trusted.toml").exists()
