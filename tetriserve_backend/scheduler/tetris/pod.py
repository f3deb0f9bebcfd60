"""A few neighbouring ranks and what waits for them, planned as one."""

from tetriserve_backend.domain import Plan, SegmentKind
from tetriserve_backend.scheduler.tetris.jobs import JobList
from tetriserve_backend.scheduler.tetris.planner import Planner, Situation
from tetriserve_backend.scheduler.tetris.seats import Seating, groups_of
from tetriserve_backend.scheduler.tetris.shapes import ShapeRows
from tetriserve_backend.scheduler.view import SchedulerView


class Pod:
    """Plans its requests anew at every call; a call is due whenever one of its segments ends or a request arrives.

    The plan knows when each busy rank comes back, takes requests by deadline, gives each the narrowest degrees
    that meet its deadline in what those before it leave free, and gives up a dear request where that saves
    others. Of the plan only the first pieces are run, short enough that the next plan comes soon. Ranks that
    the plan does not need until then work ahead, serve late requests, or widen what runs.

    Args:
        ranks: consecutive, from a multiple of their number.
        shapes: what requests cost.
        planner: plans; what it tells is valid until the next call.
        use_idle: whether ranks that the plan leaves idle may work.
    """

    def __init__(self, ranks: range, shapes: ShapeRows, planner: Planner, *, use_idle: bool) -> None:
        self._groups = groups_of(ranks)
        self._shapes, self._planner, self._use_idle = shapes, planner, use_idle

    def plan(self, view: SchedulerView, now_s: float) -> Plan:
        """Decodes that are due, then the first pieces of a fresh plan; `view` shows this pod alone."""
        seating = Seating(view, self._groups, self._shapes, now_s)
        returns_s = [rank.free_at_s for rank in view.ranks if rank.rank not in seating.idle]
        for request in view.requests:
            if request.next_kind is SegmentKind.DECODE and view.is_ready(request, now_s):
                seating.decode(request)
        waiting = [request for request in view.requests if request.next_kind is not SegmentKind.DECODE]
        if waiting and seating.idle:
            ready = [view.is_ready(request, now_s) for request in waiting]
            situation = Situation(now_s, waiting, ready, len(seating.idle), [*returns_s, *seating.ends_s])
            self._planner.plan(situation)
            jobs = JobList(self._shapes, self._planner, situation).fill(use_idle=self._use_idle)
            seating.denoise(jobs, waiting)
        return seating.plan(anybody_waits=bool(waiting))
