"""Which requests can be saved together, each with as many ranks at a time as it takes (Tetris with soft blocks).

A request may change its degree whenever the profile changes: splitting a segment costs one dispatch, which the
rates include. It takes the least level that meets its deadline: at each moment the widest degree that is free and
at most the level; one degree less once that is enough for the rest. So it costs the fewest GPU-seconds that the
deadline and the requests before it allow (the paper's §4.2.1, for a profile instead of an empty world).
"""

import math

import numpy as np
import numpy.typing as npt

from tetriserve_backend.scheduler.tetris.compiled import compiled
from tetriserve_backend.scheduler.tetris.profile import Floats, Ints, split

_WORK_TOLERANCE = 1e-9
_SECONDS_TOLERANCE = 1e-9


@compiled
def widest(degrees: Ints, level: int, free: int) -> int:
    """Index of the widest degree up to `level` that needs at most `free` ranks; -1 if none does."""
    index = -1
    for i in range(level + 1):
        if degrees[i] <= free:
            index = i
    return index


@compiled
def steps_within(times: Floats, free: Ints, first: int, last: int, degrees: Ints, rates: Floats, level: int) -> float:
    """Steps that a request can do in the intervals `first … last − 1` at degrees up to `level`."""
    steps = 0.0
    for i in range(first, last):
        index = widest(degrees, level, free[i])
        if index >= 0:
            steps += (times[i + 1] - times[i]) * rates[index]
    return steps


@compiled
def place(
    times: Floats,
    free: Ints,
    length: int,
    ready_s: float,
    due_s: float,
    steps: float,
    degrees: Ints,
    rates: Floats,
    num_degrees: int,
) -> tuple[int, float, int, float]:
    """Take what `steps` steps between `ready_s` and `due_s` need from the profile.

    Args:
        degrees: usable degrees, ascending; `rates` their steps per second, ascending too.

    Returns:
        New length, GPU-seconds (-1 if it cannot be done; the profile may be split but is not taken from),
        the degree of the first moment (0: it waits) and the end.
    """
    if due_s <= ready_s:
        return length, -1.0, 0, math.inf
    first, length = split(times, free, length, ready_s)
    last, length = split(times, free, length, due_s)
    level = 0
    while level < num_degrees:
        if steps_within(times, free, first, last, degrees, rates, level) >= steps - _WORK_TOLERANCE:
            break
        level += 1
    if level == num_degrees:
        return length, -1.0, 0, math.inf
    # Steps that only the level above the cheaper one brings; negative without a cheaper one: never enough.
    missing = steps
    if level > 0:
        missing = steps - steps_within(times, free, first, last, degrees, rates, level - 1)
    gpu_seconds, first_degree, end_s = 0.0, 0, ready_s
    i = first
    while i < last and steps > _WORK_TOLERANCE:
        wide = widest(degrees, level, free[i])
        narrow = widest(degrees, level - 1, free[i]) if level > 0 else wide
        use = wide if level == 0 or missing > _WORK_TOLERANCE else narrow
        if use < 0:
            i += 1
            continue
        seconds = times[i + 1] - times[i]
        part_s = seconds
        if use != narrow:
            gain = rates[wide] - (rates[narrow] if narrow >= 0 else 0.0)
            part_s = min(part_s, missing / gain)
            missing -= gain * part_s
        part_s = min(part_s, steps / rates[use])
        if part_s < _SECONDS_TOLERANCE:
            if use == narrow:
                break
            missing = 0.0
            continue
        if part_s < seconds - _SECONDS_TOLERANCE:
            _, length = split(times, free, length, times[i] + part_s)
            last += 1
        steps -= rates[use] * part_s
        gpu_seconds += degrees[use] * part_s
        free[i] -= degrees[use]
        if i == first:
            first_degree = degrees[use]
        i += 1
        end_s = times[i]
    return length, gpu_seconds, first_degree, end_s


@compiled
def pack(
    order: Ints,
    left_out: npt.NDArray[np.bool_],
    profile_times: Floats,
    profile_free: Ints,
    ready_s: Floats,
    due_s: Floats,
    steps: Floats,
    shapes: Ints,
    degrees: Ints,
    rates: Floats,
    num_degrees: Ints,
    gpu_seconds: Floats,
    first_degree: Ints,
    end_s: Floats,
    times: Floats,
    free: Ints,
) -> tuple[int, int, float]:
    """Place the requests in `order`, each where those before it leave room.

    `degrees`, `rates` and `num_degrees` have one row per shape, and `shapes` says which row is a request's. The
    result goes into `gpu_seconds` (-1: not saved), `first_degree`, `end_s` and the profile `times`, `free`.

    Returns:
        The profile's length, how many requests are saved, and their GPU-seconds.
    """
    length = len(profile_times)
    times[:length] = profile_times
    free[:length] = profile_free
    saved, total = 0, 0.0
    for request in order:
        gpu_seconds[request], first_degree[request], end_s[request] = -1.0, 0, math.inf
        if left_out[request]:
            continue
        shape = shapes[request]
        length, cost, degree, end = place(
            times, free, length, ready_s[request], due_s[request], steps[request],
            degrees[shape], rates[shape], num_degrees[shape],
        )  # fmt: skip
        if cost >= 0.0:
            gpu_seconds[request], first_degree[request], end_s[request] = cost, degree, end
            saved += 1
            total += cost
    return length, saved, total


@compiled
def choose(
    order: Ints,
    left_out: npt.NDArray[np.bool_],
    profile_times: Floats,
    profile_free: Ints,
    ready_s: Floats,
    due_s: Floats,
    steps: Floats,
    shapes: Ints,
    degrees: Ints,
    rates: Floats,
    num_degrees: Ints,
    gpu_seconds: Floats,
    first_degree: Ints,
    end_s: Floats,
    times: Floats,
    free: Ints,
    max_tries: int,
    candidates: int,
) -> int:
    """Pack, and give up the dearest of the saved where that saves more requests, or as many for less.

    In the spirit of Moore and Hodgson: when somebody cannot be placed, one of the `candidates` dearest saved
    requests is left out and all are packed again; better results are kept, `max_tries` packings in all.
    The result is that of `pack`; `left_out` tells who was given up. Returns the profile's length.
    """
    best_left_out = left_out.copy()
    length, saved, total = pack(
        order, left_out, profile_times, profile_free, ready_s, due_s, steps, shapes, degrees, rates, num_degrees,
        gpu_seconds, first_degree, end_s, times, free,
    )  # fmt: skip
    best_gpu_seconds = gpu_seconds.copy()
    tries, better = 1, True
    while better and tries < max_tries:
        better = False
        somebody_missed = False
        for request in range(len(gpu_seconds)):
            if best_gpu_seconds[request] < 0.0 and not best_left_out[request]:
                somebody_missed = True
        if not somebody_missed:
            break
        for request in np.argsort(-best_gpu_seconds)[:candidates]:
            if best_gpu_seconds[request] <= 0.0 or tries >= max_tries:
                continue
            tries += 1
            left_out[:] = best_left_out
            left_out[request] = True
            length, saved_now, total_now = pack(
                order, left_out, profile_times, profile_free, ready_s, due_s, steps, shapes, degrees, rates,
                num_degrees, gpu_seconds, first_degree, end_s, times, free,
            )  # fmt: skip
            if saved_now > saved or (saved_now == saved and total_now < total - _WORK_TOLERANCE):
                saved, total, better = saved_now, total_now, True
                best_left_out[:] = left_out
                best_gpu_seconds[:] = gpu_seconds
                break
    left_out[:] = best_left_out
    length, _, _ = pack(
        order, left_out, profile_times, profile_free, ready_s, due_s, steps, shapes, degrees, rates, num_degrees,
        gpu_seconds, first_degree, end_s, times, free,
    )  # fmt: skip
    return length
