"""The next round before it begins: whom it would leave on which ranks, by what is known."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tetriserve_backend.domain import Assignment, Placement, SegmentKind
from tetriserve_backend.scheduler.candidates import RoundWindow
from tetriserve_backend.scheduler.costs import ShapeCosts
from tetriserve_backend.scheduler.round_plan import RoundPlanner
from tetriserve_backend.scheduler.view import RequestView, SchedulerView

_FEW = 16
"""Of so many requests, one that is new is not worth another plan."""


@dataclass(frozen=True, slots=True)
class Seat:
    """What a request has in the next round: its ranks, the requests that share its steps, and what these cost."""

    placement: Placement
    request_ids: tuple[str, ...]
    costs: ShapeCosts


class Foresight:
    """Plans the next round when it is first asked in a round, and again when requests have come since.

    What runs until then is counted as done, so the segments that end meanwhile change nothing. Among many requests a
    single new one changes little: then it waits for more of them.

    Args:
        planner: of the rounds.
    """

    def __init__(self, planner: RoundPlanner) -> None:
        self._planner = planner
        self._known: set[str] = set()
        self._seats: dict[str, Seat] = {}

    def forget(self) -> None:
        """A round has begun, or what shapes cost has changed."""
        self._known.clear()
        self._seats.clear()

    def seats(
        self, view: SchedulerView, sent: Sequence[Assignment], window: RoundWindow, *, until_s: float
    ) -> Mapping[str, Seat]:
        """By request, what it has in the next round; of those that have nothing there is none.

        Args:
            view: all requests and ranks.
            sent: what has been planned just now.
            window: the next round.
            until_s: ranks and requests that are free later are left out of it.
        """
        present = {request.request.request_id for request in view.requests}
        if len(present - self._known) > len(self._known) // _FEW:
            self._known |= present
            requests = _as_sent((request for request in view.requests if request.ready_at_s <= until_s), sent)
            ranks = {rank.rank for rank in view.ranks if rank.free_at_s <= until_s}
            self._seats = {
                request_id: Seat(one.placement, one.share.batch.request_ids, one.share.costs)
                for one in self._planner.divide(requests, ranks, view.world_size, window)
                for request_id in one.share.batch.request_ids
            }
        return self._seats


def _as_sent(requests: Iterable[RequestView], assignments: Sequence[Assignment]) -> list[RequestView]:
    """The requests as they are when this is done; those that then need no more steps are left out."""
    num_steps: dict[str, int] = {}
    for entry in assignments:
        for request_id in entry.request_ids:
            num_steps[request_id] = num_steps.get(request_id, 0) + entry.num_steps
    views = []
    for view in requests:
        request_id, then = view.request.request_id, view
        if request_id in num_steps:
            left = view.remaining_steps - num_steps[request_id]
            then = replace(view, next_kind=SegmentKind.DENOISE, remaining_steps=left)
        if then.remaining_steps and then.next_kind is not SegmentKind.DECODE:
            views.append(then)
    return views
