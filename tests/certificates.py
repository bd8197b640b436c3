"""Certificates for the tests of TLS, made by OpenSSL: a CA of the hospital, and what it and others have signed."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.settings import TlsSettings

LOOPBACK = "IP:127.0.0.1,DNS:localhost"


@dataclass(frozen=True)
class Authority:
    """A CA with a folder for its certificates."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def issue(self, name: str, *, days: int = 30, valid_for: str = LOOPBACK) -> tuple[Path, Path]:
        """A certificate for loopback, or what it is `valid_for`, and its key; with negative `days` it has expired."""
        key, asked, certificate = (self.folder / f"{name}.{end}" for end in ("key", "csr", "pem"))
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", asked, "-subj", f"/CN={name}")
        (self.folder / "extensions").write_text(f"subjectAltName={valid_for}\n")
        signed = ("-CA", self.ca, "-CAkey", self.folder / "ca.key", "-CAcreateserial", "-days", days)
        openssl("x509", "-req", "-in", asked, "-out", certificate, *signed, "-extfile", self.folder / "extensions")
        return certificate, key

    def listener(self, *, mutual: bool = True) -> TlsSettings:
        """The files of a listener that asks for certificates of this CA."""
        certificate, key = self.issue("node")
        return TlsSettings(certificate=certificate, key=key, ca=self.ca if mutual else None)

    def client(self, files: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """The context of a peer that trusts this CA and shows `files`."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if files is not None:
            context.load_cert_chain(*files)
        return context


def authority(folder: Path) -> Authority:
    """A new CA in `folder`."""
    if shutil.which("openssl") is None:
        pytest.skip("OpenSSL is absent (no openssl)")
    folder.mkdir(parents=True)
    new = ("-x509", "-newkey", "rsa:2048", "-nodes", "-days", 30, "-subj", "/CN=Hospital CA")
    openssl("req", *new, "-keyout", folder / "ca.key", "-out", folder / "ca.pem")
    return Authority(folder)


def openssl(*arguments: object) -> None:
    """Run one command of OpenSSL."""
    command = ["openssl", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
