"""Which aligned group each job gets, and the segments that come of it."""

import math
from collections.abc import Iterable, Mapping, Sequence

from tetriserve_backend.domain import Assignment, Placement, Plan
from tetriserve_backend.scheduler.batch import Batch
from tetriserve_backend.scheduler.costs import ShapeCosts
from tetriserve_backend.scheduler.groups import Ranks, aligned_groups
from tetriserve_backend.scheduler.stages import batch_chain, chain
from tetriserve_backend.scheduler.tetris.jobs import Job
from tetriserve_backend.scheduler.tetris.shapes import ShapeRows
from tetriserve_backend.scheduler.view import RequestView, SchedulerView
from tetriserve_backend.scheduler.waking import next_wake_s, wake_ahead_s


def groups_of(ranks: range) -> dict[int, tuple[Ranks, ...]]:
    """The aligned groups inside consecutive ranks that begin at a multiple of the largest size, by size."""
    return {
        size: tuple(tuple(rank + ranks.start for rank in group) for group in groups)
        for size, groups in aligned_groups(len(ranks)).items()
    }


def seat(
    groups: Mapping[int, Sequence[Ranks]],
    idle: set[int],
    sp_degree: int,
    previous: Placement | None,
    elsewhere: Iterable[Placement | None],
    *,
    slowness: Mapping[int, float],
) -> Placement | None:
    """A group of `sp_degree` idle ranks, which are taken out of `idle`; None if there is none.

    First choice is a group without slow ranks, then one that breaks up the least: a wide request must not wait
    because a narrow one sits in the middle of an empty block. Then where the request was, then where no other
    request was.
    """
    whole = [group for group in groups.get(sp_degree, ()) if idle.issuperset(group)]
    if not whole:
        return None
    own = set(previous.ranks) if previous is not None else set()
    others = {rank for placement in elsewhere if placement is not None for rank in placement.ranks}

    def badness(group: Ranks) -> tuple[float, int, int, int, int]:
        return (
            max(slowness[rank] for rank in group),
            _blocks_broken(groups, group, idle),
            -len(own.intersection(group)),
            len(others.intersection(group)),
            group[0],
        )

    chosen = min(whole, key=badness)
    idle.difference_update(chosen)
    return Placement(chosen)


def _blocks_broken(groups: Mapping[int, Sequence[Ranks]], group: Ranks, idle: set[int]) -> int:
    """Whole idle blocks around `group` that it would break up; the smaller ones count more."""
    broken = 0
    for size in groups:
        if size > len(group):
            start = group[0] // size * size
            broken = 2 * broken + idle.issuperset(range(start, start + size))
    return broken


class Seating:
    """A plan in the making: hands out the idle ranks and keeps the segments, and when they end.

    Args:
        view: what is planned from.
        groups: the groups of ranks that may work together, by size.
        shapes: what requests cost.
        now_s: when the plan begins.
        expected_s: `expected_s` of the plan before.

    Attributes:
        idle: ranks that nobody got and that are not kept clear.
        ends_s: when the segments end.
        expected_s: by when each group that is kept clear must be whole; kept until nobody wants it.
    """

    def __init__(
        self,
        view: SchedulerView,
        groups: Mapping[int, Sequence[Ranks]],
        shapes: ShapeRows,
        now_s: float,
        expected_s: Mapping[Ranks, float],
    ) -> None:
        self._view, self._groups, self._shapes, self._now_s = view, groups, shapes, now_s
        self._expected_s = expected_s
        self.expected_s: dict[Ranks, float] = {}
        self.idle = set(view.available_ranks(now_s))
        # Of ranks that work on; those that are given something by this plan are in neither.
        self._returns_s = {rank.rank: rank.free_at_s for rank in view.ranks if rank.rank not in self.idle}
        self._slowness = {rank.rank: rank.slowness for rank in view.ranks}
        self.ends_s: list[float] = []
        self._assignments: list[Assignment] = []

    def decode(self, request: RequestView) -> None:
        """A due decode gets one rank, if one is idle: one that has the latent, if that can be."""
        if not self.idle:
            return
        home = [rank for rank in (request.placement.ranks if request.placement else ()) if rank in self.idle]
        placement = (
            Placement((home[0],)) if home else seat(self._groups, self.idle, 1, None, (), slowness=self._slowness)
        )
        assert placement is not None, "a rank is idle"
        self.idle.difference_update(placement.ranks)
        self._assignments += chain(request, placement, 0)
        self.ends_s.append(self._now_s + self._costs(request).decode_s)

    def denoise(self, jobs: Sequence[Job], batches: Sequence[Batch]) -> None:
        """Segments for all jobs, widest first.

        Where the idle ranks form no group of a job's size, one that soon will be idle is kept clear for it: with the
        narrow segments that end meanwhile started elsewhere, wide groups form again and again in a large world.
        Where none will be, the job runs on a narrower group.
        """
        jobs = sorted(jobs, key=lambda job: -job.sp_degree)
        for position, job in enumerate(jobs):
            batch = batches[job.index]
            costs = self._shapes.costs(self._shapes.row(batch.request, batch.size))
            elsewhere = [batches[other.index].placement for other in jobs[position + 1 :]]
            for degree in sorted((degree for degree in costs.step_s if degree <= job.sp_degree), reverse=True):
                placement = seat(self._groups, self.idle, degree, batch.placement, elsewhere, slowness=self._slowness)
                if placement is None:
                    if degree == job.sp_degree and self._keep_clear(degree):
                        break
                    continue
                steps = job.num_steps
                if degree < job.sp_degree:
                    steps = self._shapes.segment_steps(costs, degree, batch.shared_steps)
                self._assignments += batch_chain(batch, placement, steps)
                self.ends_s.append(self._now_s + costs.batch_chain_s(batch, degree, steps))
                break

    def plan(self, *, anybody_waits: bool, not_after_s: float) -> Plan:
        """The segments, and when to plan again: when work ends, and for work from `not_after_s` on."""
        wake_at_s = next_wake_s(self._view, self._now_s, self.ends_s, with_ranks=anybody_waits)
        if not_after_s < math.inf:
            wake_at_s = min(wake_at_s or math.inf, wake_ahead_s(self._view, self._now_s, not_after_s))
        return Plan(tuple(self._assignments), wake_at_s)

    def _keep_clear(self, sp_degree: int) -> bool:
        """Give no idle rank of the group that is whole the soonest to anybody; False if none will be soon enough."""
        soon_s = self._shapes.longest_usual_s
        whole_at_s: dict[Ranks, float] = {}
        for group in self._groups.get(sp_degree, ()):
            busy = [rank for rank in group if rank not in self.idle]
            if any(rank not in self._returns_s for rank in busy):
                continue
            # A rank that hangs is always said to come back soon.
            if self._expected_s.get(group, math.inf) < self._now_s:
                self.expected_s[group] = self._expected_s[group]
            else:
                whole_at_s[group] = max(self._returns_s[rank] for rank in busy)
        group = min(whole_at_s, key=lambda group: (whole_at_s[group], group), default=())
        if not group or whole_at_s[group] > self._now_s + soon_s:
            return False
        self.expected_s[group] = self._expected_s.get(group, whole_at_s[group] + soon_s)
        self.idle.difference_update(group)
        for rank in group:
            self._returns_s.pop(rank, None)
        return True

    def _costs(self, request: RequestView) -> ShapeCosts:
        return self._shapes.costs(self._shapes.row(request.request))
