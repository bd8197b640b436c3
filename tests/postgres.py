"""A private PostgreSQL cluster on a Unix socket alone, run by an unprivileged user."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import sqlalchemy


class Cluster:
    """A context manager; it runs inside the block, but for what `stop` and `start` say."""

    def __enter__(self) -> Cluster:
        programs = [*sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")), shutil.which("initdb")]
        if programs[-2:] == [None]:
            pytest.skip("PostgreSQL is absent (no initdb)")
        self._programs = Path(next(str(p) for p in reversed(programs) if p)).parent
        account = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self.folder = Path(tempfile.mkdtemp(prefix="pg"))
        os.chown(self.folder, account.pw_uid, account.pw_gid)
        self._as_user: dict[str, Any] = {"cwd": self.folder, "stdout": subprocess.DEVNULL}
        if os.geteuid() == 0:  # the server refuses to run as root
            self._as_user |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        try:
            init = [str(self._programs / "initdb"), "-D", str(self.folder / "cluster"), "-U", "wetread"]
            subprocess.run([*init, "-A", "trust", "-E", "UTF8", "--no-sync"], check=True, **self._as_user)
            self.start()
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-c listen_addresses= -c unix_socket_directories={self.folder} -c fsync=off"
        subprocess.run([*self._control(), "-o", options, "start"], check=True, **self._as_user)

    def stop(self) -> None:
        """Stop it at once, as a power cut does; nothing happens where it does not run."""
        subprocess.run(
            [*self._control(), "-m", "immediate", "stop"], check=False, stderr=subprocess.DEVNULL, **self._as_user
        )

    def make(self) -> str:
        """Make a database; return its URL."""
        name = f"t{uuid.uuid4().hex}"
        admin = sqlalchemy.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        admin.dispose()
        return self.url(name)

    def url(self, name: str) -> str:
        """Return the URL of the database `name`."""
        return f"postgresql+psycopg://wetread@/{name}?host={self.folder}"

    def _control(self) -> list[str]:
        return [
            str(self._programs / "pg_ctl"),
            "-D",
            str(self.folder / "cluster"),
            "-w",
            "-l",
            str(self.folder / "log"),
        ]
