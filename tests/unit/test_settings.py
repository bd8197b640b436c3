from __future__ import annotations

import re
from pathlib import Path

import pytest

from node import configvalues
from node import settings as settings_module
from node.configfile import key_lines
from node.errors import ConfigError
from node.settings import SHIPPED, Routes, Settings, load_routes, load_settings


def fault(tmp_path: Path, text: str) -> str:
    """Return the message that this wetread.toml is refused with, without the folder."""
    path = tmp_path / "wetread.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    return str(caught.value).replace(f"{tmp_path}/", "")


PACS = '[destination.pacs]\nhost = "h"\nport = 1\nae_title = "A"\n'
PEER = '[[peer]]\nname = "CT 1"\nae_title = "CT1"\naddress = "10.0.0.1"\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[node]\n\nprot = 104\n", 'wetread.toml:3: [node] prot: unknown key; did you mean "port"?'),
        ("[completnes]\n", 'wetread.toml:1: completnes: unknown key; did you mean "completeness"?'),
        (
            '[completeness]\nquiet_period = "60"\n',
            "wetread.toml:2: [completeness] quiet_period: '60' is not a duration",
        ),
        ("[completeness]\nquiet_period = 60\n", "wetread.toml:2: [completeness] quiet_period: 60 is not a duration"),
        (
            '[completeness]\nquiet_period = "5 min"\nmax_wait = "60 s"\n',
            "wetread.toml:3: [completeness] max_wait: at least quiet_period was expected",
        ),
        ('[spool]\nrefuse_below = "10 apples"\n', "wetread.toml:2: [spool] refuse_below: '10 apples' is not a size"),
        ("[node]\nport = 70000\n", "wetread.toml:2: [node] port: input should be less than or equal to 65535; 70000"),
        ('[node]\nport = "x"\n', "wetread.toml:2: [node] port: a whole number was expected; 'x' was found"),
        ('[node]\nport = "11112"\n', "wetread.toml:2: [node] port: a whole number was expected; '11112' was found"),
        ("[node]\nport = true\n", "wetread.toml:2: [node] port: a whole number was expected; True was found"),
        (PACS + 'commitment = "yes"\n', "wetread.toml:5: [destination.pacs] commitment: true or false was expected"),
        (PACS.replace('"h"', '" "'), "wetread.toml:2: [destination.pacs] host: text in quotes was expected"),
        (PACS + PACS, "wetread.toml:5: not valid TOML: Cannot declare"),
        ("node = 5\n", "wetread.toml:1: node: a table was expected; 5 was found"),
        ('[peer]\nname = "a"\n', "wetread.toml:1: peer: a list was expected"),
        ('[spool]\nurl = ""\n', "wetread.toml:2: [spool] url: text in quotes was expected; '' was found"),
        ('[database]\nurl = "mysql://x"\n', 'wetread.toml:2: [database] url: "sqlite:///FILE" or "postgresql'),
        ('[database]\nurl = "sqlite:///:memory:"\n', 'wetread.toml:2: [database] url: "sqlite:///FILE" or'),
        ('[broker]\nurl = "amqp://x"\n', 'wetread.toml:2: [broker] url: "amqp" is no broker wetread uses'),
        ('[broker]\nurl = "redis://10.0.0.1/0"\n', "wetread.toml:2: [broker] url: 10.0.0.1 is not this machine"),
        ('[broker]\nurl = "redis://localhost:port/0"\n', "wetread.toml:2: [broker] url: the port is no number"),
        ('[broker]\nurl = "redis://[::1/0"\n', "wetread.toml:2: [broker] url: the port is no number"),
        ('[database]\nurl = "postgresql://u@h:70000/n"\n', "wetread.toml:2: [database] url: the port is no number"),
        (PACS.replace('"h"', '"a..b"'), "wetread.toml:2: [destination.pacs] host: 'a..b' is no name of a host"),
        (f'[spool]\nrefuse_below = "{"9" * 310} GB"\n', "wetread.toml:2: [spool] refuse_below: '999"),
        ('[worker]\njob_timeout = "0 s"\n', "wetread.toml:2: [worker] job_timeout: input should be greater than 0"),
        ('[node]\nbind = "10.0.0.5"\n', "wetread.toml:2: [node] bind: 10.0.0.5 is reachable from outside"),
        ('[web]\nbind = "0.0.0.0"\n', "wetread.toml:2: [web] bind: 0.0.0.0 is reachable from outside"),
        ('[web]\nbind = "here"\n', "wetread.toml:2: [web] bind: 'here' is not an address"),
        (PEER + PEER, 'wetread.toml:6: peer "CT 1": the name is taken by the peer on line 1'),
        (
            PEER.replace("CT1", "CT-SCANNER-ROOM-12"),
            'wetread.toml:3: peer "CT 1": ae_title: "CT-SCANNER-ROOM-12" has 18 characters; an AE Title has at most 16',
        ),
        (PEER.replace("10.0.0.1", "10.0.0"), "wetread.toml:4: peer \"CT 1\": address: '10.0.0' is not an address"),
        ('[[peer]]\nname = "CT 1"\nae_title = "CT1"\n', 'wetread.toml:1: peer "CT 1": address: is missing'),
        ('[destination.pacs]\nhost = "h"\nae_title = "A"\n', "wetread.toml:1: [destination.pacs] port: is missing"),
        (
            '[destination.pacs]\nhost = "h"\nport = 1\nae_title = "A"\ncommittment = true\n',
            'wetread.toml:5: [destination.pacs] committment: unknown key; did you mean "commitment"?',
        ),
        ('[worker]\ndevice = "gpu"\n', "wetread.toml:2: [worker] device: 'gpu' is not \"auto\""),
        ("[node]\nport = 1\nport = 2\n", "wetread.toml:3: not valid TOML: Cannot overwrite a value"),
        ("[node]\nport = \n", "wetread.toml:2: not valid TOML"),
        ('[tls]\ncertificate = "c"\n', "wetread.toml:1: [tls] key: is missing; certificate and key go together"),
        ('[tls]\nca = "c"\n', "wetread.toml:2: [tls] ca: peers can only be asked for a certificate where we have one"),
        (
            PEER + 'user = "ct"\npasscode_file = "p"\n',
            'wetread.toml:6: peer "CT 1": passcode_file: a passcode needs a user, and goes over TLS alone',
        ),
        (PEER + "reserved = 5\n[node]\nmax_associations = 4\n", "wetread.toml:7: [node] max_associations: 5 places"),
        (
            '[node]\nbind = "10.0.0.5"\n[tls]\ncertificate = "c"\nkey = "k"\n',
            "wetread.toml:2: [node] bind: 10.0.0.5 is reachable from outside",
        ),
        ('[log]\nlevel = "loud"\n', "wetread.toml:2: [log] level: input should be 'debug', 'info'"),
    ],
)
def test_a_fault_names_file_line_key_and_expectation(tmp_path: Path, text: str, expected: str) -> None:
    assert fault(tmp_path, text).startswith(expected)


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        load_settings(tmp_path / "none.toml")


def test_units() -> None:
    assert configvalues.parse_duration("15 min") == 900
    assert configvalues.parse_duration("500ms") == 0.5
    assert configvalues.parse_size("2 GiB") == 2**31


def test_relative_paths_mean_the_folder_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "wetread.toml"
    path.parent.mkdir()
    path.write_text('[spool]\nurl = "../state/spool"\n[web]\ntoken_file = "token"\n[worker]\nmodels = "/m"\n')
    settings = load_settings(path)
    assert settings.spool.url == path.parent / "../state/spool"
    assert settings.database.url == f"sqlite:///{path.parent}/state/wetread.db"
    assert settings.web.token_file == path.parent / "token"
    assert settings.worker.models == Path("/m")


def test_the_shipped_defaults_keep_no_state_in_their_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(SHIPPED / "wetread.toml").spool.url == tmp_path / "state" / "spool"


def test_the_shipped_file_shows_every_key_with_its_default(tmp_path: Path) -> None:
    text = (SHIPPED / "wetread.toml").read_text()
    opened = re.sub(r"(?m)^# (\w+ = |\[\[?\w)", r"\1", text)
    everything = tmp_path / "wetread.toml"
    everything.write_text(opened)
    (loaded, defaults) = load_settings(everything), Settings()
    for section in ("node", "completeness", "broker", "log"):
        without = {"state": None} if section == "node" else {"archive": None} if section == "completeness" else {}
        assert getattr(loaded, section).model_copy(update=without) == getattr(defaults, section), "as it comes"
    named = {".".join(str(p) for p in key if not isinstance(p, int)) for key, _ in key_lines(opened)}
    for section, field in Settings.model_fields.items():
        table = {"peer": "peer", "destination": "destination.pacs"}.get(section, section)
        model = {"peer": settings_module.Peer, "destination": settings_module.Destination}.get(
            section, field.annotation
        )
        assert {f"{table}.{key}" for key in model.model_fields} <= named  # type: ignore[union-attr]


def test_production_loads() -> None:
    assert load_settings(SHIPPED / "production.toml").destination["pacs"].commitment


EMPTY = '[[route]]\nname = "a"\nmodels = []\nsend_to = []\n'
ROUTE = '[[route]]\nname = "chest"\nmodels = ["m"]\nsend_to = ["pacs"]\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ROUTE, 'routes.toml:3: route "chest": models: there is no Model Bundle "m"; there is'),
        (
            ROUTE.replace('["m"]', "[]"),
            'routes.toml:4: route "chest": send_to: there is no [destination] "pacs"; there is none',
        ),
        (ROUTE + "modles = []\n", 'routes.toml:5: route "chest": modles: unknown key; did you mean "models"?'),
        (
            ROUTE + 'when = {Modality = [\n  "CR", # x = 1\n] }\nresult = 1\n',
            'routes.toml:8: route "chest": result: unknown key; did you',
        ),
        (
            '[[route]]\nname = "a"\nmodels = []\nsend_to = []\n' * 2,
            'routes.toml:6: route "a": the name is taken by the route on',
        ),
        (
            '[[route]]\nname = "a"\nmodels = []\nsend_to = []\nresults = ["PDF"]\n',
            'routes.toml:5: route "a": results: input should be',
        ),
        (EMPTY + 'when = {Modalty = "MR"}\n', 'routes.toml:5: route "a": when: "Modalty" is not a DICOM keyword; did'),
        (EMPTY + "series = {Rows = {mni = 3}}\n", 'routes.toml:5: route "a": series: "Rows": min, max, not or absent'),
        (EMPTY + "when = {Modality = true}\n", 'routes.toml:5: route "a": when.Modality: text in quotes was expected'),
    ],
)
def test_routes_must_make_sense(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_routes(path, Settings())
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(expected)


def test_conditions_are_kept_as_written(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(
        '[[route]]\nname = "a"\nmodels = []\nsend_to = []\n'
        'when = {Modality = ["CR", "DX"], Rows = {min = 20, max = 96}}\nseries.ViewPosition = {not = ["LL"]}\n'
    )
    routes: Routes = load_routes(path, Settings())
    assert routes.route[0].when == {"Modality": ["CR", "DX"], "Rows": {"min": 20, "max": 96}}
    assert routes.route[0].series == {"ViewPosition": {"not": ["LL"]}}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('archive = "pax"', 2, r'\[completeness\] archive: there is no \[destination\] "pax"; there is pacs'),
        ('fetch = "get"', 2, r"fetch: archive must name the destination"),
        ("quiet_weight = 0.5\nwait_weight = 0.4", 3, r"wait_weight: with quiet_weight it must be at least 1"),
        ("release_weight = 2.0", 2, r"release_weight"),
    ],
)
def test_rules_by_which_a_study_would_wait_for_ever_are_refused(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    path = tmp_path / "wetread.toml"
    pacs = '[destination.pacs]\nhost = "127.0.0.1"\nport = 104\nae_title = "PACS"\n'
    path.write_text(f"[completeness]\n{text}\n{pacs}")
    with pytest.raises(ConfigError, match=rf"wetread.toml:{line}: .*{words}"):
        load_settings(path)
