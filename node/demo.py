"""`wetread demo`: a modality, the node, a worker and a PACS on one machine, all talking real DICOM over loopback.

The modality and the PACS are simulators; everything between them is what a hospital would run, in a hurry: two
seconds without a new instance make a study complete.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID

from node import log
from node.daemon import Node, Pace
from node.errors import Permanent, Transient
from node.helper import Worker
from node.settings import SHIPPED, load_routes, load_settings
from node.simulate import scanner
from node.simulate.pacs import Pacs
from node.store import studies
from node.store.locks import lock_state
from node.web.queries import to_png

_MARK = "# Written by `wetread demo`, which writes it anew each time.\n"
_CONFIG = """\
[node]
ae_title = "WETREAD"
port = 0

[destination.pacs]
host = "127.0.0.1"
port = {pacs_port}
ae_title = "SIM_PACS"
commitment = true

[completeness]
quiet_period = "2 s"

[spool]
refuse_below = "100 MB"

[web]
port = 0
"""
_HURRY = Pace(assemble=0.25, route=0.25, ring=0.25, settle=0.25)
_ENDED = ("DONE", "FAILED")
_ORDER = ("SR", "SEG", "SC", "SALIENCY", "PM")
_ARRIVED = ("COMMITTED", "DROPPED", "DEAD")


@dataclass(frozen=True)
class Result:
    """One object that the PACS says it holds."""

    kind: str
    bundle: str
    sop_instance_uid: str


class Demo:
    """The whole scene; a context manager. `say` prints one line."""

    def __init__(self, folder: Path, say: Callable[[str], object]) -> None:
        self._folder, self._say = folder.resolve(), say
        self._stack = ExitStack()
        self._started = time.monotonic()
        self._told: set[str] = set()

    def __enter__(self) -> Demo:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def push(self, study: Path | None) -> None:
        """Send `study`, or the synthetic chest film, to the node; raises `Permanent` when an instance is refused."""
        what = f"everything in {study}" if study is not None else "a synthetic chest film with an opacity, made now,"
        self._step("scanner", f"SCANNER sends {what} to WETREAD")
        source: Any = study if study is not None else [_synthetic_film()]
        report = scanner.send(source, "127.0.0.1", self._node.listener.port)
        self._step("accept", f"{len(report.sent) - len(report.refused)} of {len(report.sent)} instances acknowledged")
        for line in report.left_out:
            self._step("scanner", f"left out: {line}")
        for one in report.refused:
            status = "no answer" if one.status is None else f"{one.status:04X}H"
            self._step("accept", f"refused {one.path.name}: {status} {one.note}")
        if not report.ok:
            raise Permanent("The node did not take everything that was sent.")

    def wait(self, timeout: float, stopping: threading.Event) -> bool:
        """Tell what happens until every study has ended; False when stopped before.

        Raises `Transient` after `timeout` seconds and `Permanent` when something failed.
        """
        deadline = time.monotonic() + timeout
        while True:
            shown = [studies.show(self._node.db, s["study_instance_uid"]) for s in studies.listing(self._node.db)]
            for study in shown:
                self._tell(study)
            if shown and all(study["state"] in _ENDED for study in shown):
                break
            if not self._worker.is_running():
                raise Permanent(f"The worker ended; {self._folder / 'worker.log'} says why.")
            if time.monotonic() > deadline:
                raise Transient(f"The results were not there after {timeout:.0f} s; see {self._folder / 'worker.log'}.")
            if stopping.wait(0.1):
                return False
        if any(study["state"] == "FAILED" for study in shown):
            raise Permanent(f"Something failed: {'; '.join(s['reason'] for s in shown if s['state'] == 'FAILED')}")
        return True

    def show(self) -> None:
        """Print what was found, what the PACS holds now, the picture, and where to look on."""
        for study in studies.listing(self._node.db):
            uid = study["study_instance_uid"]
            self._say(f"\nStudy {uid}")
            for job in study["jobs"]:
                self._say(f"  {job['bundle']}: {job['summary'] or job['reason'] or job['state']}")
            if not study["jobs"]:
                self._say(f"  not read: {study['reason']}")
            results = self._ask_pacs(study)
            if results:
                self._say("  SIM_PACS, asked by C-FIND, now holds")
            for result in results:
                self._say(f"    {result.kind:3}  {result.bundle:12}  {result.sop_instance_uid}")
        self._say("")
        for picture in self._write_pictures():
            self._say(f"Picture  {picture}")
        self._say(f"Status   {self._node.web_address}")

    def _start(self, stack: ExitStack) -> None:
        stack.enter_context(lock_state(self._folder))
        self._clear()
        pacs = stack.enter_context(Pacs(self._folder / "pacs"))
        config = self._configure(pacs.port)
        settings = load_settings(config)
        output = stack.enter_context((self._folder / "node.log").open("w", encoding="utf-8"))
        log.configure(settings.log, output)
        node = stack.enter_context(Node(settings, load_routes(config.parent / "routes.toml", settings), _HURRY))
        pacs.peers["WETREAD"] = ("127.0.0.1", node.listener.port)
        worker_output = stack.enter_context((self._folder / "worker.log").open("wb"))
        worker = Worker(config, worker_output)
        stack.callback(worker.stop, 5.0)
        self._pacs, self._node, self._worker = pacs, node, worker
        self._step("node", f"WETREAD listens on 127.0.0.1:{node.listener.port}, status page {node.web_address}")
        self._step("PACS", f"SIM_PACS, simulated, with storage commitment, listens on 127.0.0.1:{pacs.port}")

    def _clear(self) -> None:
        """Remove what an earlier demo left here; refuse a folder that holds anything else."""
        config = self._folder / "wetread.toml"
        ours = config.is_file() and config.read_text(encoding="utf-8").startswith(_MARK)
        if not ours and any(path.name != "lock" for path in self._folder.iterdir()):
            raise Permanent(f"{self._folder} is no folder of a demo; nothing was touched. Name another one by --state.")
        for name in ("state", "pacs", "pictures"):
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def _configure(self, pacs_port: int) -> Path:
        config = self._folder / "wetread.toml"
        config.write_text(_MARK + _CONFIG.format(pacs_port=pacs_port), encoding="utf-8")
        routes = (SHIPPED / "routes.toml").read_text(encoding="utf-8")
        # The models decline a synthetic film, and are right; here it is read all the same, and the SR remarks that.
        routes = routes.replace('decline = "report"', 'decline = "never"')
        (self._folder / "routes.toml").write_text(routes, encoding="utf-8")
        return config

    def _tell(self, study: dict[str, Any]) -> None:
        """Print each thing that has become true of a study, once."""
        uid = study["study_instance_uid"]
        for event in study["history"]:
            if event["to_state"] == "COMPLETE":
                self._once("assemble", f"study complete: {event['reason']}", uid)
        if study["jobs"]:
            self._once("route", f"jobs for {', '.join(sorted({job['bundle'] for job in study['jobs']}))}", uid)
        for job in study["jobs"]:
            if job["state"] == "RUNNING":
                self._once("load", f"{job['bundle']} reads the series", job["id"])
            if job["summary"]:
                self._once("report", f"{job['bundle']}: {job['summary']}", job["id"])
            elif job["state"] in ("UNSUITABLE", "DEAD"):
                self._once("predict", f"{job['bundle']}, {job['state'].lower()}: {job['reason']}", job["id"])
        for delivery in study["deliveries"]:
            if delivery["state"] in ("SENT", "COMMITTING", *_ARRIVED):
                self._once("send", f"{delivery['kind']} is at {delivery['destination']}", delivery["id"])
        arrived = [delivery["state"] for delivery in study["deliveries"]]
        if arrived and all(state == "COMMITTED" for state in arrived) and study["state"] in _ENDED:
            self._once("commit", f"SIM_PACS commits to keep all {len(arrived)} objects", uid)

    def _once(self, stage: str, text: str, about: str) -> None:
        key = f"{stage} {text} {about}"
        if key not in self._told:
            self._told.add(key)
            self._step(stage, text)

    def _step(self, stage: str, text: str) -> None:
        self._say(f"{time.monotonic() - self._started:6.1f} s  {stage:9} {text}")

    def _ask_pacs(self, study: dict[str, Any]) -> list[Result]:
        """Return our objects that the PACS lists for a study, by C-FIND; raises `Permanent` when one is missing."""
        shown = studies.show(self._node.db, study["study_instance_uid"])
        bundles = {job["id"]: job["bundle"] for job in shown["jobs"]}
        ours = {
            delivery["sop_instance_uid"]: Result(
                delivery["kind"], bundles[delivery["job_id"]], delivery["sop_instance_uid"]
            )
            for delivery in shown["deliveries"]
        }
        listed = set(_find_instances(self._pacs.port, study["study_instance_uid"]))
        if missing := ours.keys() - listed:
            raise Permanent(f"SIM_PACS does not list {len(missing)} of {len(ours)} objects that were sent to it.")
        return sorted(ours.values(), key=lambda result: (_ORDER.index(result.kind), result.bundle))

    def _write_pictures(self) -> Iterator[Path]:
        """Write the key images that the PACS holds as PNG."""
        folder = self._folder / "pictures"
        folder.mkdir(exist_ok=True)
        for uid, held in sorted(self._pacs.held.items()):
            if UID(held.sop_class_uid).name.endswith("Secondary Capture Image Storage"):
                picture = folder / f"{uid}.png"
                picture.write_bytes(to_png(held.path.read_bytes()))
                yield picture


def _synthetic_film() -> Dataset:
    from node.simulate.phantoms import chest_film  # numpy and scipy are of no use to anything else here

    return chest_film(seed=3, opacity="right lower")[0]


def _find_instances(port: int, study_uid: str) -> Iterator[str]:
    """Ask the PACS for the SOP Instance UIDs of a study (C-FIND at the IMAGE level, PS3.4 §C.4.1)."""
    from pynetdicom import AE
    from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as Find  # type: ignore[attr-defined]

    query = Dataset()
    query.QueryRetrieveLevel = "IMAGE"
    query.StudyInstanceUID = study_uid
    query.SOPInstanceUID = ""
    entity = AE("WETREAD")
    entity.add_requested_context(Find)
    assoc = entity.associate("127.0.0.1", port, ae_title="SIM_PACS")
    if not assoc.is_established:
        raise Transient("SIM_PACS does not answer.")
    try:
        for _, match in assoc.send_c_find(query, Find):
            if match is not None:
                yield str(match.SOPInstanceUID)
    finally:
        assoc.release()
