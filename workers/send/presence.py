"""Does the destination hold an instance? C-FIND at the IMAGE level (PS3.4 §C.4.1), for when 0111H leaves it open."""

from __future__ import annotations

from itertools import islice

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from node.calling import LOST
from workers.send.cstore import Answer, Peer, Timeouts, associate, entity_for, release

_PENDING = (0xFF00, 0xFF01)
_MOST_MATCHES = 10_000
"""More than a series has; one that never ends its answer would be listened to for ever."""


def holds(
    peer: Peer, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str, timeouts: Timeouts
) -> bool | None:
    """Say whether the peer lists the instance; None when it cannot be asked or does not answer."""
    entity = entity_for(peer, timeouts)
    entity.add_requested_context(
        StudyRootQueryRetrieveInformationModelFind, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
    )
    opened = associate(entity, peer, timeouts.write)
    if isinstance(opened, Answer):
        return None
    query = _query(study_instance_uid, series_instance_uid, sop_instance_uid)
    found = False
    try:
        answers = opened.assoc.send_c_find(query, StudyRootQueryRetrieveInformationModelFind)
        for status, match in islice(answers, _MOST_MATCHES):
            if status.get("Status") in _PENDING:
                found = found or (match is not None and match.get("SOPInstanceUID") == sop_instance_uid)
            elif status.get("Status") == 0x0000:
                return found
    except LOST:
        return None
    finally:
        release(opened.assoc)
    return None


def _query(study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str) -> Dataset:
    ds = Dataset()
    ds.QueryRetrieveLevel = "IMAGE"
    ds.StudyInstanceUID = study_instance_uid
    ds.SeriesInstanceUID = series_instance_uid
    ds.SOPInstanceUID = sop_instance_uid
    return ds
