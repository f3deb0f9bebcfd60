"""Seconds as a piecewise linear function of latent tokens."""

from bisect import bisect_left
from collections.abc import Iterable


class TokenCurve:
    """Straight lines between profiled points; rising wherever the points rise, exact at each of them.

    Where several shapes share a token count, their slowest time counts, so that a plan keeps its promises.
    """

    def __init__(self, points: Iterable[tuple[int, float]]) -> None:
        """Build from (tokens, seconds) pairs in any order; at least one."""
        slowest: dict[int, float] = {}
        for tokens, seconds in points:
            slowest[tokens] = max(seconds, slowest.get(tokens, seconds))
        self._tokens = sorted(slowest)
        self._seconds = [slowest[tokens] for tokens in self._tokens]

    @property
    def min_tokens(self) -> int:
        """The smallest profiled token count."""
        return self._tokens[0]

    @property
    def max_tokens(self) -> int:
        """The largest profiled token count."""
        return self._tokens[-1]

    def covers(self, tokens: int) -> bool:
        """Whether `tokens` lies inside the profiled range, ends included."""
        return self.min_tokens <= tokens <= self.max_tokens

    def seconds_at(self, tokens: int) -> float:
        """Seconds at `tokens`, which must be covered."""
        right = bisect_left(self._tokens, tokens)
        if self._tokens[right] == tokens:
            return self._seconds[right]
        left = right - 1
        share = (tokens - self._tokens[left]) / (self._tokens[right] - self._tokens[left])
        return self._seconds[left] + share * (self._seconds[right] - self._seconds[left])
