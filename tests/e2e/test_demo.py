"""`wetread demo` as a person runs it: a process, real associations, an exit status."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
UID = r"2\.25\.\d+"


def demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node.cli", "demo", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of the processes that name `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line and int(entry.parent.name) != os.getpid():
            found.append(line)
    return found


def test_the_synthetic_film_comes_back_as_sr_seg_and_key_image(tmp_path: Path) -> None:
    state = tmp_path / "demo"
    done = demo("--exit", "--state", state)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for stage in ("accept", "assemble", "route", "load", "report", "send", "commit"):
        assert re.search(rf"(?m)^ *\d+\.\d s  {stage} ", done.stdout), stage
    assert re.search(rf"(?m)^    SR   lung_fields +{UID}$", done.stdout)
    assert re.search(rf"(?m)^    SR   chest_xray +{UID}$", done.stdout)
    assert re.search(rf"(?m)^    SEG  lung_fields +{UID}$", done.stdout)
    pictures = re.findall(r"(?m)^Picture  (.+)$", done.stdout)
    assert pictures
    assert all(min(Image.open(picture).size) > 300 for picture in pictures)
    assert re.search(r"(?m)^Status   http://127\.0\.0\.1:\d+/$", done.stdout)
    assert processes_of(state) == []


def test_it_stays_up_until_ctrl_c_and_takes_everything_along(tmp_path: Path, shared_data: Path) -> None:
    state = tmp_path / "demo"
    command = [sys.executable, "-m", "node.cli", "demo", "--state", str(state), "--study"]
    study = str(shared_data / "dicom" / "nonimage_and_odd" / "sr")
    source = study if Path(study).exists() else str(next((shared_data / "dicom" / "mr_t1_pacsman128").rglob("*.dcm")))
    process = subprocess.Popen([*command, source], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "until Ctrl-C" in line:
                break
        assert processes_of(state)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=40)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, errors) == (0, ""), "".join(lines)
    assert any("not read" in line or "hippocampus" in line for line in lines)
    assert processes_of(state) == []


def test_a_folder_that_is_no_demo_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "precious").write_text("x")
    done = demo("--exit", "--state", tmp_path)
    assert done.returncode == 1
    assert "is no folder of a demo; nothing was touched" in done.stderr
    assert (tmp_path / "state" / "precious").read_text() == "x"


@pytest.mark.parametrize("study", ["none", "__init__.py"])
def test_what_cannot_be_sent_is_said_in_one_line(tmp_path: Path, study: str) -> None:
    done = demo("--exit", "--state", tmp_path / "demo", "--study", ROOT / "tests" / study)
    assert done.returncode in (1, 2)
    assert len(done.stderr.splitlines()) == 1
    assert processes_of(tmp_path) == []
