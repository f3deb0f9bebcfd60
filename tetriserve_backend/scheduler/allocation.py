"""Deadline-aware allocation: the fewest GPU-seconds that still meet a deadline (§4.2.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

from tetriserve_backend.scheduler.costs import DegreeCost

_TOLERANCE_S = 1e-9


@dataclass(frozen=True, slots=True)
class Allocation:
    """`num_steps` of a request's steps on `sp_degree` ranks."""

    num_steps: int
    sp_degree: int


def allocate(num_steps: int, costs: Sequence[DegreeCost], time_left_s: float) -> tuple[Allocation, ...]:
    """Split steps over at most two degrees so that they end in time for the fewest GPU-seconds.

    Exactly minimal among all splits of whole steps over one or two degrees. Without integrality the optimum
    never needs a third degree (two constraints, so a basic solution has two nonzero variables).

    Args:
        num_steps: steps to do, at least 1.
        costs: the degrees that may be used, from cheap and slow to dear and fast (`ShapeCosts.efficient`).
        time_left_s: seconds until the last step must end.

    Returns:
        One or two allocations, widest first; none when even the fastest degree alone is too slow.
    """
    budget_s = time_left_s + _TOLERANCE_S
    for cost in costs:
        if num_steps * cost.step_s <= budget_s:
            return _cheapest_split(num_steps, costs, cost, budget_s)
    return ()


def _cheapest_split(
    num_steps: int, costs: Sequence[DegreeCost], single: DegreeCost, budget_s: float
) -> tuple[Allocation, ...]:
    """The better of `single` (the cheapest degree that is fast enough alone) and every mix of a slow and a fast one."""
    best: tuple[Allocation, ...] = (Allocation(num_steps, single.sp_degree),)
    best_gpu_seconds = num_steps * single.gpu_seconds
    for slow in costs:
        if slow is single:
            # Degrees from here on are fast enough alone, and dearer than `single`.
            break
        for fast in costs:
            if fast.step_s > single.step_s:
                continue
            spare_s = budget_s - num_steps * fast.step_s
            slow_steps = int(spare_s / (slow.step_s - fast.step_s))
            gpu_seconds = slow_steps * slow.gpu_seconds + (num_steps - slow_steps) * fast.gpu_seconds
            if slow_steps and gpu_seconds < best_gpu_seconds - _TOLERANCE_S:
                best_gpu_seconds = gpu_seconds
                best = (
                    Allocation(num_steps - slow_steps, fast.sp_degree),
                    Allocation(slow_steps, slow.sp_degree),
                )
    return best
