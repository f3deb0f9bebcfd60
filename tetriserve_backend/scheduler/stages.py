"""From "these steps on these ranks" to the segments that it takes, encode and decode included."""

from tetriserve_backend.domain import Assignment, Placement, SegmentKind
from tetriserve_backend.scheduler.view import RequestView


def chain(request: RequestView, placement: Placement, num_steps: int) -> list[Assignment]:
    """The segments that take `request` `num_steps` further on `placement`, in order.

    An encode that is still due goes in front, and once no step is left the decode follows behind; both on
    the placement's lead, so that nothing moves between ranks that holds still otherwise.

    Args:
        request: as the view shows it, ready for its next segment.
        placement: free ranks, as many as the degree of the steps.
        num_steps: at most the request's remaining steps: 0 when only the decode is due.
    """
    ids, lead = (request.request.request_id,), Placement((placement.lead,))
    segments: list[Assignment] = []
    if request.next_kind is SegmentKind.ENCODE:
        segments.append(Assignment(SegmentKind.ENCODE, ids, lead))
    if num_steps:
        segments.append(Assignment(SegmentKind.DENOISE, ids, placement, num_steps))
    if num_steps == request.remaining_steps:
        segments.append(Assignment(SegmentKind.DECODE, ids, lead))
    return segments
