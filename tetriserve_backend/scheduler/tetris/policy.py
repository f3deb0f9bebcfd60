"""`tetris`: on every event, plan everything that waits or runs, and start the first pieces of that plan."""

from collections.abc import Sequence

from tetriserve_backend.domain import Assignment, Placement, Plan, SegmentKind
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.costs import CostModel
from tetriserve_backend.scheduler.stages import chain
from tetriserve_backend.scheduler.tetris.jobs import Job, JobList
from tetriserve_backend.scheduler.tetris.planner import Planner, Situation
from tetriserve_backend.scheduler.tetris.seats import seat
from tetriserve_backend.scheduler.tetris.shapes import ShapeRows
from tetriserve_backend.scheduler.view import RequestView, SchedulerView
from tetriserve_backend.scheduler.waking import next_wake_s


class TetrisPolicy:
    """Plans the whole set anew whenever a segment ends or a request arrives.

    The plan knows when each busy rank comes back, takes requests by deadline, gives each the narrowest degrees
    that meet its deadline in what those before it leave free, and gives up a dear request where that saves
    others. Of the plan only the first pieces are run, short enough that the next plan comes soon. Ranks that
    the plan does not need until then work ahead, serve late requests, or widen what runs.

    Args:
        settings: the knobs; see `SchedulerSettings`.
        model: what shapes cost.
    """

    def __init__(self, settings: SchedulerSettings, model: CostModel) -> None:
        self._use_idle = settings.elastic_scale_up
        self._shapes = ShapeRows(model, settings.segment_seconds)
        self._planner = Planner(self._shapes, settings.plan_tries, settings.plan_candidates)

    @property
    def name(self) -> str:
        """The name by which configuration chooses this policy."""
        return "tetris"

    def plan(self, view: SchedulerView, now_s: float) -> Plan:
        """Decodes that are due, then the first pieces of a fresh plan."""
        idle = set(view.available_ranks(now_s))
        returns_s = [rank.free_at_s for rank in view.ranks if rank.rank not in idle]
        assignments: list[Assignment] = []
        ends_s: list[float] = []
        waiting: list[RequestView] = []
        for request in view.requests:
            if request.next_kind is not SegmentKind.DECODE:
                waiting.append(request)
            elif idle and view.is_ready(request, now_s):
                end_s = now_s + self._shapes.costs(self._shapes.row(request.request)).decode_s
                assignments += chain(request, self._decode_seat(view, request, idle), 0)
                ends_s.append(end_s)
        if waiting and idle:
            ready = [view.is_ready(request, now_s) for request in waiting]
            situation = Situation(now_s, waiting, ready, len(idle), [*returns_s, *ends_s])
            self._planner.plan(situation)
            jobs = JobList(self._shapes, self._planner, situation).fill(use_idle=self._use_idle)
            assignments += self._start(view, waiting, jobs, idle, now_s, ends_s)
        return Plan(tuple(assignments), next_wake_s(view, now_s, ends_s, with_ranks=bool(waiting)))

    def _start(
        self,
        view: SchedulerView,
        waiting: Sequence[RequestView],
        jobs: list[Job],
        idle: set[int],
        now_s: float,
        ends_s: list[float],
    ) -> list[Assignment]:
        """Seat the jobs, widest first, and make segments of them."""
        assignments: list[Assignment] = []
        jobs = sorted(jobs, key=lambda job: -job.sp_degree)
        for position, job in enumerate(jobs):
            request = waiting[job.index]
            costs = self._shapes.costs(self._shapes.row(request.request))
            elsewhere = [waiting[other.index].placement for other in jobs[position + 1 :]]
            for degree in sorted((d for d in costs.step_s if d <= job.sp_degree), reverse=True):
                placement = seat(view.world_size, idle, degree, request.placement, elsewhere)
                if placement is not None:
                    whole = degree == job.sp_degree
                    steps = (
                        job.num_steps
                        if whole
                        else self._shapes.segment_steps(costs.step_s[degree], request.remaining_steps)
                    )
                    assignments += chain(request, placement, steps)
                    ends_s.append(now_s + costs.chain_s(request, degree, steps))
                    break
        return assignments

    @staticmethod
    def _decode_seat(view: SchedulerView, request: RequestView, idle: set[int]) -> Placement:
        """One rank: one that has the latent, if that can be."""
        home = [rank for rank in (request.placement.ranks if request.placement else ()) if rank in idle]
        if home:
            idle.discard(home[0])
            return Placement((home[0],))
        placement = seat(view.world_size, idle, 1, None, ())
        assert placement is not None, "idle is not empty"
        return placement
