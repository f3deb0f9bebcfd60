"""What to run now: the first pieces of the plan, and whatever the ranks that it leaves idle can do meanwhile."""

from collections.abc import Sequence
from dataclasses import dataclass

from tetriserve_backend.domain import SegmentKind
from tetriserve_backend.scheduler.costs import ShapeCosts
from tetriserve_backend.scheduler.tetris.planner import Planner, Situation
from tetriserve_backend.scheduler.tetris.shapes import ShapeRows


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
    """

    def __init__(self, shapes: ShapeRows, planner: Planner, situation: Situation) -> None:
        self._shapes, self._planner, self._situation = shapes, planner, situation
        self._idle = situation.idle
        self._jobs: dict[int, Job] = {}

    def fill(self, *, use_idle: bool) -> list[Job]:
        """The jobs, in the order in which they were given ranks."""
        self._start_planned()
        planner, ready = self._planner, self._situation.ready
        waiting = [index for index in planner.order if ready[index] and index not in self._jobs]
        late = [index for index in waiting if not planner.saved[index]]
        late.sort(key=lambda index: (self._cheapest_gpu_seconds(index), index))
        if use_idle:
            self._start_early([index for index in waiting if planner.saved[index]])
        self._start_early(late)
        if use_idle:
            self._widen()
        return list(self._jobs.values())

    def _start_planned(self) -> None:
        planner, situation = self._planner, self._situation
        for index in planner.order:
            degree = planner.first_degree[index]
            if degree and situation.ready[index] and degree <= self._idle:
                steps = self._steps(index, degree)
                self._jobs[index] = Job(index, degree, steps)
                self._idle -= degree

    def _start_early(self, indices: Sequence[int]) -> None:
        """Requests that the plan starts later, or cannot save, make progress now, as wide as it goes.

        Only until the plan needs the ranks. Late ones take their fastest degree alone: a narrow step of a large
        image would keep a wide group from forming for longer than it is worth.
        """
        for index in indices:
            if not self._idle:
                return
            for degree in self._early_degrees(index):
                steps = self._steps_that_fit(index, degree) if degree <= self._idle else 0
                if steps:
                    self._jobs[index] = Job(index, degree, steps)
                    self._spend(index, degree, degree, steps)
                    break

    def _early_degrees(self, index: int) -> list[int]:
        """Widest first; for a late request only the fastest that the usable ranks, busy or not, allow."""
        usable = self._situation.idle + len(self._situation.returns_s)
        degrees = [cost.sp_degree for cost in self._costs(index).efficient if cost.sp_degree <= usable]
        if not self._planner.saved[index]:
            return degrees[-1:] or [1]
        return sorted(degrees, reverse=True)

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
                remaining = self._situation.requests[job.index].remaining_steps
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
        step_s = self._costs(index).step_s[degree]
        return self._shapes.segment_steps(step_s, self._situation.requests[index].remaining_steps)

    def _end_s(self, index: int, degree: int, steps: int) -> float:
        costs, view = self._costs(index), self._situation.requests[index]
        encode_s = costs.encode_s if view.next_kind is SegmentKind.ENCODE else 0.0
        return self._situation.now_s + encode_s + steps * costs.step_s[degree] + costs.dispatch_s

    def _next_degree(self, job: Job) -> int | None:
        wider = [cost.sp_degree for cost in self._costs(job.index).efficient if cost.sp_degree > job.sp_degree]
        return min(wider, default=None)

    def _cheapest_gpu_seconds(self, index: int) -> float:
        return self._situation.requests[index].remaining_steps * self._costs(index).efficient[0].gpu_seconds

    def _costs(self, index: int) -> ShapeCosts:
        return self._shapes.costs(self._planner.rows[index])
