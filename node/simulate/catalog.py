"""What the simulated PACS answers to C-FIND, C-MOVE and C-GET: Study Root, by unique keys (PS3.4 §C.6)."""

from __future__ import annotations

from collections.abc import Iterator

import pydicom
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pynetdicom import build_context
from pynetdicom.presentation import PresentationContext

from node.simulate.archive import Archive

UNIQUE = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}
_COUNTS = {"STUDY": "NumberOfStudyRelatedInstances", "SERIES": "NumberOfSeriesRelatedInstances"}


def find(archive: Archive, query: Dataset, counts: bool) -> list[Dataset]:
    """Return one match per entity of the query's level; `counts`: whether it says how many instances each has."""
    level = str(query.get("QueryRetrieveLevel", "IMAGE"))
    answers: dict[str, Dataset] = {}
    numbers: dict[str, int] = {}
    for ds in _matching(archive, query):
        uid = str(ds.get(UNIQUE[level], ""))
        numbers[uid] = numbers.get(uid, 0) + 1
        answers.setdefault(uid, _answer(ds, level))
    if counts and level in _COUNTS:
        for uid, answer in answers.items():
            setattr(answer, _COUNTS[level], str(numbers[uid]))
    return list(answers.values())


def select(archive: Archive, identifier: Dataset) -> list[Dataset]:
    """Return the whole instances that a C-MOVE or C-GET names."""
    wanted = {str(ds.SOPInstanceUID) for ds in _matching(archive, identifier)}
    return [pydicom.dcmread(held.path) for uid, held in list(archive.held.items()) if uid in wanted]


def contexts(archive: Archive, identifier: Dataset) -> list[PresentationContext]:
    """Return what an association must offer that sends them, each with its own Transfer Syntax."""
    found = {(str(ds.SOPClassUID), str(ds.file_meta.TransferSyntaxUID)) for ds in select(archive, identifier)}
    return [build_context(sop_class, syntax) for sop_class, syntax in sorted(found)]


def _matching(archive: Archive, query: Dataset) -> Iterator[Dataset]:
    for ds in archive.headers():
        if all(_meets(query.get(key), str(ds.get(key, ""))) for key in UNIQUE.values()):
            yield ds


def _meets(wanted: object, value: str) -> bool:
    """Say whether a UID matches: universal, single value or list of UIDs (PS3.4 §C.2.2.2)."""
    if isinstance(wanted, MultiValue | list):
        return value in {str(one) for one in wanted}
    return not wanted or str(wanted) == value


def _answer(ds: Dataset, level: str) -> Dataset:
    answer = Dataset()
    answer.QueryRetrieveLevel = level
    for name, key in UNIQUE.items():
        setattr(answer, key, ds.get(key, ""))
        if name == level:
            break
    if level == "IMAGE":
        answer.SOPClassUID = ds.get("SOPClassUID", "")
    return answer
