"""What it costs to move a latent between placements."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tetriserve_backend.domain import SegmentKind, image_tokens
from tetriserve_backend.engine.commands import Source, SourceKind
from tetriserve_backend.latency_table.work import Work, step_work
from tetriserve_profiling.stopwatch import RESIDENT

GOAL_FROM_TOKENS = 1024
"""Of 512×512: the size from which on a hand-over should weigh little against a step."""
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
class LatentMove:
    """A move of the latent of one shape."""

    height: int
    width: int
    move: Move

    def __str__(self) -> str:
        """For people."""
        return f"hand-over {self.height}x{self.width} from {self.move.before} to {self.move.after}"

    @property
    def steps(self) -> tuple[Work, ...]:
        """What one sample runs."""
        before, after = (step_work(self.height, self.width, sp=len(r)) for r in (self.move.before, self.move.after))
        return (before, *[after] * (4 if self.move.source.kind is SourceKind.HOST else 2))


@dataclass(frozen=True, slots=True)
class MoveSample:
    """Seconds of one repeat: between the segments around a move, between two without one, of a step."""

    moved_s: float
    stayed_s: float
    step_s: float


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

    @classmethod
    def of(cls, one: LatentMove, samples: Sequence[MoveSample]) -> "MoveCost":
        """What at least one sample tells."""
        return cls(
            one.height,
            one.width,
            one.move,
            # On CUDA an end is when the host saw it, so that the next start may seem to come before it.
            between_s=max(0.0, statistics.median(sample.moved_s for sample in samples)),
            seconds=max(0.0, statistics.median(sample.moved_s - sample.stayed_s for sample in samples)),
            step_s=statistics.median(sample.step_s for sample in samples),
            samples=len(samples),
        )

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
    return [shape for shape in ordered if image_tokens(*shape) >= GOAL_FROM_TOKENS][:_NUM_RESOLUTIONS] or ordered[-1:]


def moves_between(steps: Iterable[Work], world_size: int) -> list[LatentMove]:
    """Of these steps, moves from one that runs to another that runs, smallest shape first."""
    degrees: dict[tuple[int, int], set[int]] = {}
    for step in steps:
        if step.kind is SegmentKind.DENOISE and step.batch == step.cfg_degree == 1:
            degrees.setdefault((step.height, step.width), set()).add(step.degree)
    moves = {shape: list_moves(sorted(found), world_size) for shape, found in degrees.items()}
    shapes = resolutions_to_move([shape for shape, found in moves.items() if found])
    return [LatentMove(*shape, move) for shape in shapes for move in moves[shape]]


def move_visits(moves: Sequence[LatentMove], repeats: int, have: Mapping[LatentMove, int]) -> list[LatentMove]:
    """One for each sample that is lacking, all moves in turn.

    Those of the smallest shape, which come first, twice in each turn: a move weighs the most there, and its few tenths
    of a millisecond scatter as widely.
    """
    smallest = [one for one in moves if (one.height, one.width) == (moves[0].height, moves[0].width)]
    visits, there = [], dict(have)
    for one in [*smallest, *moves] * repeats:
        if there.get(one, 0) > 0:
            there[one] -= 1
        else:
            visits.append(one)
    return visits


def _first(count: int) -> tuple[int, ...]:
    return tuple(range(count))
