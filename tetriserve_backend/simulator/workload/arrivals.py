"""Arrival times: a stream of unit gaps, stretched by how the rate changes over time."""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tetriserve_backend.simulator.workload.spec import Arrivals, WorkloadSpec

Times: TypeAlias = npt.NDArray[np.float64]

_BISECTIONS = 60


def arrival_times_s(spec: WorkloadSpec, draw: np.random.Generator, chunk: int) -> Iterator[Times]:
    """Arrival times in seconds since the start, ascending, in chunks without end.

    Every kind of arrivals draws gaps with mean 1 and maps their running sum through the inverse of the expected
    number of arrivals by time t. So the mean rate is `rate_per_minute` for all of them.
    """
    reached = 0.0
    while True:
        counts = reached + np.cumsum(_unit_gaps(spec, draw, chunk))
        reached = float(counts[-1])
        yield _times_of(spec, counts)


def _unit_gaps(spec: WorkloadSpec, draw: np.random.Generator, count: int) -> Times:
    if spec.arrivals is Arrivals.FIXED:
        return np.ones(count)
    if spec.arrivals is Arrivals.GAMMA:
        return draw.gamma(shape=spec.cv**-2, scale=spec.cv**2, size=count)
    return draw.exponential(size=count)


def _times_of(spec: WorkloadSpec, counts: Times) -> Times:
    """When the expected number of arrivals reaches `counts`."""
    mean_per_s = spec.rate_per_minute / 60
    if spec.arrivals is Arrivals.BURSTS:
        return _burst_times(spec, counts / mean_per_s)
    if spec.arrivals is Arrivals.DIURNAL:
        return _diurnal_times(spec, counts / mean_per_s)
    times: Times = counts / mean_per_s
    return times


def _burst_times(spec: WorkloadSpec, even_s: Times) -> Times:
    """From even time (at the mean rate) to real time: the on-phase passes `burst_factor` as fast."""
    cycle_s = spec.burst_on_s + spec.burst_off_s
    on_even_s = spec.burst_on_s * spec.burst_factor
    off_factor = (cycle_s - on_even_s) / spec.burst_off_s
    cycles, within_s = np.divmod(even_s, cycle_s)
    off_s = (within_s - on_even_s) / off_factor if off_factor > 0 else np.zeros_like(within_s)
    times: Times = cycles * cycle_s + np.where(
        within_s <= on_even_s, within_s / spec.burst_factor, spec.burst_on_s + off_s
    )
    return times


def _diurnal_times(spec: WorkloadSpec, even_s: Times) -> Times:
    """Invert t + (amplitude·period/2π)·(1 − cos(2πt/period)) by bisection; begins at the mean rate, rising."""
    omega = 2 * np.pi / spec.period_s
    reach_s = 2 * spec.amplitude / omega
    low, high = np.maximum(0.0, even_s - reach_s), even_s.copy()
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        passed = middle + spec.amplitude / omega * (1 - np.cos(omega * middle)) >= even_s
        high = np.where(passed, middle, high)
        low = np.where(passed, low, middle)
    return high
