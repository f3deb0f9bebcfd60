"""Measures what moving a latent takes, one repeat at a time."""

from tetriserve_backend.engine.commands import HandOver, RunSegment, Source, SourceKind
from tetriserve_backend.latency_table.work import Work, step_work
from tetriserve_profiling.bench import Bench
from tetriserve_profiling.hand_over import LatentMove, MoveSample
from tetriserve_profiling.stopwatch import CREATE, RESIDENT, STAY, Stopwatch


class MoveMeter:
    """Measures moves on a bench."""

    def __init__(self, stopwatch: Stopwatch, bench: Bench) -> None:
        self._stopwatch, self._bench = stopwatch, bench

    async def measure(self, one: LatentMove, *, is_warm: bool) -> MoveSample:
        """Take one sample: a step before the move, one after it, and one more on the same ranks.

        They are sent at once, as the engine sends ahead.

        Args:
            one: the move.
            is_warm: its ranks have the conditioning already, as all have that a request has been to.

        Raises:
            SegmentsFailedError: a segment failed; nothing is warm any more.
        """
        work, move = step_work(one.height, one.width), one.move
        await self._stopwatch.prepare(work)
        if not is_warm:
            await self._bench.run([self._first_on(work, move.before), self._first_on(work, move.after)])
        before, after, stayed = await self._bench.run(
            [
                self._stopwatch.steps(work, HandOver(RESIDENT, CREATE), 0, ranks=move.before),
                self._stopwatch.steps(work, HandOver(RESIDENT, move.source), 1, ranks=move.after),
                self._stopwatch.steps(work, STAY, 2, ranks=move.after),
            ]
        )
        moved_s, step_s = after.start_s - before.end_s, stayed.seconds
        if move.source.kind is SourceKind.HOST:
            # A host copy cannot be sent ahead, so neither is what this is compared with.
            (after,) = await self._bench.run([self._stopwatch.steps(work, STAY, 3, ranks=move.after)])
            (stayed,) = await self._bench.run([self._stopwatch.steps(work, STAY, 4, ranks=move.after)])
        return MoveSample(moved_s, stayed.start_s - after.end_s, step_s)

    def _first_on(self, work: Work, ranks: tuple[int, ...]) -> RunSegment:
        """Brings the conditioning there."""
        source = Source(SourceKind.HOST, ranks[0])
        return self._stopwatch.steps(work, HandOver(source, CREATE), 0, ranks=ranks)
