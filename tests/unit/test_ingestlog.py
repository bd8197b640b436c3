"""The ingest log: what it returned is durable, is laid out once, and is found again whatever is torn."""

from __future__ import annotations

import hashlib
import os
import resource
import struct
import threading
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from node import crashpoints
from node.errors import NoRoom, Permanent
from node.store import ingestlog, segments, syncing
from node.store.ingestlog import Entry, IngestLog, replay
from node.store.spool import Encoded, Spool, dataset_sha256, digest
from node.store.syncing import Syncer

META = bytes(128) + b"DICM\x02\x00\x00\x00UL\x04\x00\x00\x00\x00\x00"


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", 0)


def logs(spool: Spool) -> list[Path]:
    return sorted((spool.root / "log").iterdir())


def abandon(log: IngestLog) -> None:
    """End a log as a kill would: the kernel lets go of its lock, and nothing else happens."""
    log._stopping.set()
    log._attention.set()
    log._thread.join()
    for segment in [*log._full, *log._spare, *filter(None, [log._current])]:
        segment.close()


def append(log: IngestLog, data: Encoded) -> Entry:
    return log.append(META, data, digest(data))


def kept(spool: Spool) -> set[str]:
    assert all(dataset_sha256(path) == path.stem for path in spool.instances())
    return {path.stem for path in spool.instances()}


def test_an_instance_is_laid_out_as_it_came_and_its_segment_goes(spool: Spool) -> None:
    log = IngestLog(spool)
    data = os.urandom(100_000)
    entry = append(log, memoryview(data))
    assert entry.stored.sha256 == hashlib.sha256(data).hexdigest()
    assert not list(spool.instances())
    assert ingestlog.logged(spool) == {entry.stored.sha256}
    entry.lay_out()
    path = spool.path(entry.stored.path)
    assert path.read_bytes() == META + data
    assert path.stat().st_size == entry.stored.size
    assert path.stat().st_mode & 0o777 == 0o640
    assert log.close()
    assert not logs(spool)


def test_what_was_not_laid_out_is_there_after_a_replay(spool: Spool) -> None:
    log = IngestLog(spool)
    entries = [append(log, os.urandom(10_000)) for _ in range(5)]
    entries[1].lay_out()
    assert replay(spool) == 0, "the writer lives"
    abandon(log)
    assert replay(spool) == 5
    assert kept(spool) == {entry.stored.sha256 for entry in entries}
    assert not logs(spool)
    assert replay(spool) == 0


def test_a_log_that_is_closed_with_instances_in_hand_is_kept_for_the_next_start(spool: Spool) -> None:
    log = IngestLog(spool)
    entry = append(log, b"data")
    assert not log.close()
    assert replay(spool) == 1
    assert kept(spool) == {entry.stored.sha256}


@pytest.mark.parametrize("cut", [1, 50, 5_000, 9_999])
def test_a_torn_end_is_dropped_and_what_lies_before_it_stays(spool: Spool, cut: int) -> None:
    log = IngestLog(spool)
    first, second = append(log, os.urandom(10_000)), append(log, os.urandom(10_000))
    end = second.piece.start + second.piece.size
    os.pwrite(second.piece.descriptor, bytes(cut), end - cut)
    os.pwrite(second.piece.descriptor, b"garbage", second.segment.end)
    abandon(log)
    assert replay(spool) == 1
    assert kept(spool) == {first.stored.sha256}


def test_a_damaged_record_does_not_take_the_next_one_with_it(spool: Spool) -> None:
    log = IngestLog(spool)
    damaged, sound = append(log, os.urandom(10_000)), append(log, os.urandom(10_000))
    os.pwrite(damaged.piece.descriptor, b"xxx", damaged.piece.start + 5_000)
    abandon(log)
    assert replay(spool) == 1
    assert kept(spool) == {sound.stored.sha256}


def test_a_file_that_lost_its_bytes_in_the_power_cut_is_written_anew(spool: Spool) -> None:
    log = IngestLog(spool)
    entry = append(log, os.urandom(10_000))
    entry.lay_out()
    spool.path(entry.stored.path).write_bytes(b"")
    abandon(log)
    assert replay(spool) == 1
    assert kept(spool) == {entry.stored.sha256}


def test_the_same_bytes_again_are_one_file(spool: Spool) -> None:
    log = IngestLog(spool)
    entries = [append(log, b"the same") for _ in range(3)]
    for entry in entries:
        entry.lay_out()
    assert len({entry.stored.path for entry in entries}) == len(list(spool.instances())) == 1
    assert log.close()


def test_many_at_once_share_their_syncs_and_fill_several_segments(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs, fdatasync = [], os.fdatasync
    monkeypatch.setattr(segments.os, "fdatasync", lambda descriptor: (syncs.append(1), fdatasync(descriptor)))
    log = IngestLog(spool, segment=500_000)
    digests = []

    def sender() -> None:
        for _ in range(12):
            entry = append(log, os.urandom(20_000))
            entry.lay_out()
            digests.append(entry.stored.sha256)

    threads = [threading.Thread(target=sender) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.close()
    assert kept(spool) == set(digests)
    assert len(digests) == 96
    assert len(syncs) < 96
    assert not logs(spool)


@pytest.mark.parametrize("point", ["log.before_write", "log.before_sync"])
def test_a_sync_or_write_that_fails_is_refused_and_not_tried_again(spool: Spool, point: str) -> None:
    log = IngestLog(spool)
    before = append(log, b"before")
    crashpoints.arm(f"{point}:1:eio")
    try:
        with pytest.raises(NoRoom):
            append(log, b"refused")
    finally:
        crashpoints.arm("")
    after = append(log, b"after")
    assert after.segment is not before.segment
    for entry in (before, after):
        entry.lay_out()
    assert log.close()
    assert kept(spool) == {before.stored.sha256, after.stored.sha256}


def broken(self: Syncer, names: Iterable[str]) -> None:
    """Be the sync of a disk that fails."""
    raise OSError(5, "broken")


def test_files_that_cannot_be_synced_stay_in_the_log(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    log = IngestLog(spool)
    entry = append(log, b"data")
    entry.lay_out()
    monkeypatch.setattr(Syncer, "__call__", broken)
    log.close()
    assert len(logs(spool)) == 1
    with pytest.raises(NoRoom):
        replay(spool)
    monkeypatch.undo()
    assert replay(spool) == 1
    assert kept(spool) == {entry.stored.sha256}


def test_files_are_synced_one_by_one_where_the_kernel_tells_no_failure(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncing, "_kernel", lambda: (4, 19))
    log = IngestLog(spool, longest_s=0.1)
    entry = append(log, b"data")
    entry.lay_out()
    assert log.close()
    assert not logs(spool)


def until_settled(log: IngestLog) -> None:
    """Wait until no record is left and the segment is ready to be used again."""
    for _ in range(200):
        if log._spare and not log._full and log._current is None:
            assert not ingestlog.logged(log.spool)
            return
        threading.Event().wait(0.1)
    raise AssertionError("a log still has its records")


def test_a_small_load_does_not_keep_a_segment_for_ever(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestlog, "PAUSE_S", 0.1)
    log = IngestLog(spool, longest_s=0.1)
    for _ in range(3):
        append(log, b"data").lay_out()
        until_settled(log)
    assert len(logs(spool)) == 1, "the same file is used again and again"
    assert log.close()
    assert not logs(spool)


def test_what_an_earlier_use_left_in_a_segment_is_no_record(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of one size lie at the same places, so old frames stand just where new ones would be looked for."""
    monkeypatch.setattr(ingestlog, "PAUSE_S", 0.1)
    log = IngestLog(spool, longest_s=0.1)
    old = [append(log, os.urandom(5_000)) for _ in range(4)]
    inode = os.fstat(old[0].piece.descriptor).st_ino
    for entry in old:
        entry.lay_out()
    until_settled(log)
    for entry in old:
        spool.path(entry.stored.path).unlink()  # as retention does
    new = append(log, os.urandom(5_000))
    assert os.fstat(new.piece.descriptor).st_ino == inode
    assert new.piece.start == old[0].piece.start
    abandon(log)
    assert replay(spool) == 1
    assert kept(spool) == {new.stored.sha256}


def test_a_segment_whose_sync_failed_is_not_used_again(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestlog, "PAUSE_S", 0.1)
    log = IngestLog(spool)
    crashpoints.arm("log.before_sync:1:eio")
    try:
        with pytest.raises(NoRoom):
            append(log, b"refused")
    finally:
        crashpoints.arm("")
    for _ in range(100):
        if not logs(spool):
            break
        threading.Event().wait(0.1)
    assert not logs(spool)
    assert log.close()


def record_of_an_earlier_version(data: bytes) -> bytes:
    lengths = (zlib.crc32(META), len(META), len(data), hashlib.sha256(data).digest())
    rest = struct.pack("<LLQ32s", *lengths)
    return b"WTR1" + struct.pack("<L", zlib.crc32(rest)) + rest + META + data


def test_a_log_of_an_earlier_version_is_laid_out(spool: Spool) -> None:
    datasets = [os.urandom(size) for size in (10, 5_000)]
    folder = spool.root / "log"
    folder.mkdir()
    records = b"".join(map(record_of_an_earlier_version, datasets))
    (folder / "0123456789abcdef0123456789abcdef.log").write_bytes(records + bytes(1000))
    assert replay(spool) == 2
    assert kept(spool) == {hashlib.sha256(data).hexdigest() for data in datasets}


def test_what_a_sender_drew_behind_the_last_record_is_no_record(spool: Spool) -> None:
    """Anybody can reckon a checksum of the earlier version; ours begins with the name of the file, a random one."""
    log = IngestLog(spool)
    entry = append(log, os.urandom(10_000))
    os.pwrite(entry.piece.descriptor, record_of_an_earlier_version(b"drawn"), entry.segment.end)
    abandon(log)
    assert replay(spool) == 1
    assert kept(spool) == {entry.stored.sha256}


def test_a_log_of_a_later_version_is_refused_and_left_as_it_is(spool: Spool) -> None:
    folder = spool.root / "log"
    folder.mkdir()
    (folder / "0123456789abcdef0123456789abcdef.log").write_bytes(b"WTR3" + os.urandom(1000))
    with pytest.raises(Permanent, match="later version"):
        replay(spool)
    assert len(logs(spool)) == 1


def test_a_log_that_gets_another_name_while_others_are_replayed_is_found(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = IngestLog(spool)
    entry = append(log, b"data")
    path = entry.segment.path
    monkeypatch.setattr(ingestlog, "_replay", renaming(path, ingestlog._replay, entry))
    abandon(log)
    assert replay(spool) == 1
    assert kept(spool) == {entry.stored.sha256}
    assert not logs(spool)


def renaming(path: Path, real: Callable[..., int], entry: Entry) -> Callable[..., int]:
    """Be a writer that begins the file at `path` again, with `entry`, and dies, all after the folder was listed."""

    def replay_after_that(*arguments: object) -> int:
        if path.exists():
            descriptor = os.open(path, os.O_RDWR)
            data = os.pread(descriptor, entry.piece.size, entry.piece.start)
            entry.segment.descriptor = descriptor
            entry.segment.use_again()
            head = entry.piece.header
            entry.segment.write(data[:head], data[head:], bytes.fromhex(entry.piece.sha256))
            os.close(descriptor)
        return real(*arguments)

    return replay_after_that


def test_a_small_load_fills_no_disk_while_the_database_is_away(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment is 64 MB and a descriptor; one every ten seconds would be 23 GB in an hour."""
    monkeypatch.setattr(ingestlog, "_LOOK_S", 0.01)
    log = IngestLog(spool, longest_s=0.01)
    entries = []
    for _ in range(20):
        entries.append(append(log, os.urandom(100)))  # nobody lays them out
        threading.Event().wait(0.05)
    assert len(logs(spool)) <= 2
    for entry in entries:
        entry.lay_out()
    assert log.close()


def test_a_log_takes_no_more_files_than_the_process_can_hold_open(spool: Spool) -> None:
    log = IngestLog(spool, segment=8192, most=3, longest_s=3600)
    entries = [append(log, os.urandom(1500)) for _ in range(6)]
    with pytest.raises(NoRoom, match="wait for the index"):
        append(log, os.urandom(1500))
    assert len(logs(spool)) == 3
    for entry in entries:
        entry.lay_out()
    log._settle(log._laid_out())
    entries.append(append(log, b"after"))
    entries[-1].lay_out()
    assert log.close()
    assert kept(spool) == {entry.stored.sha256 for entry in entries}


def test_a_replay_needs_few_descriptors_however_many_logs_there_are(spool: Spool) -> None:
    log = IngestLog(spool, segment=4096, most=200)
    entries = [append(log, os.urandom(2000)) for _ in range(150)]
    abandon(log)
    assert len(logs(spool)) in (150, 151), "one may have been made ready"
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    free = [number for number in range(10_000) if number not in taken]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[60], before[1]))
    try:
        assert replay(spool) == 150
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert kept(spool) == {entry.stored.sha256 for entry in entries}
    assert not logs(spool)


def test_a_replay_believes_no_file_whose_sync_may_have_failed(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed sync the kernel shows the right bytes from its memory, and calls the next sync a success."""

    log = IngestLog(spool)
    entry = append(log, b"data")
    entry.lay_out()
    with monkeypatch.context() as patch:
        patch.setattr(Syncer, "__call__", broken)
        log.close()
    with spool.path(entry.stored.path).open("rb") as never_on_disk:
        assert replay(spool) == 1
        assert os.fstat(never_on_disk.fileno()).st_nlink == 0
    assert kept(spool) == {entry.stored.sha256}


def test_large_instances_are_not_for_the_log(spool: Spool) -> None:
    log = IngestLog(spool)
    assert log.takes(ingestlog.LARGEST)
    assert not log.takes(ingestlog.LARGEST + 1)
    assert log.close()
