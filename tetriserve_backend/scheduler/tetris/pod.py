"""A few neighbouring ranks and what waits for them, planned as one."""

import math
from collections.abc import Sequence
from itertools import islice

from tetriserve_backend.domain import Plan, SegmentKind
from tetriserve_backend.scheduler.batch import Batch
from tetriserve_backend.scheduler.tetris.blocks import Block, Blocks
from tetriserve_backend.scheduler.tetris.gathering import Gatherer, join
from tetriserve_backend.scheduler.tetris.jobs import Job, JobList
from tetriserve_backend.scheduler.tetris.planner import Planner, Situation
from tetriserve_backend.scheduler.tetris.seats import Seating
from tetriserve_backend.scheduler.tetris.shapes import ShapeRows
from tetriserve_backend.scheduler.view import RequestView, SchedulerView
from tetriserve_backend.scheduler.waking import next_wake_s

_CROWD, _LARGE_CROWD = 4, 6
_FEWEST_CROWD_RANKS, _MOST_CROWD_RANKS = 8, 24
"""With more requests per rank than this, only one plan is made at a time, or one without batches: a decision must not
take longer than a millisecond on eight ranks, and than a few on many. Fewer than 8 ranks count as 8: there it is the
requests that take the time, and few ranks need batches sooner. More than 24 count as 24."""
_MOST_GONE = 64
"""Views that are gone are forgotten when there may be so many, and more than of those that are here."""
_TRIED_SINGLY = 48
"""Where all batches together are worse than none, they are tried one by one in plans of so many requests altogether."""


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
        gatherer: says who could share forward passes.
        use_idle: whether ranks that the plan leaves idle may work.

    Attributes:
        num_idle: ranks that the last plan left idle.
    """

    def __init__(
        self, ranks: range, shapes: ShapeRows, planner: Planner, gatherer: Gatherer, *, use_idle: bool
    ) -> None:
        self._blocks = Blocks(ranks)
        self._crowd_ranks = min(max(len(ranks), _FEWEST_CROWD_RANKS), _MOST_CROWD_RANKS)
        self._shapes, self._planner, self._gatherer, self._use_idle = shapes, planner, gatherer, use_idle
        self._expected_s: dict[Block, float] = {}
        # Each request in a batch of its own, by the identity of its view: the same batch for as long as the view is.
        self._alone: dict[int, Batch] = {}
        self.num_idle = len(ranks)
        self._unserved: list[RequestView] | None = []
        self._last: tuple[Situation, Sequence[Job], Sequence[bool]] | None = None

    def plan(self, view: SchedulerView, now_s: float) -> Plan:
        """Decodes that are due, then the first pieces of a fresh plan; `view` shows this pod alone."""
        if not view.available_ranks(now_s) and any(r.next_kind is not SegmentKind.DECODE for r in view.requests):
            self.num_idle = 0
            self._unserved = [r for r in view.requests if r.placement is None and not r.in_flight]
            return Plan((), next_wake_s(view, now_s, (), with_ranks=True))
        seating = Seating(view, self._blocks, self._shapes, now_s, self._expected_s)
        for request in view.requests:
            if request.next_kind is SegmentKind.DECODE and view.is_ready(request, now_s):
                seating.decode(request)
        situation = self._situation(view, now_s, seating.num_idle, seating.ends_s)
        anybody_waits = bool(situation.batches)
        jobs: list[Job] = []
        held_until_s = math.inf
        planned = bool(anybody_waits and seating.num_idle)
        if planned:
            situation = self._plan_in_batches(situation)
            job_list = JobList(self._shapes, self._planner, situation)
            jobs, held_until_s = job_list.fill(use_idle=self._use_idle), job_list.held_until_s
            seating.denoise(jobs, situation.batches)
            self._expected_s = seating.expected_s
        elif not anybody_waits:
            self._planner.forget(situation)
        self.num_idle = seating.num_idle
        self._last, self._unserved = (situation, jobs, self._planner.saved if planned else ()), None
        return seating.plan(anybody_waits=anybody_waits, not_after_s=held_until_s)

    def _plan_in_batches(self, alone: Situation) -> Situation:
        """Plan, with batches if that saves as many requests for fewer GPU-seconds, or more; what was planned.

        In a crowd there is no time for several plans: batches are planned unless they would wait for somebody, and
        none in a large one.
        """
        planner, crowd = self._planner, len(alone.batches) / self._crowd_ranks
        if crowd > _CROWD:
            planned = alone if crowd > _LARGE_CROWD else self._gatherer.gather(alone, may_wait=False)
            planner.plan(planned)
            return planned
        planner.plan(alone)
        gathered = self._gatherer.gather(alone, may_wait=all(planner.saved))
        if gathered is alone:
            return alone
        worth = self._worth(alone)
        planner.plan(gathered)
        return gathered if self._worth(gathered) > worth else self._plan_in_some_batches(alone, gathered, worth)

    def _plan_in_some_batches(self, alone: Situation, gathered: Situation, worth: tuple[int, float]) -> Situation:
        """Of the batches of `gathered` that may start now, plan those that are each worth it; what was planned.

        Under overload one batch of requests that cannot be saved together would else keep all others from forming.
        """
        best = alone
        if sum(batch.size > 1 for batch in gathered.batches) > 1:
            startable = (b for b, ready in zip(gathered.batches, gathered.ready, strict=True) if b.size > 1 and ready)
            for batch in islice(startable, _TRIED_SINGLY // len(alone.batches)):
                tried = join(best, batch)
                self._planner.plan(tried)
                worth_tried = self._worth(tried)
                if worth_tried > worth:
                    best, worth = tried, worth_tried
        self._planner.plan(best)
        return best

    def _worth(self, planned: Situation) -> tuple[int, float]:
        """How good the last plan is, which is of `planned`: requests saved, then GPU-seconds, the fewer the better."""
        return self._planner.num_saved, self._gatherer.overcounted_gpu_s(planned) - self._planner.gpu_seconds

    def forecast(self, view: SchedulerView, request_id: str, now_s: float) -> float | None:
        """When a request should have its image by a fresh plan of which nothing is run; None if that is not known."""
        idle = len(view.available_ranks(now_s))
        situation = self._situation(view, now_s, idle, ())
        for index, batch in enumerate(situation.batches):
            if batch.request.request_id == request_id:
                self._planner.plan(situation)
                finish_s = self._planner.finish_s(index, situation)
                return finish_s if finish_s < math.inf else None
        return None

    def _situation(self, view: SchedulerView, now_s: float, idle: int, decodes_end_s: Sequence[float]) -> Situation:
        waiting = [request for request in view.requests if request.next_kind is not SegmentKind.DECODE]
        horizon_s = now_s + view.lead_s
        ready = [request.ready_at_s <= horizon_s for request in waiting]
        batches = [self._alone.get(id(request)) or self._put_alone(request) for request in waiting]
        if len(self._alone) > _MOST_GONE + 2 * len(batches):
            self._alone = {id(batch.members[0]): batch for batch in batches}
        returns_s = [rank.free_at_s for rank in view.ranks if rank.free_at_s > horizon_s]
        # What is sent ahead begins when the last of the available ranks is free.
        start_s = max([now_s, *(rank.free_at_s for rank in view.ranks if rank.free_at_s <= horizon_s)])
        return Situation(start_s, batches, ready, idle, [*returns_s, *decodes_end_s])

    def _put_alone(self, request: RequestView) -> Batch:
        batch = self._alone[id(request)] = Batch((request,))
        return batch

    @property
    def unserved(self) -> list[RequestView]:
        """Requests that waited for their first segment and got none in the last plan, those that will be late first.

        Found when first asked for, since only worlds of several pods ask; whoever takes one away removes it.
        """
        if self._unserved is None:
            self._unserved = self._find_unserved()
        return self._unserved

    def _find_unserved(self) -> list[RequestView]:
        if self._last is None:
            return []
        situation, jobs, saved = self._last
        served = {job.index for job in jobs}
        left = [i for i, b in enumerate(situation.batches) if i not in served]
        if saved:
            left.sort(key=lambda i: saved[i])
        members = (member for i in left for member in situation.batches[i].members)
        return [member for member in members if member.placement is None and not member.in_flight]
