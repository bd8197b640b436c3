"""Who we are on the wire, and how the UIDs of our objects are derived.

All our UIDs are UUID-derived, `2.25.<integer>` (PS3.5 Annex B.2): the same key gives the same UID, so
whatever is computed twice is the same SOP Instance.
"""

from __future__ import annotations

import re
import uuid

NAMESPACE = uuid.UUID("5b0a3a5e-6d0c-5c55-9a39-8d1f5f0a7c11")
IMPLEMENTATION_CLASS_UID = f"2.25.{uuid.uuid5(NAMESPACE, 'implementation class').int}"
IMPLEMENTATION_VERSION_NAME = "WETREAD_0_1"

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")
_READABLE = re.compile(r"[0-9]+(\.[0-9]+)*")


def derive_uid(*key: str) -> str:
    """Return the UID that belongs to `key` (PS3.5 §B.2); at most 44 characters."""
    return f"2.25.{uuid.uuid5(NAMESPACE, '|'.join(key)).int}"


def derive_id(*key: str) -> str:
    """Return the UUID, as text, that belongs to `key`; used for rows of our own tables."""
    return str(uuid.uuid5(NAMESPACE, "|".join(key)))


def is_valid_uid(value: str) -> bool:
    """Say whether `value` is a UID by PS3.5 §9.1: digits and dots, no leading zeros, at most 64 characters."""
    return 0 < len(value) <= 64 and _UID.fullmatch(value) is not None


def is_readable_uid(value: str) -> bool:
    """Say whether `value` is a UID but for leading zeros in its components, which some equipment writes."""
    return 0 < len(value) <= 64 and _READABLE.fullmatch(value) is not None


INSTANCE_CREATOR_UID = derive_uid("node")
"""Instance Creator UID (0008,0014) of every object we make; an instance that carries it is our own result come back."""
