"""Readers that misbehave, each as a child of the real supervisor: `python -m tests.unit.child_pipelines MODE ANSWERS`.

A request's `key` may name another mode for that one reading; where it is a digest, MODE it is.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from workers.pipeline import Outcome, Request, Turn
from workers.reader import serve

MODE = sys.argv[1]
ANSWERS = int(sys.argv[2])


class Panic(BaseException):
    """What a decoder written in Rust raises."""


def read(request: Request, turn: Turn) -> Outcome:
    mode = MODE if len(request.key) in (0, 64) else request.key
    if mode == "crash":
        ctypes.string_at(0)
    elif mode.startswith("signal"):
        os.kill(os.getpid(), int(mode.split()[1]))
    elif mode == "hang":
        time.sleep(600)
    elif mode == "deaf":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        time.sleep(600)
    elif mode == "raise":
        raise ValueError("Doe^John is in the file")
    elif mode == "panic":
        raise Panic("Doe^John is in the file")
    elif mode == "memory":
        raise MemoryError
    elif mode == "leave":
        sys.exit(3)
    elif mode == "exit":
        os._exit(3)
    elif mode == "noise":
        print("Doe^John", flush=True)
        os.write(1, b"Doe^John\n")
        os.write(2, b"Doe^John\n")
        assert not sys.stdin.buffer.read()
    elif mode == "temporary":
        made = Path(tempfile.mkdtemp())
        (made / "left behind").touch()
        return replace(_reported(request), summary=str(made))
    elif mode == "full":
        return Outcome("failed", "A file could not be written: no space left", True, "", (), is_full=True)
    elif mode == "warn":
        logging.getLogger("workers.predict.memory").warning("%s goes on with less memory\nand more", "bundle")
        logging.getLogger("pydicom").warning("Doe^John has an odd date")
    elif mode in _ANSWERS:
        os.write(ANSWERS, _ANSWERS[mode])
    elif mode == "family":
        child = subprocess.Popen(["sleep", "600"])
        (Path(request.out) / "pid").write_text(str(child.pid))
        time.sleep(600)
    elif mode.startswith("turn"):
        with turn():
            began = time.monotonic()
            time.sleep(float(mode.split()[1]))
            (Path(request.out) / f"turn-{request.job_id}").write_text(f"{began} {time.monotonic()}")
        time.sleep(0.2)
    elif mode == "hold the turn":
        with turn():
            (Path(request.out) / "held").touch()
            while not (Path(request.out) / "let go").exists():
                time.sleep(0.02)
    elif mode == "die in turn":
        with turn():
            os._exit(3)
    elif mode == "two turns":
        with turn(), turn():
            pass
    elif mode == "slow":
        (Path(request.out) / "started").write_text(str(os.getpid()))
        time.sleep(1.0)
    return _reported(request)


_ANSWERS = {
    "garbage": b"not json\n",
    "nan": b'{"kind": "reported", "probability": NaN}\n',
    "unknown": b'{"kind": "maybe", "reason": "", "transient": false, "summary": "", "documents": []}\n',
    "long": b"x" * (1 << 20) + b"xxx\n",
    "latin": b"\xff\xfe\n",
}


def _reported(request: Request) -> Outcome:
    """One document that names the process and the number of files."""
    file = Path(request.out) / "sr.dcm"
    file.write_bytes(json.dumps({"job": request.job_id, "files": sorted(request.files)}).encode())
    document = {
        "kind": "SR",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.88.34",
        "sop_instance_uid": f"2.25.{int.from_bytes(request.job_id.encode()[:8], 'big')}",
        "series_instance_uid": "2.25.2",
        "file": str(file),
    }
    return Outcome("reported", "", False, f"pid {os.getpid()}", (document,))


if __name__ == "__main__":
    serve(ANSWERS, read)
