"""Results go to a PACS over TLS: Orthanc takes them, and whatever is wrong with a certificate they wait and say so."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from node import calling, check
from node.settings import Settings, TlsSettings
from node.simulate.pacs import Pacs
from node.store import deliveries
from tests import certificates, dcmtk
from tests.certificates import Authority
from tests.e2e import orthanc
from tests.filed import Node, file_study, make_node
from workers.send import commitment
from workers.send.cstore import Timeouts
from workers.send.outbox import deliver

STUDY = "2.25.4711"
PATIENT = Timeouts(connect=30, acse=30, dimse=30, write=30)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if lacking := orthanc.missing():
        pytest.skip(f"not installed: {lacking}")
    return certificates.authority(tmp_path_factory.mktemp("ca") / "hospital")


@pytest.fixture(scope="module")
def ours(authority: Authority) -> TlsSettings:
    certificate, key = authority.issue("wetread")
    return TlsSettings(certificate=certificate, key=key, ca=authority.ca)


@pytest.fixture(scope="module")
def loopback(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return orthanc.loopback_only(tmp_path_factory.mktemp("loopback"))


@contextmanager
def storescp(folder: Path, loopback: dict[str, str], options: Sequence[object]) -> Iterator[int]:
    """DCMTK's `storescp` on a port of loopback, with these options for TLS."""
    folder.mkdir()
    port = orthanc.free_port()
    command = [dcmtk.program("storescp"), "-q", "-aet", "SIM_PACS", "-od", folder, *options, port]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log, env=loopback)
    try:
        deadline = time.monotonic() + 30
        while not _listens(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def node_for(folder: Path, port: int, tls: TlsSettings, ae_title: str = "SIM_PACS", commit: bool = False) -> Node:
    """A node whose destination is reached over TLS with the files of `tls`."""
    made = make_node(folder, port, commit)
    destination = made.settings.destination["pacs"].model_copy(update={"tls": True, "ae_title": ae_title})
    made.settings = made.settings.model_copy(update={"tls": tls, "destination": {"pacs": destination}})
    return made


def attempt(node: Node, delivery_id: str) -> dict[str, object]:
    deliver(node.db, node.spool, node.settings, delivery_id, "worker", node.now, PATIENT)
    return deliveries.show(node.db, delivery_id)


def test_orthanc_takes_results_over_tls_asks_for_our_certificate_and_commits(
    tmp_path: Path, authority: Authority, ours: TlsSettings
) -> None:
    certificate, key = authority.issue("orthanc")
    (tmp_path / "pacs").mkdir()
    encrypted = {
        "DicomTlsEnabled": True, "DicomTlsCertificate": str(certificate), "DicomTlsPrivateKey": str(key),
        "DicomTlsTrustedCertificates": str(authority.ca), "DicomTlsRemoteCertificateRequired": True,
    }  # fmt: skip
    with orthanc.running(tmp_path / "pacs", orthanc.free_port(), encrypted) as pacs:
        node = node_for(tmp_path, pacs.dicom_port, ours, pacs.ae_title, commit=True)
        for delivery_id in file_study(node, STUDY):
            row = attempt(node, delivery_id)
            assert row["state"] == "SENT", row["reason"]
        assert httpx.get(f"{pacs.url}/statistics").json()["CountInstances"] == 2
        assert commitment.tick(node.db, node.settings, node.now(), PATIENT) == 2
        said = check._echo(node.settings.destination["pacs"], node.settings)
        assert said.endswith("answers over TLS")
        assert calling.echo(peer_of(node, tls=None), PATIENT).status is None, "it does not speak without TLS"
        node.db.close()


def peer_of(node: Node, tls: TlsSettings | None) -> calling.Peer:
    destination = node.settings.destination["pacs"]
    return calling.Peer(destination.host, destination.port, destination.ae_title, "WETREAD", tls)


def wrong(way: str, authority: Authority, folder: Path) -> list[object]:
    """The options of a `storescp` with which something is wrong."""
    other = certificates.authority(folder / "other") if "CA" in way else authority
    made = {
        "another CA": lambda: other.issue("other"),
        "expired": lambda: authority.issue("expired", days=-1),
        "another name": lambda: authority.issue("elsewhere", valid_for="DNS:pacs.example"),
    }
    certificate, key = made.get(way, lambda: authority.issue("pacs"))()
    trusted = ["+cf", other.ca, "-rc"] if way == "trusts another CA" else ["-ic"]
    return ["+tls", key, certificate, *trusted] if way != "no TLS" else []


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("another CA", "its certificate is not of a CA that we trust). Name the file of its CA in [tls] ca."),
        ("expired", "its certificate has expired). Have it renewed there."),
        ("another name", "its certificate is for another name or address). Correct host of the [destination]"),
        ("trusts another CA", "it refuses our certificate, or wants one). Name [tls] certificate and key"),
        ("no TLS", "it does not speak TLS there, or none that is allowed"),
    ],
)
def test_a_result_waits_while_a_certificate_is_wrong_says_what_to_do_and_goes_when_it_is_right(
    tmp_path: Path, authority: Authority, ours: TlsSettings, loopback: dict[str, str], way: str, words: str
) -> None:
    with storescp(tmp_path / "wrong", loopback, wrong(way, authority, tmp_path)) as port:
        node = node_for(tmp_path, port, ours)
        delivery_id, *_ = file_study(node, STUDY, ["SR"])
        row = attempt(node, delivery_id)
        assert (row["state"], row["last_status"]) == ("PENDING", "TLS"), row["reason"]
        assert words in str(row["reason"])
        with pytest.raises(Exception, match="does not answer C-ECHO: TLS"):
            check._echo(node.settings.destination["pacs"], node.settings)
    assert not list((tmp_path / "wrong").glob("SR*"))
    certificate, key = authority.issue("right")
    with storescp(tmp_path / "right", loopback, ["+tls", key, certificate, "+cf", authority.ca]) as port:
        node.settings = node_for_port(node.settings, port)
        node.at = float(str(row["not_before"]))
        row = attempt(node, delivery_id)
        assert row["state"] == "SENT", row["reason"]
        assert len([p for p in (tmp_path / "right").iterdir() if p.name != "log"]) == 1
    node.db.close()


def node_for_port(settings: Settings, port: int) -> Settings:
    destination = settings.destination["pacs"].model_copy(update={"port": port})
    return settings.model_copy(update={"destination": {"pacs": destination}})


def test_a_file_of_ours_that_cannot_be_used_is_named_and_the_result_waits(
    tmp_path: Path, authority: Authority, ours: TlsSettings
) -> None:
    gone = tmp_path / "gone.pem"
    with Pacs(tmp_path / "pacs") as pacs:
        node = node_for(tmp_path, pacs.port, ours.model_copy(update={"ca": gone}))
        row = attempt(node, file_study(node, STUDY, ["SR"])[0])
        assert (row["state"], row["last_status"]) == ("PENDING", "TLS")
        assert str(gone) in str(row["reason"])
        node.db.close()
