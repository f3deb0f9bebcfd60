"""Which ranks are slower than the others, from the times of what they do together."""

import math
import statistics
from collections.abc import Sequence

from tetriserve_backend.engine.fading_mean import FadingMean

_LIMIT = math.log(1.5)
"""The most that one segment may tell: a hiccup is no slow GPU."""

_FADE_PER_RANK = 64
"""A rank that nobody uses any more, since it is slow, is soon as good as any: after so many segments, times ranks, half
of what it did is forgotten."""

_ENOUGH = 3.0
"""Recent segments that a rank must have had at a degree until these tell something."""


class RankSpeeds:
    """How slow each rank is, relative to the others.

    The ranks of a segment wait for the slowest of them, so one slow rank makes all those look slow that work with it.
    Hence each degree is looked at by itself, beside the other ranks at that degree, and a rank is as slow as it was
    where it looked fastest: a rank that is fast on its own is not to blame for its groups, nor is one that was only
    seen together with a rank that is known to be slow. Work of the whole world together tells nothing of any one.

    Args:
        world_size: number of ranks.
        half_life: after how many segments of a rank half of an estimate is new.
    """

    def __init__(self, world_size: int, half_life: float) -> None:
        self._half_life, self._fade = half_life, float(_FADE_PER_RANK * world_size)
        self._added = 0
        self._seen: list[dict[int, FadingMean]] = [{} for _ in range(world_size)]
        self._samples = [0] * world_size

    def samples(self, rank: int) -> int:
        """Segments seen of a rank, or of its worker if that is not its first."""
        return self._samples[rank]

    def add(self, ranks: Sequence[int], ratio: float) -> None:
        """A segment of these ranks took `ratio` (> 0) times as long as such segments take."""
        self._added += 1
        value = max(-_LIMIT, min(_LIMIT, math.log(ratio)))
        for rank in ranks:
            self._samples[rank] += 1
            seen = self._seen[rank]
            if len(ranks) not in seen:
                seen[len(ranks)] = FadingMean(self._half_life, self._fade)
            seen[len(ranks)].add(value, self._added)

    def forget(self, rank: int) -> None:
        """The rank has a new worker: as fast as the middle one until it is measured."""
        self._seen[rank] = {}
        self._samples[rank] = 0

    def relative(self) -> list[float]:
        """By rank: its times over those of the middle rank; of two, the faster is the middle one."""
        means = [
            {degree: mean.value for degree, mean in seen.items() if mean.weight_at(self._added) >= _ENOUGH}
            for seen in self._seen
        ]
        degrees = {degree for by_degree in means for degree in by_degree if degree < len(means)}
        middle = {
            degree: statistics.median_low(by_degree[degree] for by_degree in means if degree in by_degree)
            for degree in degrees
        }
        slowness: dict[int, float] = {}
        for degree in sorted(degrees):
            excess = {
                rank: by_degree[degree] - middle[degree] for rank, by_degree in enumerate(means) if degree in by_degree
            }
            known = dict(slowness)
            for rank, value in excess.items():
                if rank in known:
                    slowness[rank] = min(known[rank], value)
                    continue
                block = range(rank // degree * degree, (rank // degree + 1) * degree)
                explained = max((known[other] for other in block if other in known), default=0.0)
                slowness[rank] = 0.0 if explained > value / 2 else value
        return [math.exp(slowness.get(rank, 0.0)) for rank in range(len(means))]
