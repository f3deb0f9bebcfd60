"""Which ranks are slower than the others, from the times of what they do together."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tetriserve_backend.engine.fading_mean import FadingMean
from tetriserve_backend.scheduler.groups import Ranks

_LIMIT = math.log(1.5)
"""By how much one segment may differ from what a group did before, for what it tells: a hiccup is no slow GPU, but the
mean of a slow one gets where it belongs in a few segments."""

_FADE_PER_RANK = 64
"""A group that nobody uses any more, since it is slow, is soon as good as any: after so many segments, times ranks,
half of what it did is forgotten."""

_ENOUGH = 3.0
"""Recent segments that a group must have had until these tell something."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """How slow a rank is, and from what that is known.

    Attributes:
        ratio: its times over those of the middle rank.
        samples: segments of the group that tells it, since one of its ranks was last forgotten.
        is_alone: whether that group is the rank alone; else it is slow with others that are known not to be.
    """

    ratio: float
    samples: int
    is_alone: bool


@dataclass(frozen=True, slots=True)
class RelativeSpeeds:
    """What is known of how slow ranks are beside the others of their world.

    Attributes:
        ratios: by rank, its times over those of the middle one; 1 where nothing is known. Of ranks that were only seen
            together, the last one has the ratio of their group: so the group counts as slow, and what the others do
            without that rank shows which of them it is.
        suspects: ranks of which one at least is slow, and by how much; a single one where it is known which.
        evidence: by rank, of those that were seen alone lately, and of those that are suspected alone.
    """

    ratios: tuple[float, ...]
    suspects: Mapping[Ranks, float]
    evidence: Mapping[int, Evidence]


@dataclass(slots=True)
class _Group:
    """What was seen of a group: logarithms of its times, and how many."""

    mean: FadingMean
    samples: int = 0


class RankSpeeds:
    """How slow each rank is, relative to the others.

    The ranks of a segment wait for the slowest of them, so one slow rank makes all those look slow that work with it.
    Hence groups are compared with others of their size, the narrow ones first, and a rank is as slow as its fastest
    group: one that is fast on its own is not to blame for its groups, nor is one that was only seen together with a
    rank that is known to be slow. Where no other group of a size was seen, as for the whole world, it tells nothing.

    Args:
        world_size: number of ranks.
        half_life: after how many segments of a group half of an estimate is new.
    """

    def __init__(self, world_size: int, half_life: float) -> None:
        self._half_life, self._fade = half_life, float(_FADE_PER_RANK * world_size)
        self._added = 0
        self._seen: dict[Ranks, _Group] = {}
        self._samples = [0] * world_size

    def samples(self, rank: int) -> int:
        """Segments seen of a rank since it was last forgotten."""
        return self._samples[rank]

    def add(self, ranks: Sequence[int], ratio: float) -> None:
        """A segment of these ranks took `ratio` (> 0) times as long as such segments take."""
        self._added += 1
        group = self._seen.get(tuple(ranks))
        if group is None:
            group = self._seen[tuple(ranks)] = _Group(FadingMean(self._half_life, self._fade))
        mean = group.mean
        mean.add(max(mean.value - _LIMIT, min(mean.value + _LIMIT, math.log(ratio))), self._added)
        group.samples += 1
        for rank in ranks:
            self._samples[rank] += 1

    def forget(self, rank: int) -> None:
        """The rank is as fast as the middle one until it is measured: it has a new worker, or a new chance."""
        self._seen = {ranks: group for ranks, group in self._seen.items() if rank not in ranks}
        self._samples[rank] = 0

    def relative(self) -> RelativeSpeeds:
        """What the segments so far say; of two groups of a size, the faster is the middle one."""
        by_size: dict[int, dict[Ranks, float]] = {}
        for ranks, seen in self._seen.items():
            if seen.mean.weight_at(self._added) >= _ENOUGH:
                by_size.setdefault(len(ranks), {})[ranks] = seen.mean.value
        slowness: dict[int, float] = {}
        suspects: list[Ranks] = []
        evidence: dict[int, Evidence] = {}
        for size, groups in sorted(by_size.items()):
            if len(groups) == 1:
                continue
            middle = statistics.median_low(groups.values())
            for group, value in sorted(groups.items()):
                suspected = _blame(group, value - middle, slowness)
                if suspected:
                    suspects.append(suspected)
                if size == 1 or len(suspected) == 1:
                    (rank,) = suspected or group
                    evidence[rank] = Evidence(math.exp(value - middle), self._seen[group].samples, size == 1)
        ratios = tuple(math.exp(slowness.get(rank, 0.0)) for rank in range(len(self._samples)))
        return RelativeSpeeds(ratios, {group: ratios[group[-1]] for group in suspects}, evidence)


def _blame(group: Ranks, excess: float, slowness: dict[int, float]) -> Ranks:
    """Note what a group's time says of its ranks, and return those that it puts under suspicion.

    Args:
        group: ranks; those of narrower groups have been looked at.
        excess: logarithm of its time over that of the middle group of its size.
        slowness: by rank, logarithms; changed.
    """
    news = tuple(rank for rank in group if rank not in slowness)
    explained = max((slowness[rank] for rank in group if rank in slowness), default=0.0) > excess / 2
    for rank in group:
        slowness[rank] = min(slowness.get(rank, 0.0), excess)
    if explained or excess <= 0.0 or not news:
        return ()
    slowness[news[-1]] = excess
    return news
