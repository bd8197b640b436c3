"""The report of Storage Commitment, on whichever association it comes (PS3.4 §J.3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import Dataset

_PROCESSING_FAILURE = 0x0110


@dataclass(frozen=True)
class Report:
    """An N-EVENT-REPORT (PS3.4 Table J.3-2): what is committed, and what failed with its Failure Reason (0008,1197).

    `transaction_uid` is empty where the report names none, which is then of nothing that was asked for.
    """

    transaction_uid: str
    stored: tuple[str, ...]
    failed: dict[str, int]


def read_report(information: Dataset) -> Report:
    """Return the Event Information of an N-EVENT-REPORT as a `Report`; what one item lacks harms no other."""
    stored = information.get("ReferencedSOPSequence") or ()
    failed = information.get("FailedSOPSequence") or ()
    return Report(
        str(information.get("TransactionUID") or ""),
        tuple(_uid(item) for item in stored),
        {_uid(item): int(item.get("FailureReason") or _PROCESSING_FAILURE) for item in failed},
    )


def _uid(item: Dataset) -> str:
    return str(item.get("ReferencedSOPInstanceUID") or "")
