"""The Presentation Contexts the node accepts, and its order of Transfer Syntaxes (PS3.7 §D.3.2, PS3.8 §9.3.2.2).

When a context offers several Transfer Syntaxes the acceptor picks the first of *its own* list that was offered, so
the order below decides how peers send. Whatever is listed is stored byte for byte; nothing is decoded here.
"""

from __future__ import annotations

from pydicom import uid
from pynetdicom import AllStoragePresentationContexts
from pynetdicom.presentation import PresentationContext

VERIFICATION = "1.2.840.10008.1.1"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model SOP Class (PS3.4 §J.3)."""
_MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"

TRANSFER_SYNTAXES: tuple[str, ...] = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.RLELossless,
    uid.JPEG2000,
    uid.HTJ2K,
    uid.JPEGLSNearLossless,
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
)
"""What a Storage context may use, best first: uncompressed, lossless, lossy.

Not Deflated Explicit VR Little Endian: half a megabyte inflates to half a gigabyte before a limit can act. Not
Explicit VR Big Endian: retired (PS3.5-2016b). Not video, JPIP or JPEG XL: nothing here reads them.
"""

UNCOMPRESSED: tuple[str, ...] = TRANSFER_SYNTAXES[:2]
"""The native Transfer Syntaxes; every other one of the list encapsulates Pixel Data (PS3.5 §A.4)."""


def storage_sop_classes() -> tuple[str, ...]:
    """Return the SOP Class UIDs accepted for C-STORE: every standard one but the Media Storage Directory."""
    known = (str(context.abstract_syntax) for context in AllStoragePresentationContexts)
    return tuple(sop_class for sop_class in known if sop_class != _MEDIA_STORAGE_DIRECTORY)


def supported() -> list[PresentationContext]:
    """Return the contexts of the listener: Verification, Storage and Storage Commitment with both roles.

    The PACS reports the outcome of Storage Commitment on an association that it opens, as SCP; so the roles are
    reversed there and both are offered (PS3.4 §J.3.3, PS3.7 §D.3.3.4).
    """
    contexts = [_context(VERIFICATION, UNCOMPRESSED)]
    contexts += [_context(sop_class, TRANSFER_SYNTAXES) for sop_class in storage_sop_classes()]
    commitment = _context(STORAGE_COMMITMENT, UNCOMPRESSED)
    commitment.scu_role = commitment.scp_role = True
    return [*contexts, commitment]


def _context(abstract_syntax: str, transfer_syntaxes: tuple[str, ...]) -> PresentationContext:
    context = PresentationContext()
    context.abstract_syntax = abstract_syntax
    context.transfer_syntax = list(transfer_syntaxes)
    return context
