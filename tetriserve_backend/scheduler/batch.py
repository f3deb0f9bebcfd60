"""Requests that share their forward passes: of one model and resolution, at whatever steps they are."""

from dataclasses import dataclass

from tetriserve_backend.domain import Placement, Request, SegmentKind
from tetriserve_backend.scheduler.view import RequestView


@dataclass(frozen=True, slots=True)
class Batch:
    """One or more requests that are planned as one; one is the usual case, and the quick one.

    Members may join and leave between segments, so a segment is never longer than what the member with the
    fewest steps has left (`shared_steps`).
    """

    members: tuple[RequestView, ...]

    @property
    def size(self) -> int:
        """How many requests share each forward pass."""
        return len(self.members)

    @property
    def request(self) -> Request:
        """A request of the batch's model and resolution."""
        return self.members[0].request

    @property
    def request_ids(self) -> tuple[str, ...]:
        """The ids of the members, in their order."""
        return tuple(member.request.request_id for member in self.members)

    @property
    def remaining_steps(self) -> int:
        """Steps until the last member is done."""
        if len(self.members) == 1:
            return self.members[0].remaining_steps
        return max(member.remaining_steps for member in self.members)

    @property
    def shared_steps(self) -> int:
        """Steps until the first member is done."""
        return min(member.remaining_steps for member in self.members)

    @property
    def num_encodes(self) -> int:
        """How many members still need their encode."""
        return sum(member.next_kind is SegmentKind.ENCODE for member in self.members)

    @property
    def ready_at_s(self) -> float:
        """When the last member is expected to be ready."""
        if len(self.members) == 1:
            return self.members[0].ready_at_s
        return max(member.ready_at_s for member in self.members)

    @property
    def placement(self) -> Placement | None:
        """Where the first member that ran was last; None if none did."""
        return next((member.placement for member in self.members if member.placement is not None), None)
