"""A hospital around a node: a sender and a PACS that write down what they saw, and processes that may be killed.

The sender's ledger has a line before each C-STORE and one after its answer, synced, as a sender has that deletes what
was acknowledged; it sends again what was not. The PACS is the simulated one and outlives every process of the node.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from node import bundles, clock, embedded, trust
from node.errors import WetreadError
from node.simulate import phantoms, scanner
from node.simulate.pacs import Pacs
from node.store import invariants
from node.store.db import Database, rows
from node.store.invariants import Finding
from node.store.spool import Spool, dataset_sha256
from tests.crash.forks import Forks
from tests.e2e.orthanc import free_port

ROOT = Path(__file__).resolve().parents[2]
AE_TITLE = "WETREAD"
CANARIES = {"PatientName": "QUILLWORT^VESPER", "PatientID": "QX7731-KVZ", "AccessionNumber": "ACZ-99-QWV-1"}
"""What the patients of every study are called; nobody but sender, spool and PACS may ever know."""
QUICK = 'quiet_period = "0.5 s"\nmax_wait = "1 min"'
CONFIG = """
[node]
ae_title = "WETREAD"
port = {port}
[[peer]]
name = "modality"
ae_title = "SCANNER"
address = "127.0.0.1"
[[peer]]
name = "pacs"
ae_title = "SIM_PACS"
address = "127.0.0.1"
[destination.pacs]
host = "127.0.0.1"
port = {pacs_port}
ae_title = "SIM_PACS"
commitment = true
[completeness]
{completeness}
[spool]
url = "state/spool"
refuse_below = "10 MB"
[database]
url = "sqlite:///state/wetread.db"
[worker]
models = "models"
trusted = "trusted.toml"
job_timeout = "60 s"
max_attempts = 20
[web]
port = {web_port}
"""
ROUTES = """
[[route]]
name = "Films"
when = {ModalitiesInStudy = ["CR", "DX"]}
models = ["canned"]
results = ["SR"]
send_to = ["pacs"]
"""
DICOM_TOML = """
label = "Canned"
kind = "classification"
dimensions = 2
manufacturer = "wetread"
[series]
Modality = ["CR", "DX"]
[[finding]]
output = 0
label = "Abnormal"
type = {code = "408574004", scheme = "SCT", meaning = "Imaging result abnormal"}
threshold = 0.5
calibrated = true
"""


@dataclass
class Sender:
    """One modality: pushes studies of `count` small films and keeps a ledger of what became of each instance."""

    ledger: Path
    port: int
    acknowledged: set[str] = field(default_factory=set)
    host: str = "127.0.0.1"
    _film: Dataset | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def make_study(self, folder: Path, count: int = 1) -> str:
        """Write a new study into `folder`; return its Study Instance UID."""
        with self._lock:
            if self._film is None:
                self._film, _ = phantoms.chest_film(size=64)
                for keyword, canary in CANARIES.items():
                    setattr(self._film, keyword, canary)
            film, study, series = self._film, generate_uid(), generate_uid()
            folder.mkdir(parents=True)
            for number in range(count):
                film.StudyInstanceUID, film.SeriesInstanceUID = study, series
                film.SOPInstanceUID = film.file_meta.MediaStorageSOPInstanceUID = generate_uid()
                film.InstanceNumber = number + 1
                film.save_as(folder / f"{number}.dcm", enforce_file_format=True)
            return str(study)

    def file(self, folder: Path, port: int) -> None:
        """Send a study to an archive at `port` as well, which may give it to the node."""
        for path in sorted(folder.iterdir()):
            self._write(scanner.scan(path)[0][0].sop_instance_uid, dataset_sha256(path), None)
        assert scanner.send(folder, "127.0.0.1", port, ae="SCANNER", called="SIM_PACS", timeout=60.0).ok

    def push(self, folder: Path) -> bool:
        """Send what is not acknowledged yet; True when all of `folder` is."""
        left = [path for path in sorted(folder.iterdir()) if str(path) not in self.acknowledged]
        for path in left:
            self.push_one(path)
        return all(str(path) in self.acknowledged for path in folder.iterdir())

    def push_until_acknowledged(self, folder: Path, within_s: float) -> None:
        """Send again and again."""
        until(lambda: self.push(folder), within_s, "the sender got its answer", 0.1)

    def push_one(self, path: Path) -> None:
        """Send one instance once."""
        uid, sha256 = scanner.scan(path)[0][0].sop_instance_uid, dataset_sha256(path)
        self._write(uid, sha256, None)
        try:
            (sent,) = scanner.send(path, self.host, self.port, ae="SCANNER", timeout=60.0).sent
        except WetreadError:
            return
        if sent.status is not None:
            self._write(uid, sha256, sent.status)
        if sent.ok:
            self.acknowledged.add(str(path))

    def statuses(self) -> set[int]:
        """Every status that was answered so far."""
        found = (json.loads(line)["status"] for line in self.ledger.read_text().splitlines())
        return {status for status in found if status is not None}

    def _write(self, uid: str, sha256: str, status: int | None) -> None:
        line = json.dumps({"sop_instance_uid": uid, "sha256": sha256, "status": status}) + "\n"
        with self._lock, self.ledger.open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


class Process(Protocol):
    """The part of `subprocess.Popen` that is needed here."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | Any: ...
    def poll(self) -> int | None: ...
    def send_signal(self, number: int, /) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...


class Hospital:
    """A node in `folder` with everything around it; a context manager that starts the PACS and ends every process."""

    def __init__(self, folder: Path, completeness: str = QUICK, forks: Forks | None = None) -> None:
        self.folder, self.port, self.completeness = folder, free_port(), completeness
        self._forks = forks
        (folder / "studies").mkdir(parents=True)
        self.pacs = Pacs(folder / "pacs", peers={AE_TITLE: ("127.0.0.1", self.port)})
        self.sender = Sender(folder / "sent.jsonl", self.port)
        self.processes: dict[str, Process] = {}
        self._db: Database | None = None

    def __enter__(self) -> Hospital:
        self.pacs.start()
        ports = {"port": self.port, "pacs_port": self.pacs.port, "web_port": free_port()}
        text = CONFIG.format(**ports, completeness=self.completeness)
        (self.folder / "wetread.toml").write_text(text)
        (self.folder / "routes.toml").write_text(ROUTES)
        configs = self.folder / "models" / "canned" / "configs"
        configs.mkdir(parents=True)
        (configs / "metadata.json").write_text(json.dumps({"version": "1.0.0"}))
        (configs / "inference.json").write_text("{}")
        (configs / "dicom.toml").write_text(DICOM_TOML)
        trust.pin([bundles.load(configs.parent)], self.folder / "trusted.toml")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for name in list(self.processes):
            self.kill(name)
        self.pacs.stop()
        if self._db:
            self._db.close()

    @property
    def db(self) -> Database:
        """The node's database, opened beside it."""
        if self._db is None:
            self._db = Database(f"sqlite:///{self.folder}/state/wetread.db")
        return self._db

    @property
    def broker_socket(self) -> Path:
        """Where the embedded broker listens."""
        return embedded.socket_path((self.folder / "state").resolve())

    def start(self, name: str, fault: str = "") -> None:
        """Start "node" or "worker" (again), with a crash point armed if `fault` names one."""
        self.run(name, name, self.folder / "wetread.toml", fault=fault)

    def run(self, name: str, program: str, config: Path, *roles: str, fault: str = "") -> None:
        """Start a process under a name of its own: a "worker", or a "node" or some roles of it."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = self.launch([program, str(config), *roles], log, {"WETREAD_FAULT": fault})

    def launch(self, words: Sequence[str], log: BinaryIO, env: Mapping[str, str]) -> Process:
        """Start `tests.crash.hurried` with these words, its output in `log`; as a fork where it may be one."""
        if self._forks and not self.where(words):
            return self._forks.start(words, log, env)
        return subprocess.Popen(
            [*self.where(words), sys.executable, "-m", "tests.crash.hurried", *words],
            cwd=ROOT, stdout=log, stderr=log, env=os.environ | env,
        )  # fmt: skip

    def where(self, words: Sequence[str]) -> list[str]:
        """Return what a command begins with that shall run somewhere else than here."""
        return []

    def kill(self, name: str) -> None:
        """`kill -9`."""
        process = self.processes.pop(name, None)
        if process:
            process.send_signal(signal.SIGKILL)
            process.wait(30)

    def wait_for_death(self, name: str, within_s: float) -> int:
        """Wait until the process has ended by itself; return its status."""
        until(lambda: self.processes[name].poll() is not None, within_s, f"the {name} came by the point", 0.02)
        return self.processes.pop(name).returncode

    def wait_until_up(self, within_s: float = 60.0) -> None:
        """Wait until the listener answers a C-ECHO."""
        until(self._answers, within_s, "the node answers", 0.1)

    def wait_for_studies(self, wanted: Mapping[str, int], within_s: float) -> None:
        """Wait until each study is DONE with its number of instances; fail at once when one has FAILED."""
        until(lambda: not self.unfinished(wanted), within_s, f"all of {len(wanted)} studies are DONE", 0.1)

    def unfinished(self, wanted: Mapping[str, int]) -> dict[str, str]:
        """Study Instance UID → where it is, of those that are not DONE with all of their instances."""
        statement = (
            "SELECT s.study_instance_uid AS uid, s.state, s.reason, COUNT(i.sha256) AS count FROM study s JOIN "
            "instance i ON i.study_instance_uid = s.study_instance_uid GROUP BY s.study_instance_uid, s.state, s.reason"
        )
        found = {row["uid"]: row for row in self.rows(statement)}
        failed = [row for row in found.values() if row["state"] == "FAILED"]
        assert not failed, failed
        there = {uid: (found[uid]["state"], found[uid]["count"]) if uid in found else ("absent", 0) for uid in wanted}
        return {uid: f"{there[uid]}" for uid, count in wanted.items() if there[uid] != ("DONE", count)}

    def rows(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        """Ask the node's database."""
        with self.db.reader() as connection:
            return rows(connection, statement, **values)

    def findings(self, hours_later: float = 0.0) -> list[Finding]:
        """What the checker says with both ledgers; `hours_later` makes what was left behind long ago count."""
        spool = Spool(self.folder / "state" / "spool", 0)
        archive = self.pacs.archive.folder / "ledger.jsonl"
        now = clock.now() + hours_later * 3600
        return invariants.check(
            self.db, spool, now, sent=self.sender.ledger, archive=archive if archive.exists() else None,
            ae_title=AE_TITLE, beside=self.beside,
        )  # fmt: skip

    @property
    def beside(self) -> invariants.Beside:
        """What the node writes besides its database and spool, and the names that must not be there."""
        state = self.folder / "state"
        logs = tuple(sorted(self.folder.glob("*.log")))
        canaries = tuple(part for value in CANARIES.values() for part in value.split("^"))
        return invariants.Beside(state, logs, canaries=canaries, trails=(state / "audit.log",))

    def verify(self) -> subprocess.CompletedProcess[str]:
        """`wetread spool verify` with every ledger and log, on a node that has come to its end."""
        command = [sys.executable, "-m", "node.cli", "spool", "verify", "--config", str(self.folder / "wetread.toml")]
        command += ["--sent", str(self.sender.ledger), "--archive", str(self.pacs.archive.folder / "ledger.jsonl")]
        command += [word for log in self.beside.logs for word in ("--log", str(log))]
        command += [word for canary in self.beside.canaries for word in ("--canary", canary)]
        return subprocess.run([*command, "--drained", "0"], cwd=ROOT, capture_output=True, text=True, check=False)

    def doubled(self) -> list[str]:
        """SOP Instance UIDs of ours that the PACS got with more than one digest, or results that it got too many of."""
        digests: dict[str, set[str]] = {}
        for entry in self.pacs.received:
            digests.setdefault(entry.sop_instance_uid, set()).add(entry.sha256)
        filed = self.rows(
            "SELECT j.study_instance_uid AS study, e.kind FROM evidence e JOIN job j ON j.id = e.job_id "
            "GROUP BY j.study_instance_uid, j.revision, j.bundle, e.kind HAVING COUNT(*) > 1"
        )
        return [uid for uid, found in digests.items() if len(found) > 1] + [row["study"] for row in filed]

    def is_up(self) -> bool:
        """Say whether the listener answers a C-ECHO."""
        try:
            return scanner.echo(self.sender.host, self.sender.port, timeout=5.0) == 0
        except WetreadError:
            return False

    def _answers(self) -> bool:
        node = self.processes["node"]
        assert node.poll() is None, (self.folder / "node.log").read_text()[-3000:]
        return self.is_up()


def until(true: Any, within_s: float, what: str, every_s: float = 0.05) -> None:
    """Wait until `true()`; fail with `what` was waited for."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        time.sleep(every_s)


def children(parent: int) -> list[tuple[int, str]]:
    """Every process below `parent`, with its command line."""
    found: list[tuple[int, str]] = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _parent(process) == parent:
            pid = int(process.name)
            found += [(pid, _command_line(process)), *children(pid)]
    return found


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""
