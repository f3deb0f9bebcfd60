"""How long a round is (§4.2)."""

from collections.abc import Sequence
from statistics import fmean, median

from tetriserve_backend.scheduler.costs import ShapeCosts

_FIT_FROM, _FIT_TO = 0.75, 1.25
"""How far the fitted length may be from step granularity × median step."""

_TOLERANCE = 1e-9


def round_length_s(shapes: Sequence[ShapeCosts], step_granularity: int) -> float:
    """The round length τ in seconds, from the steps of the profiled resolutions.

    1. Nominal: step granularity × the median over resolutions of the fastest step. The median, because the
       granularity counts steps of a usual request; counted in steps of the largest resolution, five would
       hold a small request up for most of its deadline.
    2. Fitted: of the lengths from 3/4 to 5/4 of that at which some resolution ends a whole number of steps at some
       degree, the one that leaves least of the round unused on average over the resolutions and over the degrees at
       which a step of theirs fits into it, so that requests end near the same boundary.
    3. Never shorter than one step of the slowest resolution behind its encode. One dispatch comes on top.

    On the 8×H100 table granularity 5 gives 0.333 s: 6, 5, 4 and 2 steps of 256², 512², 1024² and 2048².
    """
    steps_s = [costs.fastest.step_s for costs in shapes]
    nominal_s = step_granularity * median(steps_s)
    shortest_s = max(costs.encode_s + costs.fastest.step_s for costs in shapes)
    from_s, to_s = max(_FIT_FROM * nominal_s, shortest_s), _FIT_TO * nominal_s
    usable_s = [[cost.step_s for cost in costs.efficient] for costs in shapes]
    whole = {count * step_s for steps in usable_s for step_s in steps for count in range(1, int(to_s / step_s) + 1)}
    fitting = sorted(length_s for length_s in whole if from_s <= length_s)
    best_s = min(fitting, key=lambda length_s: _unused_share(usable_s, length_s), default=from_s)
    return best_s + max(costs.dispatch_s for costs in shapes)


def _unused_share(usable_s: Sequence[Sequence[float]], length_s: float) -> float:
    """The mean share of a round behind the last whole step; over each resolution's degrees, then over resolutions."""
    room_s = length_s * (1 + _TOLERANCE)
    shares = [[room_s % step_s / room_s for step_s in steps if step_s <= room_s] for steps in usable_s]
    return fmean(fmean(of_one) for of_one in shares)
