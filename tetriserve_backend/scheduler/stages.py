"""From "these steps on these ranks" to the segments that it takes, encode and decode included."""

from itertools import cycle

from tetriserve_backend.domain import Assignment, Placement, SegmentKind
from tetriserve_backend.scheduler.batch import Batch
from tetriserve_backend.scheduler.view import RequestView


def chain(request: RequestView, placement: Placement, num_steps: int) -> list[Assignment]:
    """`batch_chain` of one request."""
    return batch_chain(Batch((request,)), placement, num_steps)


def batch_chain(batch: Batch, placement: Placement, num_steps: int) -> list[Assignment]:
    """The segments that take a batch `num_steps` further on `placement`, in order.

    Encodes that are still due go in front, and decodes of members with no step left follow behind. Those of one
    request are on the placement's lead, so that nothing moves between ranks that holds still otherwise; of
    several, each has a rank of its own as far as there are ranks.

    Args:
        batch: as the view shows its members, ready for their next segment.
        placement: free ranks, as many as the degree of the steps.
        num_steps: at most the batch's shared steps: 0 when only the decode is due.
    """
    segments: list[Assignment] = []
    for member, rank in zip(batch.members, cycle(placement.ranks), strict=False):
        if member.next_kind is SegmentKind.ENCODE:
            segments.append(Assignment(SegmentKind.ENCODE, (member.request.request_id,), Placement((rank,))))
    if num_steps:
        segments.append(Assignment(SegmentKind.DENOISE, batch.request_ids, placement, num_steps))
    for member, rank in zip(batch.members, cycle(placement.ranks), strict=False):
        if num_steps == member.remaining_steps:
            segments.append(Assignment(SegmentKind.DECODE, (member.request.request_id,), Placement((rank,))))
    return segments
