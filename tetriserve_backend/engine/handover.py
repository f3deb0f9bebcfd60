"""Where the ranks of a segment find a request's tensors.

A source inside the new group broadcasts. When no rank of the new group holds the tensor, the host copy is
sent instead of a message from the old ranks: those may already be busy with other work, and a send would
make the new group wait for them.
"""

from collections.abc import Set

from tetriserve_backend.domain import Placement, SegmentKind
from tetriserve_backend.engine.commands import HandOver, Source, SourceKind
from tetriserve_backend.engine.state import RequestState

_CREATE = Source(SourceKind.CREATE)


def hand_over(state: RequestState, kind: SegmentKind, placement: Placement) -> HandOver:
    """The hand-over for sending a segment of `kind` to `placement`, before the state counts it as sent."""
    if kind is SegmentKind.ENCODE:
        return HandOver(conditioning=_CREATE, latent=_CREATE)
    latent = _CREATE if state.sent.steps == 0 else _source(state.latent_holders, placement)
    if kind is SegmentKind.DECODE:
        return HandOver(conditioning=_CREATE, latent=latent)
    return HandOver(conditioning=_source(state.conditioning_holders, placement), latent=latent)


def note_sent(state: RequestState, kind: SegmentKind, placement: Placement) -> None:
    """Record which ranks will hold what once this segment is over."""
    if kind is SegmentKind.ENCODE:
        state.conditioning_holders = set(placement.ranks)
    elif kind is SegmentKind.DENOISE:
        state.conditioning_holders.update(placement.ranks)
        # Only the ranks that took part have the newest latent; older copies elsewhere are stale.
        state.latent_holders = set(placement.ranks)


def _source(holders: Set[int], placement: Placement) -> Source:
    inside = [rank for rank in placement.ranks if rank in holders]
    if len(inside) == placement.sp_degree:
        return Source(SourceKind.RESIDENT)
    if inside:
        return Source(SourceKind.BROADCAST, inside[0])
    return Source(SourceKind.HOST, placement.lead)
