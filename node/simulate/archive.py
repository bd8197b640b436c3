"""What the simulated PACS keeps: one file per SOP Instance and an append-only, synced ledger of every reception."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset


@dataclass(frozen=True)
class Received:
    """One reception: a line of the ledger. `sha256` is of the data set's bytes as they came."""

    at: float
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    sha256: str
    calling_ae: str
    status: int
    """The status answered, or meant to be answered when the answer was lost."""


@dataclass(frozen=True)
class Held:
    """One instance that the archive keeps."""

    sop_class_uid: str
    sha256: str
    path: Path


class Archive:
    """Files named by digest below one folder, and `ledger.jsonl`; the first object under a UID stays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.received: list[Received] = []
        self.held: dict[str, Held] = {}
        self._headers: dict[Path, Dataset] = {}
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._recall()

    def take(self, entry: Received, part10: bytes, keep: bool) -> None:
        """Write one reception to the ledger, and the file if it is to be kept and its UID is new."""
        with self._lock:
            if keep and entry.sop_instance_uid not in self.held:
                path = self.folder / f"{entry.sha256}.dcm"
                path.write_bytes(part10)
                self.held[entry.sop_instance_uid] = Held(entry.sop_class_uid, entry.sha256, path)
            self.received.append(entry)
            self._write(entry, keep)

    def lose(self, sop_instance_uid: str) -> None:
        """Forget an instance, as a disk does."""
        with self._lock:
            self.held.pop(sop_instance_uid, None)

    def headers(self) -> Iterator[Dataset]:
        """Yield the header of every instance kept."""
        for held in list(self.held.values()):
            if held.path not in self._headers:
                self._headers[held.path] = pydicom.dcmread(held.path, stop_before_pixels=True)
            yield self._headers[held.path]

    def _write(self, entry: Received, kept: bool) -> None:
        with (self.folder / "ledger.jsonl").open("a", encoding="utf-8") as ledger:
            ledger.write(json.dumps({**asdict(entry), "kept": kept}) + "\n")
            ledger.flush()
            os.fsync(ledger.fileno())

    def _recall(self) -> None:
        ledger = self.folder / "ledger.jsonl"
        for line in ledger.read_text(encoding="utf-8").splitlines() if ledger.exists() else ():
            fields = json.loads(line)
            kept = fields.pop("kept")
            entry = Received(**fields)
            self.received.append(entry)
            path = self.folder / f"{entry.sha256}.dcm"
            if kept and path.exists():
                self.held.setdefault(entry.sop_instance_uid, Held(entry.sop_class_uid, entry.sha256, path))


def digest(data: bytes) -> str:
    """Return the SHA-256 of a data set's bytes, in hex."""
    return hashlib.sha256(data).hexdigest()
