"""The certificate of the listener: until when peers take it, as `wetread check` and the log say."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from node import check, clock, tls
from node.errors import Permanent
from node.settings import Settings, TlsSettings
from tests import certificates
from tests.certificates import Authority, openssl

DAY_S = 86400.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return certificates.authority(tmp_path_factory.mktemp("tls") / "ca")


def files(authority: Authority, days: int) -> TlsSettings:
    certificate, key = authority.issue(f"for {days} days", days=days)
    return TlsSettings(certificate=certificate, key=key, ca=authority.ca)


def test_until_when_it_is_valid_is_what_it_says(authority: Authority) -> None:
    found = files(authority, 30)
    assert abs(tls.valid_until(found) - clock.now() - 30 * DAY_S) < 3600
    told = check._tls(Settings(tls=found))
    assert told.endswith(f"can be used until {clock.to_iso(tls.valid_until(found))}")


def test_one_that_has_expired_would_not_work(authority: Authority) -> None:
    with pytest.raises(Permanent, match=r"Peers refuse .*for -1 days.pem of \[tls\]: certificate has expired"):
        check._tls(Settings(tls=files(authority, -1)))


def test_one_for_another_purpose_would_not_work(authority: Authority) -> None:
    found = files(authority, 10)
    asked, extensions = authority.folder / "for 10 days.csr", authority.folder / "client only"
    extensions.write_text("extendedKeyUsage=clientAuth\n")
    signed = ("-CA", authority.ca, "-CAkey", authority.folder / "ca.key", "-CAcreateserial", "-days", 10)
    openssl("x509", "-req", "-in", asked, "-out", found.certificate, *signed, "-extfile", extensions)
    with pytest.raises(Permanent, match="purpose"):
        tls.valid_until(found)


def test_the_log_tells_in_time_and_again_when_it_is_renewed(
    authority: Authority, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_LOOK_S", 0.0)
    soon, expired, good = files(authority, 3), files(authority, -1), files(authority, 30)
    with caplog.at_level(logging.INFO, logger="node.tls"):
        held = tls.Certificates(soon)
        for renewed in (expired, good):
            put(renewed, soon)
            held._look()
    levels = [(record.levelname, record.message.split(" is ")[0]) for record in caplog.records]
    assert levels[0][0] == "WARNING"
    assert "valid until" in caplog.records[0].message
    assert [level for level, _ in levels[1:]] == ["INFO", "ERROR", "INFO"]
    assert "certificate has expired. Have it renewed." in caplog.records[2].message


def put(new: TlsSettings, where: TlsSettings) -> None:
    """Renew as an admin does, in the same places."""
    for source, target in ((new.certificate, where.certificate), (new.key, where.key)):
        assert source is not None
        assert target is not None
        beside = Path(f"{target}.new")
        beside.write_bytes(source.read_bytes())
        os.utime(beside, (time.time(), time.time()))
        beside.replace(target)
