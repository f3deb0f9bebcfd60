"""Ranks that are so slow that the others do better without them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from tetriserve_backend.engine.rank_speeds import Evidence

_FIRST_TERM_S, _LONGEST_TERM_S = 300.0, 4800.0
"""How long a rank gets no work; twice as long each time that it is found slow again."""

_STREAK_S, _STREAK_SAMPLES = 10.0, 8
"""How long, and in how many segments, a rank must have been slow: less is a hiccup of its machine."""

_REPEAT_SAMPLES = 4
"""Segments that are enough where a rank comes from quarantine."""

_PAUSE_S = 300.0
"""A rank of which nothing new was known for so long was not slow on end. Policies avoid slow ranks, so it is long."""

_SHARE = 1 / 7
"""Of what the working ranks do, as much may be given up: one rank of eight, whatever it does by itself."""

_KEEP = 0.99
"""Per segment, what earlier ones still count where it is told how much of the work is wide."""


@dataclass(frozen=True, slots=True)
class _Streak:
    """From when to when a rank was too slow, in how many segments."""

    since_s: float
    last_s: float
    samples: int = 0


@dataclass(frozen=True, slots=True)
class _Term:
    """Until when a rank is in quarantine, or has been, for how long, and how much of a rank is given up."""

    until_s: float
    length_s: float
    loss: float


class Quarantine:
    """Which ranks get no work, and when they are tried again.

    Policies plan for ranks that are alike, and a wide group waits for its slowest rank: beyond some ratio a straggler
    costs more deadlines than a rank that is missing. It still does a share of narrow work, so it goes only where

    - it is known to be the slow one of its groups, and new segments have said so for a while;
    - all that are out could do at most a seventh of what the others do, so that a small world keeps its ranks (a rank
      that was not seen alone, whose link may be slow, counts as if it did as much as any);
    - at least half of the GPU-seconds are spent by groups of two or more.

    A rank is tried again after a while, because nobody can tell from outside that a GPU has cooled down.

    Args:
        limit: from which ratio on a rank goes; None keeps all.
        world_size: number of ranks.
    """

    def __init__(self, limit: float | None, world_size: int) -> None:
        self._limit, self._world_size = limit, world_size
        self._terms: dict[int, _Term] = {}
        self._streaks: dict[int, _Streak] = {}
        self._samples: dict[int, int] = {}
        self._wide_s = self._all_s = 0.0
        self.ranks: frozenset[int] = frozenset()

    def note(self, num_ranks: int, seconds: float) -> None:
        """A segment took `seconds` of each of its ranks."""
        gpu_seconds = num_ranks * seconds
        self._all_s = _KEEP * self._all_s + gpu_seconds
        self._wide_s = _KEEP * self._wide_s + (gpu_seconds if num_ranks > 1 else 0.0)

    def review(self, evidence: Mapping[int, Evidence], now_s: float) -> Collection[int]:
        """Send ranks into quarantine.

        Args:
            evidence: by rank, how slow it is, and from how many segments that is known.
            now_s: seconds.

        Returns:
            The ranks that have gone, lowest first.
        """
        if self._limit is None:
            return ()
        gone = []
        for rank, known in sorted(evidence.items()):
            news, self._samples[rank] = known.samples - self._samples.get(rank, 0), known.samples
            if known.ratio < self._limit or rank in self.ranks:
                self._streaks.pop(rank, None)
            elif news > 0:
                self._streaks[rank] = self._longer(self._streaks.get(rank), news, now_s)
                if self._has_been_slow(rank, now_s) and self._is_spare(known):
                    self._send(rank, known, now_s)
                    gone.append(rank)
        return gone

    def release(self, now_s: float) -> Collection[int]:
        """Let ranks return whose time is over; what was known of them counts no more."""
        if not self.ranks:
            return ()
        back = [rank for rank in self.ranks if self._terms[rank].until_s <= now_s]
        for rank in back:
            self._samples.pop(rank, None)
        if back:
            self.ranks = self.ranks.difference(back)
        return back

    def forget(self, rank: int) -> None:
        """The rank has a new worker."""
        for known in (self._terms, self._streaks, self._samples):
            known.pop(rank, None)
        if rank in self.ranks:
            self.ranks = self.ranks - {rank}

    @staticmethod
    def _longer(streak: _Streak | None, news: int, now_s: float) -> _Streak:
        if streak is None or now_s > streak.last_s + _PAUSE_S:
            streak = _Streak(now_s, now_s)
        return replace(streak, last_s=now_s, samples=streak.samples + news)

    def _has_been_slow(self, rank: int, now_s: float) -> bool:
        streak = self._streaks[rank]
        if self._record(rank, now_s):
            return streak.samples >= _REPEAT_SAMPLES
        return streak.samples >= _STREAK_SAMPLES and now_s >= streak.since_s + _STREAK_S

    def _record(self, rank: int, now_s: float) -> _Term | None:
        """Its last term; none once it has been well for as long as it had been out."""
        term = self._terms.get(rank)
        return term if term and now_s < term.until_s + term.length_s else None

    def _is_spare(self, known: Evidence) -> bool:
        loss = _loss(known) + sum(self._terms[rank].loss for rank in self.ranks)
        working = self._world_size - len(self.ranks) - 1
        return loss <= _SHARE * working and self._wide_s >= 0.5 * self._all_s

    def _send(self, rank: int, known: Evidence, now_s: float) -> None:
        before = self._record(rank, now_s)
        length_s = min(2 * before.length_s, _LONGEST_TERM_S) if before else _FIRST_TERM_S
        self._terms[rank] = _Term(now_s + length_s, length_s, _loss(known))
        self._streaks.pop(rank)
        self.ranks = self.ranks | {rank}


def _loss(known: Evidence) -> float:
    return 1.0 / known.ratio if known.is_alone else 1.0
