"""Measures a whole latency table, visit by visit."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from tetriserve_backend.domain import LatencyTableError
from tetriserve_backend.latency_table.work import Work, encode_work
from tetriserve_profiling.bench import Bench, ProfiledExecutor, SegmentsFailedError
from tetriserve_profiling.hand_over import LatentMove, MoveCost, move_visits, moves_between
from tetriserve_profiling.move_meter import MoveMeter
from tetriserve_profiling.record import Record
from tetriserve_profiling.remaining import RemainingTime
from tetriserve_profiling.schedule import Visit, visits
from tetriserve_profiling.settings import ProfileSettings
from tetriserve_profiling.spread import Spread
from tetriserve_profiling.stopwatch import Stopwatch

_TRIES = 3
OUT_OF_MEMORY = "out of memory"
"""How the reason of an entry that does not fit begins."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What has just been done.

    Attributes:
        done, total: visits; the total shrinks when entries turn out not to fit.
        remaining_s: how long the rest will take; None while that cannot be told.
        what: what was visited.
        spread: of the samples so far; None where there is nothing to tell.
        complete: whether it will not be visited again.
        problem: why it cannot be had; empty if it can.
    """

    done: int
    total: int
    remaining_s: float | None
    what: str
    spread: Spread | None = None
    complete: bool = False
    problem: str = ""

    def in_words(self) -> str:
        """One line."""
        if self.problem:
            return f"{self.what}: left out: {self.problem}"
        if self.spread is None:
            return self.what
        return f"{self.what}: {1e3 * self.spread.seconds:.1f} ms (cv {self.spread.cv:.1%}, n {self.spread.samples})"


class Profiler:
    """Fills a record with what `work` lacks in it.

    Args:
        executor: started, and idle while this works.
        settings: how often to measure.
        record: what is there already; grows.
        on_progress: called after each visit, when the record holds what it gave.
        model: the served model, as `Request.model`.
    """

    def __init__(
        self,
        executor: ProfiledExecutor,
        settings: ProfileSettings,
        record: Record,
        on_progress: Callable[[Progress], None],
        model: str = "",
    ) -> None:
        self._settings, self._record, self._on_progress = settings, record, on_progress
        self._bench = Bench(executor, model)
        self._stopwatch = Stopwatch(self._bench)
        self._meter = MoveMeter(self._stopwatch, self._bench)
        self._remaining = RemainingTime(self._step_s)
        self._warm: set[Work | LatentMove] = set()
        self._done = 0
        self._spent_s: dict[Work, float] = {}

    async def measure(self, work: Sequence[Work], *, with_moves: bool = False) -> None:
        """Visit all entries until each has its samples, or is known to be impossible; then moves, if asked for.

        Raises:
            LatencyTableError: encoding failed, without which nothing can be measured.
            ServerError: the executor has given up.
        """
        to_come = [v for v in visits(work, self._settings, self._record.counts()) if v.work not in self._record.absent]
        while to_come:
            visit = to_come.pop(0)
            start_s = time.monotonic()
            problem = self._known_problem(visit.work) or await self._visit(visit)
            self._note_time(visit.work, time.monotonic() - start_s)
            if problem:
                self._give_up(visit.work, problem)
            to_come = [v for v in to_come if not self._is_satisfied(v)]
            left = [v.work for v in to_come]
            possible = [one for one in work if one not in self._record.absent]
            self._tell(visit.work, left, self._move_visits(possible) if with_moves else [], problem)
        if with_moves:
            await self.measure_moves(work)

    async def measure_moves(self, work: Sequence[Work]) -> list[MoveCost]:
        """Cost of moving a latent, between those steps of `work` that the record has.

        A move that fails is told and left out.

        Raises:
            ServerError: the executor has given up.
        """
        counts = self._record.counts()
        to_come = self._move_visits([one for one in work if one in counts])
        while to_come:
            one = to_come.pop(0)
            start_s = time.monotonic()
            problem = await self._move(one)
            self._remaining.note_move(one, time.monotonic() - start_s)
            if problem:
                self._record.drop_move(one)
                to_come = [other for other in to_come if other != one]
            self._tell(one, [], to_come, problem)
        return self._record.move_costs()

    def release(self) -> None:
        """Have the ranks drop what they hold of this profile."""
        self._stopwatch.release()

    def _tell(self, one: Work | LatentMove, work: Sequence[Work], moves: Sequence[LatentMove], problem: str) -> None:
        """That `one` has been visited, and that these visits are to come."""
        self._done += 1
        left = (*work, *moves)
        self._on_progress(
            Progress(
                self._done,
                self._done + len(left),
                self._remaining.estimate(work, moves),
                str(one),
                None if problem or isinstance(one, LatentMove) else self._record.spread(one),
                one not in left,
                problem,
            )
        )

    def _move_visits(self, steps: Sequence[Work]) -> list[LatentMove]:
        moves = moves_between(steps, self._bench.executor.world_size)
        return move_visits(moves, self._settings.repeats, self._record.move_counts())

    async def _visit(self, visit: Visit) -> str:
        """Take samples; why there are none, if so."""

        async def measure() -> None:
            warmup = 1 if visit.work in self._warm else self._settings.warmup
            samples = await self._stopwatch.measure(visit.work, warmup, lambda s: self._affordable(visit, s))
            self._warm.add(visit.work)
            self._record.add(visit.work, samples)

        return await self._try(measure)

    async def _move(self, one: LatentMove) -> str:
        """Take a sample; why there is none, if so."""

        async def measure() -> None:
            self._record.add_move(one, await self._meter.measure(one, is_warm=one in self._warm))
            self._warm.add(one)

        return await self._try(measure)

    async def _try(self, measure: Callable[[], Awaitable[None]]) -> str:
        """Do it, again where ranks were lost; why it cannot be done, if so."""
        for attempt in range(_TRIES):
            try:
                await measure()
            except SegmentsFailedError as error:
                self._stopwatch.forget()
                # A new process starts cold.
                self._warm.clear()
                await self._bench.recover()
                if error.out_of_memory or not error.retryable or attempt == _TRIES - 1:
                    return (f"{OUT_OF_MEMORY}: " if error.out_of_memory else "") + str(error)
            else:
                break
        return ""

    def _step_s(self, step: Work) -> float | None:
        return self._record.spread(step).seconds if step in self._record.counts() else None

    def _affordable(self, visit: Visit, sample_s: float) -> int:
        settings, have = self._settings, self._record.counts().get(visit.work, 0)
        wanted = visit.target - have
        if settings.budget_s is None:
            return wanted
        left_s = settings.budget_s - self._spent_s.get(visit.work, 0.0)
        return max(1, settings.min_repeats - have, min(wanted, int(left_s / sample_s)))

    def _is_satisfied(self, visit: Visit) -> bool:
        work, have = visit.work, self._record.counts().get(visit.work, 0)
        if work in self._record.absent or have >= visit.target:
            return True
        budget_s = self._settings.budget_s
        is_spent = budget_s is not None and self._spent_s.get(work, 0.0) >= budget_s
        return is_spent and have >= self._settings.min_repeats

    def _known_problem(self, work: Work) -> str:
        """Why a larger batch cannot fit, where a smaller one does not."""
        for other, reason in self._record.absent.items():
            is_smaller = other.batch < work.batch and replace(other, batch=work.batch) == work
            if is_smaller and reason.startswith(OUT_OF_MEMORY):
                return f"{OUT_OF_MEMORY}: {other} is"
        return ""

    def _give_up(self, work: Work, problem: str) -> None:
        if work == encode_work():
            raise LatencyTableError(f"{work} failed, so that nothing can be measured: {problem}")
        self._record.give_up(work, problem)

    def _note_time(self, work: Work, seconds: float) -> None:
        self._remaining.note(work, seconds)
        self._spent_s[work] = self._spent_s.get(work, 0.0) + seconds
