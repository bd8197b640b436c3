"""The release of an association is evidence that its studies are whole; an abort, or a second sender, is not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pynetdicom.association import Association

from node.store import completion
from node.store.completion import Evidence
from tests.protocol import listening as wire
from tests.protocol.listening import Node, associate, listening
from tests.unit.encoded import CT, EXPLICIT, dataset

CONTEXTS = [(CT, [EXPLICIT])]


def store(assoc: Association, uid: str) -> None:
    """Send one instance of the study."""
    assert wire.store(assoc, dataset(uids={0x00080018: uid}), sop_instance=uid) == 0x0000


def known(node: Node) -> Evidence:
    """What is known of the one study there is."""
    time.sleep(0.3)  # a release is noted within the time in which a batch gathers
    (found,) = completion.waiting(node.db, time.time() + 60, 0, 3600)
    return found


@pytest.mark.parametrize(("end", "counts"), [("release", True), ("abort", False)])
def test_a_release_counts_and_an_abort_does_not(tmp_path: Path, end: str, counts: bool) -> None:
    with listening(tmp_path) as node:
        assoc = associate(node.port, CONTEXTS)
        store(assoc, "1.2.3.1")
        assert not known(node).is_released, "it is still open"
        getattr(assoc, end)()
        assert known(node).is_released is counts


def test_a_study_that_two_associations_bring_is_whole_when_the_last_is_released(tmp_path: Path) -> None:
    with listening(tmp_path) as node:
        first, second = associate(node.port, CONTEXTS), associate(node.port, CONTEXTS)
        store(first, "1.2.3.1")
        store(second, "1.2.3.2")
        first.release()
        assert not known(node).is_released
        second.release()
        assert known(node).is_released


def test_an_instance_after_the_release_takes_its_word_back(tmp_path: Path) -> None:
    with listening(tmp_path) as node:
        for number in (1, 2):
            assoc = associate(node.port, CONTEXTS)
            store(assoc, f"1.2.3.{number}")
            assert not known(node).is_released
            assoc.release()
            assert known(node).is_released
