"""The profile of free ranks over time, as arrays: `free[i]` ranks from `times[i]` until `times[i + 1]`.

The last interval has no end. Functions that change a profile work in place and return its new length; the
arrays must have room for two more intervals per call.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tetriserve_backend.scheduler.tetris.compiled import compiled

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

TOLERANCE_S = 1e-9


@compiled
def split(times: Floats, free: Ints, length: int, at_s: float) -> tuple[int, int]:
    """Make an interval begin at `at_s` (≥ the first); its index and the new length."""
    index = 0
    while index < length and times[index] < at_s - TOLERANCE_S:
        index += 1
    if index < length and times[index] <= at_s + TOLERANCE_S:
        return index, length
    for i in range(length, index, -1):
        times[i] = times[i - 1]
        free[i] = free[i - 1]
    times[index] = at_s
    free[index] = free[index - 1]
    return index, length + 1


@compiled
def take(times: Floats, free: Ints, length: int, ranks: int, start_s: float, end_s: float) -> int:
    """Take `ranks` from `start_s` until `end_s`."""
    first, length = split(times, free, length, start_s)
    last, length = split(times, free, length, end_s)
    for i in range(first, last):
        free[i] -= ranks
    return length


@compiled
def is_free(times: Floats, free: Ints, length: int, ranks: int, end_s: float) -> bool:
    """Whether `ranks` are free from the beginning of the profile until `end_s`."""
    for i in range(length):
        if times[i] >= end_s - TOLERANCE_S:
            return True
        if free[i] < ranks:
            return False
    return True
