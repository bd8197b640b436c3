"""What a rule of the gate looks at, and how it finds its way about in a Data Set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from pydicom import Dataset

from node.codes import Code
from node.findings import Reading, Segmentation, Volume
from workers.report.context import Context, EvidenceDocument


@dataclass(frozen=True)
class Case:
    """One set of Evidence Documents with everything it was made from; `headers` in the order of the sources."""

    documents: tuple[EvidenceDocument, ...]
    reading: Reading
    volumes: tuple[Volume, ...]
    context: Context
    headers: tuple[Dataset, ...]

    def of_kind(self, kind: str) -> list[Dataset]:
        """Return the Data Sets of one kind: SR, SEG, SC or SALIENCY."""
        return [document.dataset for document in self.documents if document.kind == kind]

    @cached_property
    def by_uid(self) -> dict[str, Dataset]:
        """Source headers by SOP Instance UID."""
        return {str(header.SOPInstanceUID): header for header in self.headers}

    def segmentations(self) -> list[tuple[Segmentation, Volume]]:
        """Return the segmentations that must have a SEG, with their volumes."""
        found = [s for s in self.reading.segmentations if not all(segment.is_empty for segment in s.segments)]
        return [(s, next(v for v in self.volumes if s.sources[0] in v.sources)) for s in found]


@dataclass(frozen=True)
class Rule:
    """One line of the checklist; `check` yields what breaks it."""

    name: str
    statement: str
    check: Callable[[Case], Iterator[str]]


def code_of(item: Dataset, keyword: str = "ConceptNameCodeSequence") -> Code | None:
    """Return the code in the first item of a code sequence, if there is one."""
    sequence = item.get(keyword)
    if not sequence:
        return None
    first = sequence[0]
    return Code(*(str(first.get(k, "")) for k in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")))


def walk(item: Dataset) -> Iterator[Dataset]:
    """Yield a content item and all below it, in document order."""
    yield item
    for child in item.get("ContentSequence") or ():
        yield from walk(child)


def named(item: Dataset, code: Code) -> list[Dataset]:
    """Return the content items below `item` whose concept name is `code` (value and scheme)."""
    return [i for i in walk(item) if (c := code_of(i)) and (c.value, c.scheme) == (code.value, code.scheme)]


def references(item: Dataset) -> Iterator[Dataset]:
    """Yield every item of a Referenced SOP Sequence in the content tree below `item`."""
    for child in walk(item):
        yield from child.get("ReferencedSOPSequence") or ()
