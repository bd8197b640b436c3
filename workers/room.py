"""Readings wait while the disk is full: they could only fail, and it is no fault of a job that there is no room.

Never decides what is received: that is `spool.refuse_below`, and readings go on below it, or nothing could be delivered
and deleted any more.
"""

from __future__ import annotations

import errno
import logging
import shutil
from pathlib import Path

log = logging.getLogger(__name__)

LEAST = 64 * 2**20
"""Bytes that must be free before a reading begins, for its files and for what the database notes of it."""
REST_S = 60.0
"""How long a job rests whose reading found the disk full."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: OSError) -> bool:
    """Say whether a disk, or what of it is ours, is full."""
    return error.errno in _FULL


class Room:
    """Whether there is room to read; says once in the log when there is none, and when there is again."""

    def __init__(self, least: int = LEAST) -> None:
        self._least = least
        self._is_short = False

    def is_there(self, *folders: Path) -> bool:
        """Say whether the disks of all these folders, as far as they are there, have room for a reading."""
        free = min((shutil.disk_usage(folder).free for folder in folders if folder.exists()), default=self._least)
        is_short = free < self._least
        if is_short and not self._is_short:
            what = "The disk has %d bytes free: readings wait, and no attempt counts. Free some space."
            log.error(what, free, extra={"action": "no_room"})
        if self._is_short and not is_short:
            log.info("The disk has room again: readings go on.", extra={"action": "room_again"})
        self._is_short = is_short
        return not is_short
