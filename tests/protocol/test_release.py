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
from tests.protocol.stowing import FORM, multipart, part10, raw, request, serving, status_of
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


@pytest.mark.parametrize(("is_whole", "counts"), [(True, True), (False, False)])
def test_the_end_of_a_stow_request_counts_as_a_release_and_a_request_cut_off_does_not(
    tmp_path: Path, is_whole: bool, counts: bool
) -> None:
    files = [part10(dataset(uids={0x00080018: uid}), sop_instance=uid) for uid in ("1.2.3.1", "1.2.3.2")]
    body = multipart(*files) if is_whole else multipart(*files)[:-300]
    with serving(tmp_path) as door:
        said = raw(door.port, request(f"Content-Type: {FORM}", f"Content-Length: {len(body)}", body=body))
        assert status_of(said) == (200 if is_whole else 400)
        assert len(door.node.instances()) == (2 if is_whole else 1), "what was whole in it is kept"
        assert known(door.node).is_released is counts


def test_a_stow_request_is_no_end_while_an_association_still_brings_the_study(tmp_path: Path) -> None:
    with serving(tmp_path) as door:
        assoc = associate(door.node.port, CONTEXTS)
        store(assoc, "1.2.3.1")
        assert door.store(part10(dataset(uids={0x00080018: "1.2.3.2"}), sop_instance="1.2.3.2"))[0] == 200
        assert not known(door.node).is_released
        assoc.release()
        assert known(door.node).is_released
