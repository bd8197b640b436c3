"""A real worker with a fake pipeline: `python -m tests.crash.worker_process FOLDER URL MODE LEASE_S`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.unit.jobs_on_disk import open_desk, settings_in
from workers import app


def main(folder: str, url: str, mode: str, lease_s: str) -> None:
    settings = settings_in(Path(folder))
    desk = open_desk(settings, mode, app.worker_name(), lease_s=float(lease_s))
    app.start_worker(app.make_app(url, desk), desk, ["read"])
    desk.readers.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
