"""What a STOW-RS request is answered with: the Store Instances Response Module (PS3.18 §10.5.3, Annex I.2)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from node.accept.precheck import StoreStatus
from node.uids import is_valid_uid

JSON, XML = "application/dicom+json", "application/dicom+xml"
"""Without a charset parameter: clients compare the media type as a whole."""


class FailureReason(IntEnum):
    """Failure Reasons (0008,1197) besides the statuses of C-STORE (PS3.18 Table I.2-2, PS3.7 Annex C)."""

    PROCESSING_FAILURE = 0x0110
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    TRANSFER_SYNTAX_NOT_SUPPORTED = 0xC122


@dataclass(frozen=True)
class Outcome:
    """What became of one part: `reason` is 0 when it is durable, else its Failure Reason."""

    reason: int
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    study_instance_uid: str = ""


def http_status(outcomes: Sequence[Outcome]) -> int:
    """Return 200 when all parts were stored, 202 when some were, 409 when none, 503 when none for want of room."""
    failed = [outcome.reason for outcome in outcomes if outcome.reason]
    if not failed:
        return 200
    if len(failed) < len(outcomes):
        return 202
    return 503 if all(reason == StoreStatus.OUT_OF_RESOURCES for reason in failed) else 409


def response(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """Return the module in the DICOM JSON Model (PS3.18 Annex F).

    Retrieve URL is of type 2 and empty: instances cannot be retrieved from this node. A part that does not say which
    instance it is goes into the Other Failures Sequence.
    """
    stored = [_item(outcome) for outcome in outcomes if not outcome.reason]
    failed = [outcome for outcome in outcomes if outcome.reason]
    named = [_item(outcome) for outcome in failed if _is_named(outcome)]
    nameless = [_reason(outcome) for outcome in failed if not _is_named(outcome)]
    ds: dict[str, dict[str, Any]] = {"00081190": {"vr": "UR"}}
    for tag, items in (("00081198", named), ("00081199", stored), ("0008119A", nameless)):
        if items:
            ds[tag] = {"vr": "SQ", "Value": items}
    return ds


def encode(ds: Mapping[str, Mapping[str, Any]], media_type: str) -> bytes:
    """Return the response in one of the two media types, `JSON` or `XML`."""
    if media_type == JSON:
        return json.dumps(ds, separators=(",", ":")).encode("ascii")
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<NativeDicomModel xml:space="preserve" '
        f'xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">{_attributes(ds)}</NativeDicomModel>\n'
    ).encode("ascii")


def acceptable(accept: str) -> str | None:
    """Return the media type that an Accept header asks for (RFC 9110 §12.5.1), None when it is neither of ours."""
    ranges = [part.split(";") for part in accept.lower().split(",") if part.strip()]
    wanted = {kind.strip() for kind, *parameters in ranges if "q=0" not in {p.strip() for p in parameters}}
    if not ranges or wanted & {JSON, "application/json", "application/*", "*/*"}:
        return JSON
    return XML if wanted & {XML, "application/xml", "text/xml"} else None


def _is_named(outcome: Outcome) -> bool:
    return is_valid_uid(outcome.sop_class_uid) and is_valid_uid(outcome.sop_instance_uid)


def _item(outcome: Outcome) -> dict[str, dict[str, Any]]:
    item: dict[str, dict[str, Any]] = {
        "00081150": {"vr": "UI", "Value": [outcome.sop_class_uid]},
        "00081155": {"vr": "UI", "Value": [outcome.sop_instance_uid]},
    }
    return item | (_reason(outcome) if outcome.reason else {"00081190": {"vr": "UR"}})


def _reason(outcome: Outcome) -> dict[str, dict[str, Any]]:
    return {"00081197": {"vr": "US", "Value": [int(outcome.reason)]}}


_KEYWORDS = {
    "00081150": "ReferencedSOPClassUID",
    "00081155": "ReferencedSOPInstanceUID",
    "00081190": "RetrieveURL",
    "00081197": "FailureReason",
    "00081198": "FailedSOPSequence",
    "00081199": "ReferencedSOPSequence",
    "0008119A": "OtherFailuresSequence",
}


def _attributes(ds: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the attributes in the Native DICOM Model (PS3.19 §A.1); all values are numbers and checked UIDs."""
    found = ""
    for tag, attribute in ds.items():
        inner = ""
        for number, value in enumerate(attribute.get("Value", ()), start=1):
            tagged = "Item" if attribute["vr"] == "SQ" else "Value"
            content = _attributes(value) if tagged == "Item" else str(value)
            inner += f'<{tagged} number="{number}">{content}</{tagged}>'
        found += (
            f'<DicomAttribute tag="{tag}" vr="{attribute["vr"]}" keyword="{_KEYWORDS[tag]}">{inner}</DicomAttribute>'
        )
    return found
