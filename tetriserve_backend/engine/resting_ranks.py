"""Ranks that are so slow that the others do better without them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tetriserve_backend.engine.rank_speeds import SlowRanks

_FIRST_REST_S, _LONGEST_REST_S = 300.0, 4800.0
"""How long a rank gets no work; twice as long each time that it is found slow again."""

_ON_END_S = 10.0
"""How long a rank must have been too slow before it rests for the first time: less is a hiccup of its machine."""

_FEW_SAMPLES = 4
"""Segments that are enough of a rank that has rested before."""


@dataclass(frozen=True, slots=True)
class _Rest:
    """Until when a rank rests, or has rested, and for how long."""

    until_s: float
    length_s: float


class RestingRanks:
    """Which ranks get no work, and when they are tried again.

    A wide group waits for its slowest rank, so beyond some ratio one slow rank costs more deadlines than one that is
    lost. A rank rests only if it is known to be the slow one of its groups, and never are more than half of all ranks
    slow, since that is beside the middle one. It is tried again after a while, because nobody can tell from outside
    that a GPU has cooled down; then any slow group that it is in will do to send it back.

    Args:
        limit: from which ratio on a rank rests; None lets none rest.
        min_samples: segments that must have been seen of it.
    """

    def __init__(self, limit: float | None, min_samples: int) -> None:
        self._limit, self._min_samples = limit, min_samples
        self._rests: dict[int, _Rest] = {}
        self._slow_since_s: dict[int, float] = {}
        self.ranks: frozenset[int] = frozenset()

    def review(self, speeds: SlowRanks, samples: Mapping[int, int], now_s: float) -> Collection[int]:
        """Bring `ranks` up to date.

        Args:
            speeds: what is known of the ranks.
            samples: by rank, how many segments it is known from.
            now_s: seconds.

        Returns:
            The ranks that are to be tried again: what was known of them counts no more.
        """
        back = [rank for rank in self.ranks if self._rests[rank].until_s <= now_s]
        slow = [rank for rank in samples if rank not in self.ranks and self._is_too_slow(rank, speeds, samples[rank])]
        self._slow_since_s = {rank: self._slow_since_s.get(rank, now_s) for rank in slow}
        tired = [rank for rank in slow if rank in self._rests or now_s >= self._slow_since_s[rank] + _ON_END_S]
        for rank in tired:
            before = self._rests.get(rank)
            length_s = min(2 * before.length_s, _LONGEST_REST_S) if before else _FIRST_REST_S
            self._rests[rank] = _Rest(now_s + length_s, length_s)
        if back or tired:
            self.ranks = self.ranks.difference(back).union(tired)
        return back

    def forget(self, rank: int) -> None:
        """The rank has a new worker."""
        self._rests.pop(rank, None)
        self._slow_since_s.pop(rank, None)
        if rank in self.ranks:
            self.ranks = self.ranks - {rank}

    def _is_too_slow(self, rank: int, speeds: SlowRanks, samples: int) -> bool:
        if self._limit is None:
            return False
        if rank not in self._rests:
            return samples >= self._min_samples and speeds.suspects.get((rank,), 1.0) >= self._limit
        worst = max((ratio for group, ratio in speeds.suspects.items() if rank in group), default=1.0)
        return samples >= _FEW_SAMPLES and worst >= self._limit
