"""What to run now: the first pieces of the plan, and whatever the ranks that it leaves idle can do meanwhile."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tetriserve_backend.scheduler.costs import ShapeCosts
from tetriserve_backend.scheduler.tetris.arrays import Started
from tetriserve_backend.scheduler.tetris.planner import Planner, Situation
from tetriserve_backend.scheduler.tetris.shapes import ShapeRows

_OVERRUN_S = 1e-3
"""What ends this little behind its piece of the plan is in time."""


@dataclass(slots=True)
class Job:
    """A segment that starts now; owned and widened by one planning only."""

    index: int
    sp_degree: int
    num_steps: int


class JobList:
    """Divides the idle ranks.

    Args:
        shapes: what requests cost.
        planner: has planned `situation`.

    Attributes:
        held_until_s: when ranks that are held idle for the next piece of the plan are due; inf if none are.
    """

    def __init__(self, shapes: ShapeRows, planner: Planner, situation: Situation) -> None:
        self._shapes, self._planner, self._situation = shapes, planner, situation
        self._idle = situation.idle
        self._jobs: dict[int, Job] = {}
        self.held_until_s = math.inf

    def fill(self, *, use_idle: bool) -> list[Job]:
        """The jobs, in the order in which they were given ranks."""
        self._start_planned()
        if self._idle:
            self._fill_idle(use_idle=use_idle)
        return list(self._jobs.values())

    def _fill_idle(self, *, use_idle: bool) -> None:
        saved, ready = self._planner.saved, self._situation.ready
        waiting = [index for index in self._planner.order if ready[index] and index not in self._jobs]
        if use_idle:
            self._start_early([index for index in waiting if saved[index]])
        if self._idle:
            self._start_late([index for index in waiting if not saved[index]])
        if use_idle:
            self._widen()

    def _start_planned(self) -> None:
        planner, situation = self._planner, self._situation
        for index in planner.order:
            degree = planner.first_degree[index]
            if degree and situation.ready[index] and degree <= self._idle:
                self._jobs[index] = Job(index, degree, self._steps(index, degree))
                self._idle -= degree
        self._shorten_what_outlasts_its_piece()

    def _shorten_what_outlasts_its_piece(self) -> None:
        """Steps are whole, the plan's pieces are not: what runs on into the next piece may cost somebody's deadline.

        Then it does fewer steps, or waits with its ranks held for those that come back by the next piece.
        """
        planner = self._planner
        over_s = {index: self._job_end_s(job) - planner.until_s(index) for index, job in self._jobs.items()}
        outlasting = sorted((i for i, over in over_s.items() if over > _OVERRUN_S), key=lambda i: -over_s[i])
        saved = self._saved_after(self._jobs) if outlasting else planner.num_saved
        for index in outlasting:
            if saved >= planner.num_saved:
                return
            job = self._jobs[index]
            step_s = self._costs(index).step_s[job.sp_degree]
            fits = max(0, job.num_steps - 1 - int(over_s[index] / step_s))
            may_wait = any(at_s <= planner.until_s(index) + _OVERRUN_S for at_s in self._situation.returns_s)
            for steps in sorted({min(fits + 1, job.num_steps - 1), fits, 0}, reverse=True):
                if not steps and not may_wait:
                    break
                instead = self._jobs | {index: Job(index, job.sp_degree, steps)}
                if not steps:
                    del instead[index]
                saved_instead = self._saved_after(instead)
                if saved_instead > saved:
                    saved, self._jobs = saved_instead, instead
                    break
            if index not in self._jobs:
                self._idle += job.sp_degree
                self.held_until_s = min(self.held_until_s, planner.until_s(index))

    def _saved_after(self, jobs: Mapping[int, Job]) -> int:
        started = list(jobs.values())
        return self._planner.saved_after(
            Started(
                np.array([job.index for job in started], np.int64),
                np.array([job.sp_degree for job in started], np.int64),
                np.array([job.num_steps for job in started], np.int64),
                np.array([self._job_end_s(job) for job in started], float),
            )
        )

    def _job_end_s(self, job: Job) -> float:
        return self._end_s(job.index, job.sp_degree, job.num_steps)

    def _start_early(self, indices: Sequence[int]) -> None:
        """Requests that the plan starts later make progress until it needs the ranks, as wide as it goes."""
        for index in indices:
            if not self._idle:
                return
            degrees = [cost.sp_degree for cost in self._costs(index).efficient]
            for degree in sorted(degrees, reverse=True):
                if self._start_if_it_fits(index, degree):
                    break

    def _start_late(self, indices: Sequence[int]) -> None:
        """Requests that the plan cannot save make progress until it needs the ranks, the cheapest first.

        They take their fastest degree alone: a narrow step of a large image would keep a wide group from forming for
        longer than it is worth.
        """
        rows = self._planner.rows
        degree_of = {row: self._fastest_degree(row) for row in {rows[index] for index in indices}}
        fitting = [index for index in indices if degree_of[rows[index]] <= self._idle]
        for index in sorted(fitting, key=lambda index: (self._cheapest_gpu_seconds(index), index)):
            self._start_if_it_fits(index, degree_of[rows[index]])

    def _start_if_it_fits(self, index: int, degree: int) -> bool:
        steps = self._steps_that_fit(index, degree) if degree <= self._idle else 0
        if steps:
            self._jobs[index] = Job(index, degree, steps)
            self._spend(index, degree, degree, steps)
        return steps > 0

    def _fastest_degree(self, row: int) -> int:
        """The fastest that all usable ranks together allow."""
        usable = self._situation.idle + len(self._situation.returns_s)
        efficient = self._shapes.costs(row).efficient
        return next((cost.sp_degree for cost in reversed(efficient) if cost.sp_degree <= usable), 1)

    def _widen(self) -> None:
        """Ranks that are idle even so shorten what was saved: most seconds per rank first."""
        while self._idle:
            best: tuple[float, Job, int] | None = None
            for job in self._jobs.values():
                wider = self._next_degree(job)
                if wider is None or not self._planner.saved[job.index]:
                    continue
                steps = self._steps(job.index, wider)
                more = wider - job.sp_degree
                if more > self._idle or not self._planner.can_spare(more, self._end_s(job.index, wider, steps)):
                    continue
                step_s = self._costs(job.index).step_s
                remaining = self._situation.batches[job.index].remaining_steps
                gain = (step_s[job.sp_degree] - step_s[wider]) * remaining / more
                if best is None or gain > best[0]:
                    best = (gain, job, wider)
            if best is None:
                return
            _, job, wider = best
            steps = self._steps(job.index, wider)
            self._spend(job.index, wider - job.sp_degree, wider, steps)
            job.sp_degree, job.num_steps = wider, steps

    def _spend(self, index: int, ranks: int, degree: int, steps: int) -> None:
        self._planner.spend(ranks, self._end_s(index, degree, steps))
        self._idle -= ranks

    def _steps_that_fit(self, index: int, degree: int) -> int:
        """The longest segment at `degree` that ends before the plan needs the ranks; 0 if not even one step does."""
        steps = self._steps(index, degree)
        while steps and not self._planner.can_spare(degree, self._end_s(index, degree, steps)):
            steps = steps - 1 if steps < 8 else steps // 2
        return steps

    def _steps(self, index: int, degree: int) -> int:
        return self._shapes.segment_steps(self._costs(index), degree, self._situation.batches[index].shared_steps)

    def _end_s(self, index: int, degree: int, steps: int) -> float:
        costs = self._costs(index)
        encode_s = self._situation.batches[index].num_encodes * costs.encode_s
        return self._situation.now_s + encode_s + steps * costs.step_s[degree] + costs.dispatch_s

    def _next_degree(self, job: Job) -> int | None:
        wider = [cost.sp_degree for cost in self._costs(job.index).efficient if cost.sp_degree > job.sp_degree]
        return min(wider, default=None)

    def _cheapest_gpu_seconds(self, index: int) -> float:
        return self._situation.batches[index].remaining_steps * self._costs(index).efficient[0].gpu_seconds

    def _costs(self, index: int) -> ShapeCosts:
        return self._shapes.costs(self._planner.rows[index])
