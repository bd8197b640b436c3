"""The ingest log: what a listener acknowledges is durable here, one sync per instance or less; files follow.

An instance is appended to a segment and synced; then it may be acknowledged. The registrar lays its file out in the
spool, without a sync, before the database hears of it, so that everybody else sees plain files. A segment is used again
when everything laid out from it has been synced, for several in one go, in a pause where there is one; until then a
crash makes the next start lay it out again (`replay`). A sync that failed is never tried again: the segment takes
nothing more and the senders are told A700H.
"""

from __future__ import annotations

import logging
import os
import resource
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from node.crashpoints import reach
from node.errors import NoRoom
from node.log import describe
from node.store import segments
from node.store.layout import Piece, lay_out
from node.store.segments import Segment
from node.store.spool import FOLDER_MODE, Encoded, Spool, Stored
from node.store.syncing import Syncer, fsync_folder

log = logging.getLogger(__name__)

SEGMENT = 64 * 2**20
"""Bytes of one log file."""
LARGEST = 8 * 2**20
"""Bytes of a record; a larger instance goes straight to its file, whose syncs it makes cheap beside its size."""
LONGEST_S = 10.0
"""How long a segment takes records; then its files are synced, however little it holds."""
AT_ONCE, PAUSE_S = 3, 3.0
"""Segments whose files are synced together; fewer when no segment was filled for so long. A sync of all files takes the
disk from those that wait for theirs, so a burst of 192 MB goes by without one. As many are kept to be used again."""
_LOOK_S = 0.5
_REPLAYED_AT_ONCE = 32
"""Log files that are open together while they are laid out again."""


@dataclass(frozen=True)
class Entry:
    """An instance that is durable in the log, where its file will be, and how it gets there."""

    stored: Stored
    owner: IngestLog
    segment: Segment
    piece: Piece

    def lay_out(self) -> None:
        """Put its file into the spool; raises `NoRoom`, and may then be called again."""
        reach("log.before_layout")
        lay_out(self.owner.spool, self.piece)
        self.owner.settled(self)


class IngestLog:
    """The log of one listener in the spool's folder `log`."""

    def __init__(
        self, spool: Spool, segment: int = SEGMENT, longest_s: float = LONGEST_S, most: int | None = None
    ) -> None:
        self.spool, self._size, self._longest_s = spool, segment, longest_s
        self._most = most or _most_segments()
        self._folder = _folder(spool)
        self._current: Segment | None = None
        self._since = self._rotated_at = 0.0
        self._full: list[Segment] = []
        self._spare: list[Segment] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._attention = threading.Event()
        self._sync_all = Syncer(spool.root)
        self._thread = threading.Thread(target=self._run, name="ingest-log", daemon=True)
        self._thread.start()

    def takes(self, size: int) -> bool:
        """Say whether an instance of `size` bytes goes through the log."""
        return size <= min(LARGEST, self._size // 2)

    def append(self, header: bytes, dataset: Encoded, sha256: bytes) -> Entry:
        """Make one instance durable; raises `NoRoom`.

        `header` is everything up to File Meta Information, `sha256` the digest of `dataset`.
        """
        try:
            with self._lock:
                segment = self._segment_for(segments.room(header, dataset))
                try:
                    piece = segment.write(header, dataset, sha256)
                except OSError:
                    self._rotate()
                    raise
                segment.pending += 1
            self._sync(segment)
        except OSError as error:
            raise NoRoom(
                f"The spool refused a write ({error.strerror}); nothing was kept. "
                "Free some space, and check the disk if there is plenty."
            ) from error
        path = self.spool.instance_name(piece.sha256)
        return Entry(Stored(path, piece.sha256, piece.size), self, segment, piece)

    def settled(self, entry: Entry) -> None:
        """Note that the file of `entry` is in its place."""
        with self._lock:
            entry.segment.laid_out.append(entry.stored.path)
            entry.segment.pending -= 1

    def close(self) -> bool:
        """Take nothing more; sync what was laid out and remove its segments. False when some are left for a replay."""
        self._stopping.set()
        self._attention.set()
        self._thread.join()
        with self._lock:
            self._rotate()
        self._settle(self._laid_out())
        for segment in self._spare:
            segment.remove()
        for segment in self._full:
            segment.close()
        self._sync_all.close()
        return not self._full

    def _segment_for(self, size: int) -> Segment:
        current = self._current
        if current is None or current.is_broken or current.end + size > current.size:
            self._rotate()
            if sum(1 for segment in self._full if segment.pending) >= self._most:
                raise NoRoom(f"{self._most} files of the ingest log wait for the index; nothing was kept.")
            current = self._current = self._spare.pop() if self._spare else Segment(self._folder, self._size)
            self._since = time.monotonic()
        elif current.end > current.size // 2 and not self._spare:
            self._attention.set()
        return current

    def _sync(self, segment: Segment) -> None:
        try:
            segment.sync()
        except BaseException:
            with self._lock:
                segment.pending -= 1
                if self._current is segment:
                    self._rotate()
            raise

    def _rotate(self) -> None:
        if self._current is not None:
            self._full.append(self._current)
            self._rotated_at = time.monotonic()
        self._current = None

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._attention.wait(_LOOK_S)
            self._attention.clear()
            self._rotate_aged()
            self._make_spare()
            done = self._laid_out()
            if len(done) >= AT_ONCE or time.monotonic() - self._rotated_at > PAUSE_S:
                self._settle(done)

    def _rotate_aged(self) -> None:
        """Let an old segment go, unless one before it still waits: while the database is away they would pile up."""
        with self._lock:
            if self._current is not None and not self._full and time.monotonic() - self._since > self._longest_s:
                self._rotate()

    def _make_spare(self) -> None:
        """Have a segment ready before the current one is full; where that fails, whoever needs one finds out why."""
        with self._lock:
            current = self._current
            if self._spare or current is None or current.end <= current.size // 2:
                return
        with suppress(OSError):
            spare = Segment(self._folder, self._size)
            with self._lock:
                self._spare.append(spare)

    def _laid_out(self) -> list[Segment]:
        with self._lock:
            return [segment for segment in self._full if not segment.pending]

    def _settle(self, done: Sequence[Segment]) -> None:
        """Sync, once for all of them, the files of segments that are done; only then are these used again."""
        if not done:
            return
        try:
            self._sync_all([path for segment in done for path in segment.laid_out])
        except OSError as error:
            self._give_up(done, error)
            return
        with self._lock:
            self._full = [segment for segment in self._full if segment not in done]
        reach("log.before_remove")
        for segment in done:
            self._use_again(segment)

    def _use_again(self, segment: Segment) -> None:
        if segment.is_broken or self._stopping.is_set() or len(self._spare) >= AT_ONCE:
            segment.remove()
            return
        try:
            segment.use_again()
        except OSError:
            segment.remove()
        else:
            with self._lock:
                self._spare.append(segment)

    def _give_up(self, done: Sequence[Segment], error: OSError) -> None:
        """Keep what could not be synced as it is: the next start lays it out again from the log."""
        with self._lock:
            self._full = [segment for segment in self._full if segment not in done]
        for segment in done:
            segment.close()
        extra = {"action": "log_kept", "count": len(done), "error": describe(error)}
        log.error("Files could not be synced; the ingest log keeps them. Check the disk, start again.", extra=extra)


def replay(spool: Spool) -> int:
    """Lay out what killed listeners left in their logs, durably; return how many instances. Raises `NoRoom`."""
    seen: set[Path] = set()
    count, sync_all = 0, Syncer(spool.root)
    with ExitStack() as stack:
        stack.callback(sync_all.close)
        while paths := sorted(set(_folder(spool).iterdir()) - seen):  # one may have got another name meanwhile
            seen |= set(paths)
            for start in range(0, len(paths), _REPLAYED_AT_ONCE):
                count += _replay(spool, sync_all, paths[start : start + _REPLAYED_AT_ONCE])
    if count:
        extra = {"action": "log_replayed", "count": count}
        log.info("%d instances were laid out again from the ingest log.", count, extra=extra)
    return count


def _replay(spool: Spool, sync_all: Syncer, paths: Sequence[Path]) -> int:
    """Lay out some logs. Files are written anew: what the kernel shows of one whose sync failed may not be on disk."""
    with ExitStack() as stack:
        replayed, names = [], []
        for path in paths:
            descriptor = stack.enter_context(segments.abandoned(path))
            if descriptor is None:
                continue
            replayed.append(path)
            for piece in segments.pieces(descriptor, path):
                lay_out(spool, piece, anew=True)
                names.append(spool.instance_name(piece.sha256))
        if replayed:
            _sync_or_refuse(sync_all, names)
        for path in replayed:
            path.unlink()
        return len(names)


def logged(spool: Spool) -> set[str]:
    """Return the SHA-256 of every data set that is whole in a log, also in one that is being written."""
    found: set[str] = set()
    for path in sorted(_folder(spool).glob("*.log")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # it has just been settled
            continue
        try:
            found |= {piece.sha256 for piece in segments.pieces(descriptor, path)}
        finally:
            os.close(descriptor)
    return found


def _folder(spool: Spool) -> Path:
    folder = spool.root / "log"
    if not folder.is_dir():
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
        fsync_folder(spool.root)
    return folder


def _most_segments() -> int:
    """Return how many log files may be open: half of what this process may open, so that it goes on with all else."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if soft == resource.RLIM_INFINITY else max(min(soft // 2, 4096), 16)


def _sync_or_refuse(sync_all: Syncer, names: list[str]) -> None:
    try:
        sync_all(names)
    except OSError as error:
        raise NoRoom(f"The spool cannot be synced ({error.strerror}). Check the disk.") from error
