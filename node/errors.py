"""Every error wetread raises descends from one of three bases that say what happens next.

`Transient`: try later. `Permanent`: a person must act. `Unsuitable`: an outcome, not a fault.
A message says what happened, to which object, what the node did, and what to do.
"""

from __future__ import annotations

from pathlib import Path


class WetreadError(Exception):
    """Something went wrong in wetread; without a message of its own, the class's docstring is shown."""

    def __str__(self) -> str:
        return super().__str__() or " ".join((self.__doc__ or type(self).__name__).split())


class Transient(WetreadError):
    """This did not work now and will be tried again by itself."""


class Permanent(WetreadError):
    """This will not work however often it is tried; a person must act."""


class Unsuitable(WetreadError):
    """This series must not be read by this Model Bundle; the message says why. An outcome, not a fault."""


class NoRoom(Transient):
    """The spool's file system is below its watermark or refused a write; nothing was kept. Free some space."""


class BrokerUnavailable(Transient):
    """The broker does not answer; jobs wait in the database and are announced again when it is back."""


class DatabaseUnavailable(Transient):
    """The database does not answer or is locked by another process; nothing was written."""


class NotFound(Permanent):
    """The database knows no study, job or delivery of this name."""


class ConfigError(Permanent):
    """A configuration file is wrong. Shown as `file:line: what: expected`; exit status 2."""

    def __init__(self, file: Path | str, line: int | None, message: str) -> None:
        self.file, self.line, self.message = str(file), line, message
        where = f"{self.file}:{line}" if line else self.file
        super().__init__(f"{where}: {message}")


class BundleError(Permanent):
    """A Model Bundle cannot be used: a file is missing, does not parse, or its digest is not the trusted one."""


class NonConformant(Permanent):
    """An Evidence Document failed the gate and was not filed; this is a fault of the node or of the bundle."""


def first_cause(error: BaseException) -> str:
    """Return kind and first line of what went wrong first: MONAI wraps what a component or a transform raises."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".partition("\n")[0]
