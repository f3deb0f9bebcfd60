"""Quantiles of any number of values in bounded memory."""

import math


class QuantileSketch:
    """A histogram with logarithmic buckets: every quantile is right to 0.1 %, mean and extremes are exact.

    Takes values ≥ 0; those below a nanosecond's worth (1e-9) count as 0. Between 1e-9 and 1e9 there are at
    most 20,000 buckets, however many values come.
    """

    _GROWTH = 1.002
    _LOG_GROWTH = math.log(_GROWTH)
    _SMALLEST = 1e-9

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._sum = 0.0
        self.count = 0
        self.max = 0.0
        self.min = math.inf

    def add(self, value: float) -> None:
        """Count one value.

        Raises:
            ValueError: the value is negative.
        """
        if value < 0:
            raise ValueError(f"expected a value of at least 0, got {value}")
        bucket = -(1 << 30) if value < self._SMALLEST else math.ceil(math.log(value) / self._LOG_GROWTH)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self._sum += value
        self.count += 1
        self.max = max(self.max, value)
        self.min = min(self.min, value)

    @property
    def mean(self) -> float:
        """The exact mean; 0 while there are no values."""
        return self._sum / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """The value that `share` (0 … 1) of the values do not exceed; 0 while there are none."""
        return self.quantiles([share])[0]

    def quantiles(self, shares: list[float]) -> list[float]:
        """Several quantiles, for ascending `shares`, in one pass."""
        if not self.count:
            return [0.0] * len(shares)
        answers: list[float] = []
        seen = 0
        buckets = iter(sorted(self._counts))
        value = self.min
        for share in shares:
            rank = max(1, math.ceil(share * self.count))
            while seen < rank:
                bucket = next(buckets)
                seen += self._counts[bucket]
                value = 0.0 if bucket < -(1 << 29) else self._GROWTH ** (bucket - 0.5)
            answers.append(self.max if rank == self.count else min(self.max, max(self.min, value)))
        return answers
