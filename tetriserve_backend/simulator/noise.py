"""Step times that differ from the latency table, as real ones do."""

import math
import random
from collections.abc import Mapping

from tetriserve_backend.domain import Segment


class StepNoise:
    """A factor on each segment's duration, around 1.

    Every step (or encode, or decode) draws a duration of its own with coefficient of variation `cv`, log-normal
    with mean 1; a segment of n steps has their mean, whose CV is cv/√n. Deterministic in `seed` and in the
    sequence of calls.
    """

    def __init__(self, cv: float, seed: int = 0) -> None:
        self._cv, self._draw = cv, random.Random(seed)

    def __call__(self, segment: Segment) -> float:
        """The factor of a segment that starts now."""
        if not self._cv:
            return 1.0
        variance = math.log1p(self._cv * self._cv / max(1, segment.num_steps))
        return self._draw.lognormvariate(-variance / 2, math.sqrt(variance))


class SlowRanks:
    """A factor on the duration of each segment: its slowest rank's, for which the others wait.

    Args:
        everywhere: the factor of all ranks.
        factors: by rank, on top of that.
    """

    def __init__(self, everywhere: float = 1.0, factors: Mapping[int, float] | None = None) -> None:
        self._everywhere, self._factors = everywhere, dict(factors or {})

    def __call__(self, segment: Segment) -> float:
        """The factor of a segment."""
        return self._everywhere * max(self._factors.get(rank, 1.0) for rank in segment.placement.ranks)
