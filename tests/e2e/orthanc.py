"""A real PACS for the tests: Debian's Orthanc with its DICOMweb plugin, on loopback, in a folder of its own."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from tests import dcmtk

PLUGINS = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
HERE = Path(__file__).resolve().parent
PROGRAMS = f"{os.environ.get('PATH', '')}:/usr/sbin"
"""Debian puts Orthanc where an ordinary user's PATH does not look."""


def free_port() -> int:
    """Return a TCP port that was free on loopback a moment ago, of those that the system gives to nobody by itself.

    From 32768 on any outgoing connection may take it before its server does (ip_local_port_range).
    """
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", random.SystemRandom().randrange(15_000, 32_000)))
            return int(probe.getsockname()[1])


def missing() -> str:
    """Return what a run with Orthanc and DCMTK lacks on this machine, or nothing."""
    needed = [name for name in ("Orthanc", "gcc") if shutil.which(name, path=PROGRAMS) is None]
    needed += [] if dcmtk.find("storescu") else ["storescu"]
    return ", ".join(needed + ([] if PLUGINS.exists() else ["orthanc-dicomweb"]))


@dataclass(frozen=True)
class Orthanc:
    """A running PACS: its AE, and its DICOMweb and REST faces."""

    ae_title: str
    dicom_port: int
    http_port: int
    pid: int = 0

    @property
    def url(self) -> str:
        """The REST root."""
        return f"http://127.0.0.1:{self.http_port}"

    def qido(self, path: str, **query: str) -> list[dict[str, Any]]:
        """Search by QIDO-RS (PS3.18 §10.6); an empty list when nothing matches."""
        reply = httpx.get(f"{self.url}/dicom-web/{path}", params=query, headers={"Accept": "application/dicom+json"})
        reply.raise_for_status()
        return reply.json() if reply.content else []

    def series(self, study_uid: str) -> list[dict[str, str]]:
        """Return modality, series UID and description of each series of a study, by QIDO-RS."""
        found = self.qido(f"studies/{study_uid}/series", includefield="0008103E")
        return [{k: _value(s, tag) for k, tag in _SERIES_TAGS.items()} for s in found]

    def instances(self, study_uid: str, series_uid: str) -> list[bytes]:
        """Return the Part 10 files of a series, as the PACS stores them."""
        found = self.qido(f"studies/{study_uid}/series/{series_uid}/instances")
        return [self.instance(_value(instance, "00080018")) for instance in found]

    def instance(self, sop_instance_uid: str) -> bytes:
        """Return one Part 10 file."""
        ids = httpx.post(f"{self.url}/tools/lookup", content=sop_instance_uid).json()
        return httpx.get(f"{self.url}/instances/{ids[0]['ID']}/file").content


_SERIES_TAGS = {"modality": "00080060", "uid": "0020000E", "description": "0008103E"}


def _value(item: dict[str, Any], tag: str) -> str:
    return str((item.get(tag, {}).get("Value") or [""])[0])


def loopback_only(folder: Path) -> dict[str, str]:
    """Return the environment in which a program that binds to every interface binds to 127.0.0.1."""
    shim = folder / "loopback.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(shim), str(HERE / "loopback.c"), "-ldl"], check=True)
    return {"LD_PRELOAD": str(shim), "PATH": PROGRAMS}


@contextmanager
def running(folder: Path, node_port: int, more: Mapping[str, Any] | None = None) -> Iterator[Orthanc]:
    """Run Orthanc in `folder` until the block ends; the node at `node_port` may ask it for storage commitment.

    `more`: further settings of Orthanc's configuration file.
    """
    pacs = Orthanc("ORTHANC", free_port(), free_port())
    config = folder / "orthanc.json"
    config.write_text(json.dumps(_configuration(pacs, folder, node_port) | dict(more or {})))
    environment = loopback_only(folder) | {"TCP_NODELAY": "1"}  # read by its DCMTK; its own option is for HTTP
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            [str(shutil.which("Orthanc", path=PROGRAMS)), str(config)],
            stdout=log,
            stderr=log,
            cwd=folder,
            env=environment,
        )
    try:
        _wait_until_up(pacs, process)
        yield replace(pacs, pid=process.pid)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _configuration(pacs: Orthanc, folder: Path, node_port: int) -> dict[str, Any]:
    return {
        "Name": "wetread test PACS",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "DicomAet": pacs.ae_title,
        "DicomPort": pacs.dicom_port,
        "HttpPort": pacs.http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomModalities": {"node": ["WETREAD", "127.0.0.1", node_port]},
        "Plugins": [str(PLUGINS)],
        "TcpNoDelay": True,
    }


def _wait_until_up(pacs: Orthanc, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError("Orthanc ended while starting; see orthanc.log")
        try:
            if httpx.get(f"{pacs.url}/system").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError("Orthanc did not answer within 60 s")
