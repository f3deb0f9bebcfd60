"""The middle of some samples, and how far they lie apart."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Standard deviations that a difference between two measurements of the same thing may span.
_SIGMAS = 4.0
# What a machine changes by from one minute to the next, which the samples of one minute cannot show.
NOISE_FLOOR = 0.05
# Samples that lie so far apart that four of their CVs allow anything must not make anything agree.
NOISE_CEILING = 0.5


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and mean seconds of `samples` measurements; `cv` is their standard deviation over the mean."""

    seconds: float
    mean_s: float
    cv: float
    samples: int


def spread(samples: Sequence[float]) -> Spread:
    """Summarise at least one sample."""
    mean_s = statistics.fmean(samples)
    cv = statistics.stdev(samples) / mean_s if len(samples) > 1 else 0.0
    return Spread(statistics.median(samples), mean_s, cv, len(samples))


def tolerance(cv: float | None, other_cv: float | None, floor: float = NOISE_FLOOR) -> float:
    """By which share two medians of the same thing may differ: four times the larger CV, at most `NOISE_CEILING`.

    A larger `floor` counts all the same: it is what somebody allowed whatever the samples say.
    """
    return max(min(_SIGMAS * max(cv or 0.0, other_cv or 0.0), NOISE_CEILING), floor)
