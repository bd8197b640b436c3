"""The spool: bytes as received, durable before the answer, nothing half-written, nothing kept after an error."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from node.errors import NoRoom, Permanent
from node.store import spool as spool_module
from node.store.spool import Spool, Stored, dataset_sha256, digest

META = bytes.fromhex("020010005549") + (20).to_bytes(2, "little") + b"1.2.840.10008.1.2.1\0"
HEADER = bytes(128) + b"DICM\x02\x00\x00\x00UL\x04\x00" + len(META).to_bytes(4, "little") + META
DATASET = b"\x08\x00\x18\x00UI\x06\x001.2.3\x00" * 100


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "state" / "spool", refuse_below=0)


def files(spool: Spool) -> list[Path]:
    return [path for path in spool.root.rglob("*") if path.is_file()]


def keep(spool: Spool, dataset: bytes = DATASET) -> Stored:
    return spool.store_instance(HEADER, dataset, digest(dataset))


def test_an_instance_is_kept_byte_for_byte_under_its_digest(spool: Spool) -> None:
    stored = keep(spool)
    sha256 = hashlib.sha256(DATASET).hexdigest()
    assert stored.path == f"instances/{sha256[:2]}/{sha256}.dcm"
    assert (stored.sha256, stored.size) == (sha256, len(HEADER + DATASET))
    assert spool.path(stored.path).read_bytes() == HEADER + DATASET
    assert files(spool) == [spool.path(stored.path)]


def test_a_result_is_named_by_the_digest_of_the_file(spool: Spool) -> None:
    stored = spool.store_result(HEADER + DATASET)
    assert stored.sha256 == hashlib.sha256(HEADER + DATASET).hexdigest()
    assert stored.path.startswith("results/")
    assert spool.verify(stored.path, stored.sha256)


def test_the_same_again_gives_the_same_answer_and_leaves_the_file_alone(spool: Spool) -> None:
    first = keep(spool)
    inode = spool.path(first.path).stat().st_ino
    assert keep(spool) == first
    assert spool.path(first.path).stat().st_ino == inode


def test_a_damaged_copy_is_replaced_when_it_is_sent_again(spool: Spool) -> None:
    stored = keep(spool)
    spool.path(stored.path).write_bytes(HEADER + DATASET[:-1])
    assert not spool.verify(stored.path, stored.sha256)
    assert keep(spool) == stored
    assert spool.verify(stored.path, stored.sha256)


def test_folders_are_for_us_and_files_for_our_group(spool: Spool) -> None:
    stored = keep(spool)
    assert stat.S_IMODE(spool.path(stored.path).stat().st_mode) == 0o640
    folders = [spool.root, *(p for p in spool.root.rglob("*") if p.is_dir())]
    assert {stat.S_IMODE(p.stat().st_mode) for p in folders} == {0o700}


class Watched:
    """Records what is done to the file system, in order, and fails where told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, int] = {}
        for name in ("fsync", "write"):
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))
        rename = Path.rename
        monkeypatch.setattr(Path, "rename", lambda path, to: self._do("rename", rename, path, to, str(to)))

    def _wrap(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(descriptor: int, *rest: object) -> object:
            target = Path(f"/proc/self/fd/{descriptor}").readlink()
            return self._do(name, real, descriptor, *rest, target)

        return call

    def _do(self, name: str, real: Callable[..., object], *arguments: object) -> object:
        *arguments, target = arguments  # type: ignore[assignment]
        call = f"{name} {'file' if str(target).endswith(('.part', '.dcm')) else target}"
        self.calls.append(call)
        if call in self.fail:
            raise OSError(self.fail[call], os.strerror(self.fail[call]))
        return real(*arguments)


def test_every_step_is_made_durable_in_order(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = hashlib.sha256(DATASET).hexdigest()
    leaf = spool.root / "instances" / sha256[:2]
    watched = Watched(monkeypatch)
    keep(spool)
    assert watched.calls == ["write file", "write file", "fsync file", "rename file", f"fsync {leaf}"]


def test_the_first_folders_are_durable_when_the_spool_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    root = Spool(tmp_path / "state" / "spool", 0).root
    synced = [f"fsync {folder}" for folder in (root / "instances", root / "results", root, root.parent)]
    assert watched.calls == synced
    assert len(list((root / "instances").iterdir())) == len(list((root / "results").iterdir())) == 256


def test_a_copy_that_another_process_renamed_is_made_durable_too(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = keep(spool)
    leaf = spool.path(stored.path).parent
    watched = Watched(monkeypatch)
    keep(Spool(spool.root, 0))
    assert watched.calls[-1:] == [f"fsync {leaf}"]


@pytest.mark.parametrize(
    ("step", "code"),
    [
        ("write file", errno.ENOSPC),
        ("write file", errno.EDQUOT),
        ("fsync file", errno.EIO),
        ("fsync file", errno.ENOSPC),
        ("rename file", errno.EROFS),
        ("fsync {leaf}", errno.EIO),
    ],
)
def test_an_error_of_the_disk_keeps_nothing(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    sha256 = hashlib.sha256(DATASET).hexdigest()
    step = step.format(leaf=spool.root / "instances" / sha256[:2])
    watched = Watched(monkeypatch)
    watched.fail = {step: code}
    with pytest.raises(NoRoom, match="nothing was kept"):
        keep(spool)
    assert files(spool) == []
    assert watched.calls.count(step) == 1, "an fsync that failed is never tried again"
    watched.fail = {}
    stored = keep(spool)
    assert spool.verify(stored.path, stored.sha256)


def test_a_failing_disk_never_takes_an_acknowledged_file_away(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = keep(spool)
    watched = Watched(monkeypatch)
    watched.fail = {f"fsync {spool.path(stored.path).parent}": errno.EIO}
    with pytest.raises(NoRoom):
        keep(spool)
    assert spool.path(stored.path).read_bytes() == HEADER + DATASET


def test_an_interrupt_leaves_no_temporary_file(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_descriptor: int, _mode: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fchmod", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spool.store_result(b"x")
    assert files(spool) == []


def test_a_short_write_is_carried_on(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:100]))
    stored = keep(spool)
    assert spool.path(stored.path).read_bytes() == HEADER + DATASET


def test_the_watermark_refuses_before_the_disk_is_full(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    spool = Spool(tmp_path / "spool", refuse_below=free // 2)
    spool.check_room(1024)
    with pytest.raises(NoRoom, match="refuse_below"):
        spool.check_room(free)


def test_verify_reads_only_the_data_set_of_an_instance(spool: Spool) -> None:
    stored = keep(spool)
    assert dataset_sha256(spool.path(stored.path)) == stored.sha256
    assert not spool.verify(stored.path, "0" * 64)
    spool.path(stored.path).write_bytes(b"short")
    assert not spool.verify(stored.path, stored.sha256)
    spool.path(stored.path).unlink()
    assert not spool.verify(stored.path, stored.sha256)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.dcm",
        "/etc/passwd",
        "instances/ab/../../../etc/passwd",
        "tmp/abc.part",
        f"instances/00/{'a' * 64}.dcm",
        "",
    ],
)
def test_a_name_that_is_none_of_ours_is_refused(spool: Spool, name: str) -> None:
    with pytest.raises(Permanent, match="not the name"):
        spool.path(name)


def test_instances_are_listed_for_recovery_and_strays_are_not(spool: Spool) -> None:
    stored = sorted(keep(spool, DATASET + bytes([n])).path for n in range(5))
    spool.store_result(b"a result")
    (spool.path(stored[0]).parent / "stray.txt").write_text("x")
    assert [spool.relative(path) for path in spool.instances()] == stored
    assert len(list(spool.results())) == 1


def test_only_old_temporary_files_are_swept(spool: Spool) -> None:
    old, young = spool.root / "tmp" / "old.part", spool.root / "tmp" / "young.part"
    for path, age in ((old, 7200), (young, 10)):
        path.write_bytes(b"x")
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    assert spool.sweep_tmp(3600, now=lambda: 1_000_000.0) == 1
    assert files(spool) == [young]


def test_a_folder_that_was_removed_is_made_again(spool: Spool) -> None:
    stored = keep(spool)
    path = spool.path(stored.path)
    path.unlink()
    path.parent.rmdir()
    assert keep(spool) == stored
    assert path.is_file()


def test_a_spool_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NoRoom, match="cannot be made"):
        Spool(tmp_path / "file" / "spool", 0)


def test_what_comes_again_while_retention_has_it_in_hand_is_kept(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = keep(spool)
    final, aside, touch = spool.path(stored.path), spool._aside(stored.path), spool_module.touched

    def touched(path: Path) -> bool:
        monkeypatch.setattr(spool_module, "touched", touch)
        was_there = touch(path)
        final.rename(aside)  # as `set_aside` does, which looked before the touch
        return was_there

    monkeypatch.setattr(spool_module, "touched", touched)
    assert keep(spool) == stored
    spool.put_back(stored.path)
    assert spool.verify(stored.path, stored.sha256)
    assert files(spool) == [final]
