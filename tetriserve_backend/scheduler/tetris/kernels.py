"""Which requests can be saved together, each with as many ranks at a time as it takes (Tetris with soft blocks).

A request may change its degree whenever the profile changes: splitting a segment costs one dispatch, which the
rates include. It takes the least level that meets its deadline: at each moment the widest degree that is free and
at most the level; one degree less once that is enough for the rest. So it costs the fewest GPU-seconds that the
deadline and the requests before it allow (the paper's §4.2.1, for a profile instead of an empty world).

Everything here is compiled, and in one file: the cache of compiled code notices a change of the file that it
was made from, not of others.
"""

import math

import numpy as np

from tetriserve_backend.scheduler.tetris.arrays import (
    Bare,
    Floats,
    Ints,
    Marks,
    Packing,
    Profile,
    Requests,
    ShapeTable,
    Speeds,
    Started,
)
from tetriserve_backend.scheduler.tetris.compiled import compiled

TOLERANCE_S = 1e-9
"""Moments closer than this are one."""

_STEPS_TOLERANCE = 1e-9

_SHORTEST_STRIDE, _MOST_MARKS = 8, 16
"""Requests between two marks, at least, and marks, at most: each is a copy of the profile."""


@compiled
def copy_profile(given: Profile, target: Profile) -> None:
    """Make `target` the same as `given`; it needs room for that."""
    length = given.size[0]
    target.times[:length] = given.times[:length]
    target.free[:length] = given.free[:length]
    target.size[0] = length


@compiled
def split(profile: Profile, at_s: float) -> int:
    """Make an interval begin at `at_s` (not before the first); its index."""
    times, free, size = profile.times, profile.free, profile.size
    length = size[0]
    index = int(np.searchsorted(times[:length], at_s - TOLERANCE_S))
    if index < length and times[index] <= at_s + TOLERANCE_S:
        return index
    for i in range(length, index, -1):
        times[i] = times[i - 1]
        free[i] = free[i - 1]
    times[index] = at_s
    free[index] = free[index - 1]
    size[0] = length + 1
    return index


@compiled
def take(profile: Profile, ranks: int, start_s: float, end_s: float) -> None:
    """Take `ranks` from `start_s` until `end_s`; whether they are free is the caller's concern."""
    first = split(profile, start_s)
    last = split(profile, end_s)
    for i in range(first, last):
        profile.free[i] -= ranks


@compiled
def is_free(profile: Profile, ranks: int, end_s: float) -> bool:
    """Whether `ranks` are free from the beginning of the profile until `end_s`."""
    for i in range(profile.size[0]):
        if profile.times[i] >= end_s - TOLERANCE_S:
            return True
        if profile.free[i] < ranks:
            return False
    return True


@compiled
def widest(degrees: Ints, count: int, free: int) -> int:
    """Index of the widest of the first `count` degrees (ascending) that needs at most `free` ranks; -1 if none does."""
    index = -1
    for i in range(count):
        if degrees[i] <= free:
            index = i
    return index


@compiled
def steps_by_level(profile: Profile, ready_s: float, due_s: float, speeds: Speeds) -> Floats:
    """Steps that a request can do between two moments, as wide as is free: entry `n` of its first `n` degrees alone."""
    times, free, length = profile.times, profile.free, profile.size[0]
    levels = len(speeds.degrees)
    steps = np.zeros(levels + 1)
    i = max(0, int(np.searchsorted(times[:length], ready_s, side="right")) - 1)
    while i < length and times[i] < due_s:
        end_s = min(times[i + 1], due_s) if i + 1 < length else due_s
        seconds = end_s - max(times[i], ready_s)
        rate = 0.0
        for level in range(levels):
            if speeds.degrees[level] <= free[i]:
                rate = speeds.rates[level]
            steps[level + 1] += seconds * rate
        i += 1
    return steps


@compiled
def place(
    profile: Profile, ready_s: float, due_s: float, work: tuple[float, Speeds], level: int
) -> tuple[float, int, float, float]:
    """Take what `work` (steps, speeds) between `ready_s` and `due_s` needs from the profile.

    As narrow as the deadline allows; with a `level`, as wide as is free of the first `level` degrees, if that is
    enough: dearer, and sooner out of the way of wide groups.

    Returns:
        GPU-seconds (-1 if it cannot be done), the degree of the first moment (0: it waits), until when it keeps
        that, and the end, as in `Packing`.
    """
    if due_s <= ready_s:
        return -1.0, 0, math.inf, math.inf
    steps, speeds = work
    within = steps_by_level(profile, ready_s, due_s, speeds)
    if level > 0 and within[level] >= steps - _STEPS_TOLERANCE:
        return take_level(profile, split(profile, ready_s), work, level, math.inf)
    for count in range(1, len(within)):
        if within[count] >= steps - _STEPS_TOLERANCE:
            return take_level(profile, split(profile, ready_s), work, count, steps - within[count - 1])
    return -1.0, 0, math.inf, math.inf


@compiled
def earliest_end(profile: Profile, ready_s: float, steps: float, speeds: Speeds) -> float:
    """When `steps` steps from `ready_s` on could end in what is free, as wide as it goes; inf if never."""
    for i in range(profile.size[0]):
        last = i + 1 == profile.size[0]
        start_s = max(profile.times[i], ready_s)
        index = widest(speeds.degrees, len(speeds.degrees), profile.free[i])
        if index < 0 or (not last and profile.times[i + 1] <= start_s):
            continue
        end_s = start_s + steps / speeds.rates[index]
        if last or end_s <= profile.times[i + 1]:
            return float(end_s)
        steps -= (profile.times[i + 1] - start_s) * speeds.rates[index]
    return math.inf


@compiled
def take_level(
    profile: Profile, first: int, work: tuple[float, Speeds], count: int, missing: float
) -> tuple[float, int, float, float]:
    """Take `work`, for which there is room, from interval `first` on; the last of `count` degrees only while it must.

    The `missing` steps that the degrees before the last would fall short of are done first, as wide as is free;
    the rest without the last degree. Returns what `place` returns.
    """
    steps, speeds = work
    times, free, size = profile.times, profile.free, profile.size
    gpu_seconds, first_degree, until_s, end_s = 0.0, 0, times[first], times[first]
    i = first
    while i < size[0] and steps > _STEPS_TOLERANCE:
        wide, narrow = widest(speeds.degrees, count, free[i]), widest(speeds.degrees, count - 1, free[i])
        use = wide if missing > _STEPS_TOLERANCE else narrow
        seconds = times[i + 1] - times[i] if i + 1 < size[0] else math.inf
        if use < 0 or seconds < TOLERANCE_S:
            i += 1
            continue
        part_s = min(seconds, steps / speeds.rates[use])
        if part_s < TOLERANCE_S:
            # What rounding leaves of the last step must not take a whole interval.
            break
        if use != narrow:
            gain = speeds.rates[wide] - (speeds.rates[narrow] if narrow >= 0 else 0.0)
            part_s = min(part_s, missing / gain)
            missing -= gain * part_s
            if part_s < TOLERANCE_S:
                missing = 0.0
                continue
        if part_s < seconds - TOLERANCE_S:
            split(profile, times[i] + part_s)
        steps -= speeds.rates[use] * part_s
        gpu_seconds += speeds.degrees[use] * part_s
        free[i] -= speeds.degrees[use]
        if i == first:
            first_degree = speeds.degrees[use]
        if times[i] == until_s and speeds.degrees[use] == first_degree:
            until_s = times[i + 1]
        i += 1
        end_s = times[i]
    return gpu_seconds, first_degree, until_s, end_s


@compiled
def pack(requests: Requests, table: ShapeTable, start: Profile, packing: Packing) -> tuple[int, float]:
    """Place the requests in their order, each where those before it leave room.

    Args:
        requests: whom to place.
        table: what shapes cost.
        start: what is free before.
        packing: the result; its profile needs room for four more intervals per request and twice those of `start`.

    Returns:
        How many requests are saved, and their GPU-seconds.
    """
    copy_profile(start, packing.left)
    place_some(requests, table, packing, 0, len(requests.order))
    return worth(requests, packing)


@compiled
def place_some(requests: Requests, table: ShapeTable, packing: Packing, first: int, last: int) -> None:
    """The part of `pack` that places the requests at positions `first` to `last` (not included) of the order."""
    left = packing.left
    for position in range(first, last):
        request = requests.order[position]
        cost, degree, until_s, end_s = -1.0, 0, math.inf, math.inf
        if not requests.left_out[request]:
            shape = requests.shapes[request]
            num_degrees = table.num_degrees[shape]
            speeds = Speeds(table.degrees[shape, :num_degrees], table.rates[shape, :num_degrees])
            work = (requests.steps[request], speeds)
            cost, degree, until_s, end_s = place(
                left, requests.ready_s[request], requests.due_s[request], work, requests.levels[request]
            )
        packing.gpu_seconds[request], packing.first_degree[request] = cost, degree
        packing.until_s[request], packing.end_s[request] = until_s, end_s


@compiled
def worth(requests: Requests, packing: Packing) -> tuple[int, float]:
    """How many requests a packing saves, and their GPU-seconds."""
    saved, total = 0, 0.0
    for request in requests.order:
        if packing.gpu_seconds[request] >= 0.0:
            saved += requests.weights[request]
            total += packing.gpu_seconds[request]
    return saved, total


@compiled
def requests_in(floats: Floats, ints: Ints) -> Requests:
    """The requests of a plan, as parts of its arrays."""
    return Requests(ints[0], ints[1], floats[0], floats[1], floats[2], ints[2], ints[3], ints[4])


@compiled
def packing_in(floats: Floats, ints: Ints, left: Profile) -> Packing:
    """The packing of a plan, as parts of its arrays."""
    return Packing(floats[3], ints[5], floats[4], floats[5], left)


@compiled
def fill_profile(profile: Profile, idle: int, returns_s: Floats, origin_s: float) -> None:
    """What is free before anything is planned, in seconds from `origin_s` on: `idle` ranks, and those that return."""
    times, free = profile.times, profile.free
    times[0], free[0] = 0.0, idle
    last = 0
    for return_s in np.sort(returns_s):
        at_s = return_s - origin_s
        if at_s > times[last]:
            times[last + 1], free[last + 1] = at_s, free[last]
            last += 1
        free[last] += 1
    profile.size[0] = last + 1


@compiled
def fill_requests(requests: Requests, table: ShapeTable, facts: Floats, places: Ints, origin_s: float) -> None:
    """What waits, by its facts at these places; what is too late even on ranks of its own is left out."""
    for i in range(len(places)):
        fact = facts[places[i]]
        steps, shape = fact[2], int(fact[3])
        requests.ready_s[i], requests.due_s[i] = max(fact[0] - origin_s, 0.0), fact[1] - origin_s
        requests.steps[i], requests.shapes[i], requests.weights[i], requests.levels[i] = steps, shape, int(fact[4]), 0
        slack_s = requests.due_s[i] - requests.ready_s[i] - steps / table.rates[shape, table.num_degrees[shape] - 1]
        requests.left_out[i] = slack_s < -TOLERANCE_S
    requests.order[:] = np.argsort(requests.due_s, kind="mergesort")


@compiled
def leaves_free(left: Bare, ranks: int, end_s: float) -> bool:
    """`is_free`, for Python."""
    return is_free(Profile(left[0], left[1], left[2]), ranks, end_s)


@compiled
def take_now(left: Bare, ranks: int, end_s: float) -> None:
    """`take` from the beginning of the profile on, for Python."""
    take(Profile(left[0], left[1], left[2]), ranks, left[0][0], end_s)


@compiled
def try_place(
    left: Bare, scratch: Bare, ready_s: float, due_s: float, work: tuple[float, Ints, Floats]
) -> tuple[float, int, float, float]:
    """What `place` would return for `work` (steps, degrees, rates); `scratch` has the result, `left` stays as it is."""
    given, target = Profile(left[0], left[1], left[2]), Profile(scratch[0], scratch[1], scratch[2])
    copy_profile(given, target)
    steps, degrees, rates = work
    return place(target, max(ready_s, given.times[0]), due_s, (steps, Speeds(degrees, rates)), 0)


@compiled
def plan_batches(
    known: tuple[Floats, Ints],
    table: tuple[Ints, Floats, Ints],
    ranks: tuple[int, Floats, float],
    effort: tuple[int, int],
    results: tuple[Bare, Bare, Floats, Ints],
) -> tuple[int, float]:
    """`choose` with all that comes before it, in one call from Python, which costs more than most plans.

    Args:
        known: facts of batches, one row each, and the places of those that are to be planned.
        table: the columns of a `ShapeTable`.
        ranks: how many are idle, when the others return, and when the plan begins, in seconds of the clock.
        effort: as for `choose`.
        results: what is filled: the profile of what is free before, that of what the plan leaves, with room as `pack`
            needs it, and the arrays of the plan, one column per batch.

    Returns:
        How many requests are saved, and their GPU-seconds.
    """
    facts, places = known
    idle, returns_s, origin_s = ranks
    start, left, floats, ints = Profile(*results[0]), Profile(*results[1]), results[2], results[3]
    shapes, requests = ShapeTable(*table), requests_in(floats, ints)
    fill_profile(start, idle, returns_s, origin_s)
    fill_requests(requests, shapes, facts, places, origin_s)
    return choose(requests, shapes, start, packing_in(floats, ints, left), effort)


@compiled
def saved_behind(plan: tuple[Floats, Ints], table: ShapeTable, given: Profile, started: Started) -> int:
    """How many requests are saved in the order of a plan if these segments start at the beginning of `given`."""
    floats, ints = plan[0].copy(), plan[1].copy()
    requests, done = requests_in(floats, ints), 0
    room = 2 * (len(given.times) + 2 * len(started.indices)) + 4 * len(requests.order) + 8
    start = Profile(np.empty(room), np.empty(room, np.int64), np.empty(1, np.int64))
    left = Profile(np.empty(room), np.empty(room, np.int64), np.empty(1, np.int64))
    copy_profile(given, start)
    for i in range(len(started.indices)):
        request, end_s = started.indices[i], started.ends_s[i]
        take(start, started.degrees[i], start.times[0], end_s)
        requests.ready_s[request] = end_s
        requests.steps[request] -= started.num_steps[i]
        if requests.steps[request] <= 0.0:
            requests.left_out[request] = 1
            if end_s <= requests.due_s[request]:
                done += requests.weights[request]
    return done + pack(requests, table, start, packing_in(floats, ints, left))[0]


@compiled
def like(packing: Packing) -> Packing:
    """Another packing of the same size, with nothing in it yet."""
    left = packing.left
    return Packing(
        np.empty_like(packing.gpu_seconds),
        np.empty_like(packing.first_degree),
        np.empty_like(packing.until_s),
        np.empty_like(packing.end_s),
        Profile(np.empty_like(left.times), np.empty_like(left.free), np.zeros(1, np.int64)),
    )


@compiled
def pack_from(mark: int, requests: Requests, table: ShapeTable, packing: Packing, marks: Marks) -> tuple[int, float]:
    """Place what comes behind a mark anew, and set the marks behind it; those before it have been placed.

    Returns what `pack` returns.
    """
    count, stride = len(requests.order), marks.stride
    copy_profile(profile_at(marks, mark), packing.left)
    for number in range(mark, len(marks.sizes)):
        copy_profile(packing.left, profile_at(marks, number))
        place_some(requests, table, packing, number * stride, min((number + 1) * stride, count))
    return worth(requests, packing)


@compiled
def profile_at(marks: Marks, number: int) -> Profile:
    """The profile that is kept at a mark."""
    return Profile(marks.times[number], marks.free[number], marks.sizes[number])


@compiled
def choose(
    requests: Requests, table: ShapeTable, start: Profile, packing: Packing, effort: tuple[int, int]
) -> tuple[int, float]:
    """Pack, and where somebody cannot be placed, change one thing about the saved and pack again; keep what is better.

    First one of them is made as wide as it goes: a narrow request that takes few ranks for long keeps wide
    groups from forming. If that saves nobody more, one of the dearest is given up (in the spirit of Moore and
    Hodgson), where that saves more requests, or as many for less. `effort` says how many packings in all, and
    how many of the dearest may be given up in turn. Arguments and results are those of `pack`;
    `requests.left_out` and `requests.levels` tell what was changed. A change concerns only what comes behind it in
    the order, so a packing is tried from the mark before it.
    """
    left_out, levels, order = requests.left_out, requests.levels, requests.order
    max_tries, width = effort
    stride = max(_SHORTEST_STRIDE, -(-len(order) // _MOST_MARKS))
    room, num_marks = len(packing.left.times), -(-len(order) // stride)
    marks = Marks(
        stride,
        np.empty((num_marks, room)),
        np.empty((num_marks, room), np.int64),
        np.empty((num_marks, 1), np.int64),
    )
    copy_profile(start, profile_at(marks, 0))
    saved, total = pack_from(0, requests, table, packing, marks)
    tries, better = 1, True
    if max_tries == 1 or not np.any((packing.gpu_seconds < 0.0) & (left_out == 0)):
        return saved, total
    mark_of = np.empty_like(order)
    mark_of[order] = np.arange(len(order)) // stride
    tried = like(packing)
    while better and tries < max_tries and np.any((packing.gpu_seconds < 0.0) & (left_out == 0)):
        better = False
        dearest = np.argsort(-packing.gpu_seconds / requests.weights)[:width]
        for change in range(2 * len(dearest)):
            request, widens = dearest[change % len(dearest)], change < len(dearest)
            num_degrees, level = table.num_degrees[requests.shapes[request]], levels[request]
            if widens and num_degrees in (1, level):
                continue
            if packing.gpu_seconds[request] <= 0.0 or tries >= max_tries:
                continue
            if widens:
                levels[request] = num_degrees
            else:
                left_out[request] = 1
            tries += 1
            mark = mark_of[request]
            tried.gpu_seconds[:] = packing.gpu_seconds
            copy_profile(profile_at(marks, mark), tried.left)
            place_some(requests, table, tried, mark * stride, len(order))
            saved_now, total_now = worth(requests, tried)
            cheaper = saved_now == saved and total_now < total - _STEPS_TOLERANCE
            if saved_now > saved or (cheaper and not widens):
                saved, total = pack_from(mark, requests, table, packing, marks)
                better = True
                break
            levels[request], left_out[request] = level, 0
    return saved, total
