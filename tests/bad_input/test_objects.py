"""Objects that are wrong, each through both doors: the exact status, the exact bytes kept, nothing else kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pynetdicom.association import Association

from node.settings import IngestSettings, NodeSettings, Settings
from tests.bad_input.objects import Object, objects, unusable
from tests.bad_input.rows import ROWS
from tests.protocol.listening import associated, listening, store
from tests.protocol.stowing import HttpNode, part10, serving
from tests.unit.encoded import CT, EXPLICIT, dataset, image

OBJECTS = tuple(objects())
EXPECTED = {row.number: (row.dimse, row.http) for row in ROWS}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpNode]:
    with serving(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture(scope="module")
def assoc(node: HttpNode) -> Iterator[Association]:
    """One association for all of them: no object may cost it."""
    syntaxes = sorted({one.syntax for one in OBJECTS})
    with associated(node.node.port, [(CT, [syntax]) for syntax in syntaxes]) as established:
        yield established


def by_dimse(assoc: Association, one: Object) -> int | None:
    status = store(assoc, one.data, one.sop_class, one.sop_instance, one.syntax)
    assert assoc.is_established, "it cost the association"
    return status


def kept(node: HttpNode) -> set[Path]:
    return set(node.node.files())


@pytest.mark.parametrize("one", OBJECTS, ids=[f"B{one.row}-{one.name}" for one in OBJECTS])
def test_through_both_doors(node: HttpNode, assoc: Association, one: Object) -> None:
    dimse, http = EXPECTED[one.row]
    before, started = kept(node), time.monotonic()
    assert by_dimse(assoc, one) == int(dimse, 16)
    code, _, reason = http.partition(" / ")
    file = part10(one.data, sop_class=one.sop_class, sop_instance=one.sop_instance, syntax=one.syntax)
    assert node.store(file) == (int(code), [int(reason, 16)] if reason else [])
    assert time.monotonic() - started < 5
    new = kept(node) - before
    assert len(new) == (dimse == "0000")
    assert all(path.read_bytes().endswith(one.data) for path in new)


def test_the_node_still_serves_and_nothing_lies_about(node: HttpNode) -> None:
    assert node.node.echo() == 0x0000
    assert node.store(part10()) == (200, [])
    assert not node.node.left_over()


def test_strict_refuses_what_no_image_can_have(tmp_path: Path) -> None:
    settings = Settings(node=NodeSettings(port=0), ingest=IngestSettings(check="strict"))
    with listening(tmp_path, settings=settings) as node, associated(node.port, [(CT, [EXPLICIT])]) as assoc:
        assert {one.row for one in unusable()} == {23, 24, 25}
        for one in unusable():
            assert (one.name, by_dimse(assoc, one)) == (one.name, 0xA900)
        assert not list(node.files())
        for good in (dataset(), image(), image(frames="7"), image(4, 6, bits=8, samples=3, photometric="RGB")):
            assert by_dimse(assoc, Object(0, "good", good)) == 0x0000


def test_lenient_keeps_what_can_be_read(tmp_path: Path) -> None:
    settings = Settings(node=NodeSettings(port=0), ingest=IngestSettings(check="lenient"))
    zeros = {0x00080018: "1.02.3", 0x0020000D: "1.2.003", 0x0020000E: "1.2.3.01"}
    with listening(tmp_path, settings=settings) as node, associated(node.port, [(CT, [EXPLICIT])]) as assoc:
        assert store(assoc, dataset(uids=zeros), sop_instance="1.02.3") == 0x0000
        assert store(assoc, image(pixels=60)) == 0x0000
        assert store(assoc, image(pixels=46)) == 0xA900
        for uid in ("../../x", "1..2", "1." * 33, "1.a"):
            assert store(assoc, dataset(uids={0x0020000D: uid})) == 0xC000
        assert [row["study_instance_uid"] for row in node.instances()] == ["1.2.003", "1.2.3"]
