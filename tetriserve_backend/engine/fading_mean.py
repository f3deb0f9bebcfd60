"""An exponentially weighted mean that knows how much it is worth."""

import math

_PRIOR_SPREAD, _PRIOR_WEIGHT = 0.05, 3.0
"""Few values that happen to be alike say little about how far such values spread."""


class FadingMean:
    """Mean of logarithms of time ratios, in which recent ones count more.

    The weight of a value halves with every `half_life` values after it, and while there are none with every `fade` that
    the clock goes on: what nobody measures any more must not be believed for ever, or a degree that was slow once
    would never be tried again. The clock may be anything that only grows, such as a count of segments.
    """

    __slots__ = ("_fade", "_keep", "_last", "_mean", "_variance", "_weight")

    def __init__(self, half_life: float, fade: float) -> None:
        self._keep, self._fade = 0.5 ** (1.0 / half_life), fade
        self._mean, self._variance, self._weight, self._last = 0.0, 0.0, 0.0, 0.0

    @property
    def value(self) -> float:
        """The mean; 0 without values."""
        return self._mean

    def add(self, value: float, now: float) -> None:
        """A value that was measured at `now`."""
        self._weight = self._keep * self.weight_at(now) + 1.0
        share, distance = 1.0 / self._weight, value - self._mean
        self._mean += share * distance
        self._variance = (1.0 - share) * (self._variance + share * distance * distance)
        self._last = now

    def doubt(self, weight: float) -> None:
        """From now on all values so far together are worth at most `weight`."""
        self._weight = min(self._weight, weight)

    def weight_at(self, now: float) -> float:
        """How many values the mean is worth at `now`."""
        return self._weight * math.pow(0.5, (now - self._last) / self._fade)

    def error_at(self, now: float) -> float:
        """The standard error of the mean at `now`; infinite without values."""
        weight = self.weight_at(now)
        prior = _PRIOR_WEIGHT * _PRIOR_SPREAD * _PRIOR_SPREAD
        variance = (weight * self._variance + prior) / (weight + _PRIOR_WEIGHT)
        return math.sqrt(variance / weight) if weight else math.inf
