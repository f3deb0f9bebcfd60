"""Which aligned group each job gets, and the segments that come of it."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import or_

from tetriserve_backend.domain import Assignment, Placement, Plan
from tetriserve_backend.scheduler.batch import Batch
from tetriserve_backend.scheduler.costs import ShapeCosts
from tetriserve_backend.scheduler.stages import batch_chain, chain
from tetriserve_backend.scheduler.tetris.blocks import Block, Blocks, mask_of
from tetriserve_backend.scheduler.tetris.jobs import Job
from tetriserve_backend.scheduler.tetris.shapes import ShapeRows
from tetriserve_backend.scheduler.view import RequestView, SchedulerView
from tetriserve_backend.scheduler.waking import next_wake_s, wake_ahead_s


class Seating:
    """A plan in the making: hands out the idle ranks and keeps the segments, and when they end.

    Args:
        view: what is planned from.
        blocks: the groups of ranks that may work together.
        shapes: what requests cost.
        now_s: when the plan begins.
        expected_s: `expected_s` of the plan before.

    Attributes:
        ends_s: when the segments end.
        expected_s: by when each group that is kept clear must be whole; kept until nobody wants it.
    """

    def __init__(
        self,
        view: SchedulerView,
        blocks: Blocks,
        shapes: ShapeRows,
        now_s: float,
        expected_s: Mapping[Block, float],
    ) -> None:
        self._view, self._blocks, self._shapes, self._now_s = view, blocks, shapes, now_s
        self._expected_s = expected_s
        self.expected_s: dict[Block, float] = {}
        self._idle = mask_of(view.available_ranks(now_s))
        # Of ranks that work on; those that are given something by this plan are in neither.
        self._returns_s = {rank.rank: rank.free_at_s for rank in view.ranks if not self._idle >> rank.rank & 1}
        self._slowness = {rank.rank: rank.slowness for rank in view.ranks if rank.slowness != 1.0}
        self.ends_s: list[float] = []
        self._assignments: list[Assignment] = []

    @property
    def num_idle(self) -> int:
        """How many ranks nobody got; those that are kept clear do not count."""
        return self._idle.bit_count()

    def decode(self, request: RequestView) -> None:
        """A due decode gets one rank, if one is idle: one that has the latent, if that can be."""
        if not self._idle:
            return
        home = self._idle & _mask(request.placement)
        placement = Placement(((home & -home).bit_length() - 1,)) if home else self._seat(1, 0, 0)
        assert placement is not None, "a rank is idle"
        self._idle &= ~mask_of(placement.ranks)
        self._assignments += chain(request, placement, 0)
        self.ends_s.append(self._now_s + self._costs(request).decode_s)

    def denoise(self, jobs: Sequence[Job], batches: Sequence[Batch]) -> None:
        """Segments for all jobs, widest first.

        Where the idle ranks form no group of a job's size, one that soon will be idle is kept clear for it: with the
        narrow segments that end meanwhile started elsewhere, wide groups form again and again in a large world.
        Where none will be, the job runs on a narrower group.
        """
        jobs = sorted(jobs, key=lambda job: -job.sp_degree)
        last = [_mask(batches[job.index].placement) for job in jobs]
        behind = list(accumulate(reversed(last), or_, initial=0))
        for job, own in zip(jobs, last, strict=True):
            batch = batches[job.index]
            costs = self._shapes.costs(self._shapes.row(batch.request, batch.size))
            behind.pop()
            for degree in sorted((degree for degree in costs.step_s if degree <= job.sp_degree), reverse=True):
                placement = self._seat(degree, own, behind[-1])
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
        whole_at_s: dict[Block, float] = {}
        for block in self._blocks.of_size(sp_degree):
            busy = [rank for rank in block.placement.ranks if not self._idle >> rank & 1]
            if any(rank not in self._returns_s for rank in busy):
                continue
            # A rank that hangs is always said to come back soon.
            if self._expected_s.get(block, math.inf) < self._now_s:
                self.expected_s[block] = self._expected_s[block]
            else:
                whole_at_s[block] = max(self._returns_s[rank] for rank in busy)
        soonest = min(whole_at_s, key=lambda block: whole_at_s[block], default=None)
        if soonest is None or whole_at_s[soonest] > self._now_s + soon_s:
            return False
        self.expected_s[soonest] = self._expected_s.get(soonest, whole_at_s[soonest] + soon_s)
        self._idle &= ~soonest.mask
        for rank in soonest.placement.ranks:
            self._returns_s.pop(rank, None)
        return True

    def _seat(self, sp_degree: int, own: int, others: int) -> Placement | None:
        """A group of idle ranks, which are taken (`Blocks.choose`); None if there is none."""
        block = self._blocks.choose(sp_degree, self._idle, own, others, self._slowness)
        if block is None:
            return None
        self._idle &= ~block.mask
        return block.placement

    def _costs(self, request: RequestView) -> ShapeCosts:
        return self._shapes.costs(self._shapes.row(request.request))


def _mask(placement: Placement | None) -> int:
    return 0 if placement is None else mask_of(placement.ranks)
