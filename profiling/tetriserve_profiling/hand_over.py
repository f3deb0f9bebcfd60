"""What it costs to move a latent between placements."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tetriserve_backend.domain import image_tokens
from tetriserve_backend.engine.commands import HandOver, RunSegment, Source, SourceKind
from tetriserve_backend.latency_table.work import Work, step_work
from tetriserve_profiling.bench import Bench
from tetriserve_profiling.stopwatch import CREATE, RESIDENT, STAY, Stopwatch

_FROM_TOKENS = 1024
_NUM_RESOLUTIONS = 2


@dataclass(frozen=True, slots=True)
class Move:
    """From the ranks of one segment to those of the next. Both are groups of the executor."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def source(self) -> Source:
        """Where the new ranks find the latent, as the engine would have it."""
        inside = sorted(set(self.before) & set(self.after))
        if inside == list(self.after):
            return RESIDENT
        return Source(SourceKind.BROADCAST, inside[0]) if inside else Source(SourceKind.HOST, self.after[0])


@dataclass(frozen=True, slots=True)
class MoveCost:
    """What a move costs beyond going on where the latent is.

    Attributes:
        between_s: time between the last segment on the old ranks and the first on the new ones.
        seconds: how much more that is than between two segments on the same ranks, sent in the same way right behind;
            the median of these differences, so that a machine whose speed wanders between repeats is no cost.
        step_s: the step that follows.
        samples: how often each was measured.
    """

    height: int
    width: int
    move: Move
    between_s: float
    seconds: float
    step_s: float
    samples: int

    @property
    def share(self) -> float:
        """`seconds` as a share of the step that follows."""
        return self.seconds / self.step_s

    def to_dict(self) -> dict[str, Any]:
        """As latency tables hold it."""
        return {
            "height": self.height,
            "width": self.width,
            "from": list(self.move.before),
            "to": list(self.move.after),
            "between_seconds": self.between_s,
            "seconds": self.seconds,
            "share_of_step": round(self.share, 6),
            "samples": self.samples,
        }


def list_moves(degrees: Sequence[int], world_size: int) -> list[Move]:
    """Wider, narrower and disjoint, between neighbouring degrees."""
    moves = []
    for narrow, wide in pairwise(degrees):
        moves += [Move(_first(narrow), _first(wide)), Move(_first(wide), _first(narrow))]
    return moves + [Move(_first(d), tuple(range(d, 2 * d))) for d in degrees if 2 * d <= world_size]


def resolutions_to_move(resolutions: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where a move is measured: the smallest two of at least 512×512, else the largest.

    A latent grows with the tokens and a step faster than that, so that a move weighs the most at small sizes.
    """
    ordered = sorted(set(resolutions), key=lambda shape: (image_tokens(*shape), shape))
    return [shape for shape in ordered if image_tokens(*shape) >= _FROM_TOKENS][:_NUM_RESOLUTIONS] or ordered[-1:]


@dataclass(slots=True)
class _Times:
    """Seconds of each repeat: between the segments around a move, between two without one, of a step."""

    moved: list[float] = field(default_factory=list)
    stayed: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)


class MoveMeter:
    """Measures moves, one repeat at a time."""

    def __init__(self, stopwatch: Stopwatch, bench: Bench) -> None:
        self._stopwatch, self._bench = stopwatch, bench
        self._times: dict[tuple[int, int, Move], _Times] = {}

    async def measure(self, height: int, width: int, move: Move) -> None:
        """Take one sample: a step before the move, one after it, and one more on the same ranks.

        They are sent at once, as the engine sends ahead. The conditioning is there already, as it is on all ranks
        that a request has been to.

        Raises:
            SegmentsFailedError: a segment failed.
        """
        work = step_work(height, width)
        await self._stopwatch.prepare(work)
        times = self._times.get((height, width, move))
        if times is None:
            await self._bench.run([self._first_on(work, move.before), self._first_on(work, move.after)])
            times = self._times[height, width, move] = _Times()
        before, after, stayed = await self._bench.run(
            [
                self._stopwatch.steps(work, HandOver(RESIDENT, CREATE), 0, ranks=move.before),
                self._stopwatch.steps(work, HandOver(RESIDENT, move.source), 1, ranks=move.after),
                self._stopwatch.steps(work, STAY, 2, ranks=move.after),
            ]
        )
        times.moved.append(after.start_s - before.end_s)
        times.step.append(stayed.seconds)
        if move.source.kind is SourceKind.HOST:
            # A host copy cannot be sent ahead, so neither is what this is compared with.
            (after,) = await self._bench.run([self._stopwatch.steps(work, STAY, 3, ranks=move.after)])
            (stayed,) = await self._bench.run([self._stopwatch.steps(work, STAY, 4, ranks=move.after)])
        times.stayed.append(stayed.start_s - after.end_s)

    def costs(self) -> list[MoveCost]:
        """What was measured so far."""
        costs = []
        for key, times in self._times.items():
            between_s = statistics.median(times.moved)
            more_s = (moved - stayed for moved, stayed in zip(times.moved, times.stayed, strict=True))
            seconds = max(0.0, statistics.median(more_s))
            costs.append(MoveCost(*key, between_s, seconds, statistics.median(times.step), len(times.moved)))
        return costs

    def _first_on(self, work: Work, ranks: tuple[int, ...]) -> RunSegment:
        """Brings the conditioning there."""
        source = Source(SourceKind.HOST, ranks[0])
        return self._stopwatch.steps(work, HandOver(source, CREATE), 0, ranks=ranks)


def _first(count: int) -> tuple[int, ...]:
    return tuple(range(count))
