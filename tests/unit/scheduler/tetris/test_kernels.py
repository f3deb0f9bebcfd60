"""The compiled kernels against the same thing done the slow and obvious way."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetriserve_backend.scheduler.tetris.arrays import (
    NUM_FACTS,
    NUM_FLOATS,
    NUM_INTS,
    Packing,
    Profile,
    Requests,
    ShapeTable,
    Speeds,
    make_profile,
)
from tetriserve_backend.scheduler.tetris.kernels import (
    choose,
    earliest_end,
    fill_profile,
    is_free,
    pack,
    place,
    plan_batches,
    split,
    take,
    try_place,
    widest,
)

DEGREES = (1, 2, 4, 8)
SPEEDS = (1.0, 1.8, 3.0, 4.5)
QUARTERS = st.integers(0, 40).map(lambda n: n / 4)
STEPPED = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 8)), min_size=1, max_size=6)


def speeds(*rates):
    return Speeds(np.array(DEGREES[: len(rates)]), np.array(rates))


def profile_of(stretches, *, room=200):
    """From (quarters of a second, free ranks) pairs; the last goes on for ever."""
    profile = make_profile(room)
    at_s = 0.0
    for index, (length, free) in enumerate(stretches):
        profile.times[index], profile.free[index] = at_s, free
        at_s += length / 4
    profile.size[0] = len(stretches)
    return profile


def free_at(profile: Profile, at_s: float) -> int:
    index = int(np.searchsorted(profile.times[: profile.size[0]], at_s + 1e-7, side="right")) - 1
    return int(profile.free[index])


def copy_of(profile):
    return Profile(*(column.copy() for column in profile))


@settings(derandomize=True, deadline=None)
@given(STEPPED, QUARTERS)
def test_splitting_changes_nothing_but_the_intervals(stretches, at_s):
    profile = profile_of(stretches)
    before = copy_of(profile)
    index = split(profile, at_s)
    assert profile.times[index] == at_s
    times = profile.times[: profile.size[0]]
    assert all(np.diff(times) > 0)
    assert all(free_at(profile, n / 8) == free_at(before, n / 8) for n in range(120))


@settings(derandomize=True, deadline=None)
@given(STEPPED, QUARTERS, QUARTERS, st.integers(1, 8))
def test_taking_ranks_takes_them_between_the_two_moments_alone(stretches, a, b, ranks):
    start_s, end_s = min(a, b), max(a, b)
    profile = profile_of(stretches)
    before = copy_of(profile)
    take(profile, ranks, start_s, end_s)
    for n in range(120):
        taken = ranks if start_s <= n / 8 < end_s else 0
        assert free_at(profile, n / 8) == free_at(before, n / 8) - taken


@settings(derandomize=True, deadline=None)
@given(STEPPED, QUARTERS, st.integers(1, 8))
def test_ranks_are_free_until_the_first_moment_at_which_they_are_not(stretches, end_s, ranks):
    profile = profile_of(stretches)
    expected = all(free_at(profile, n / 8) >= ranks for n in range(120) if n / 8 < end_s)
    assert is_free(profile, ranks, end_s) == expected


@pytest.mark.parametrize(("free", "expected"), [(0, -1), (1, 0), (3, 1), (7, 2), (9, 3)])
def test_the_widest_degree_that_is_free_is_taken(free, expected):
    assert widest(np.array(DEGREES), 4, free) == expected


def cheapest_by_brute_force(profile, ready_s, due_s, steps, cut_s):
    """Fewest GPU-seconds when each `cut_s` seconds run at one degree, or none; inf if it is never enough."""
    stretches = [ready_s + cut_s * n for n in range(round((due_s - ready_s) / cut_s))]
    choices = [[0, *(d for d in DEGREES if d <= free_at(profile, at_s))] for at_s in stretches]
    rate = dict(zip((0, *DEGREES), (0.0, *SPEEDS), strict=True))
    return min(
        (
            cut_s * sum(choice)
            for choice in itertools.product(*choices)
            if cut_s * sum(rate[degree] for degree in choice) >= steps - 1e-9
        ),
        default=math.inf,
    )


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 8)), min_size=1, max_size=4),
    st.integers(0, 3),
    st.integers(1, 5),
    st.floats(0.05, 6.0),
)
def test_a_placement_meets_its_deadline_for_no_more_than_any_other_choice_of_degrees(stretches, ready, length, steps):
    profile = profile_of(stretches)
    before = copy_of(profile)
    ready_s, due_s = ready / 4, (ready + length) / 4
    best = cheapest_by_brute_force(before, ready_s, due_s, steps, 0.25)
    cost, first_degree, until_s, end_s = place(profile, ready_s, due_s, (steps, speeds(*SPEEDS)), 0)
    assert (cost >= 0.0) == (best < math.inf), "exactly what can be in time is placed"
    if cost < 0.0:
        assert end_s == until_s == math.inf and first_degree == 0
        return
    assert cost <= best + 1e-6
    assert ready_s <= end_s <= due_s + 1e-9
    rate = dict(zip(DEGREES, SPEEDS, strict=True))
    times = [*profile.times[: profile.size[0]], 1e9]
    done, used = 0.0, 0.0
    for index, (start, end) in enumerate(itertools.pairwise(times)):
        took = free_at(before, start) - profile.free[index]
        assert took == 0 or (took in DEGREES and ready_s - 1e-9 <= start and end <= due_s + 1e-9)
        done += rate.get(int(took), 0.0) * (end - start) if took else 0.0
        used += took * (end - start) if took else 0.0
    assert done == pytest.approx(steps, abs=1e-6) and used == pytest.approx(cost, abs=1e-6)
    assert first_degree == free_at(before, ready_s) - free_at(profile, ready_s)
    changes = [at for at in times if at > ready_s and free_at(before, at) - free_at(profile, at) != first_degree]
    assert until_s == (pytest.approx(min(changes)) if first_degree else ready_s)


def test_two_alike_leave_everything_behind_their_deadline_free():
    """What rounding leaves of the second one's last step is no reason to take the interval that has no end."""
    rng = random.Random(1)
    for _ in range(300):
        now_s, length_s, steps = rng.uniform(1e6, 2e6), rng.uniform(0.5, 4.0), rng.uniform(0.5, 12.0)
        quick = speeds(10.0, 18.0, 30.0, 45.0)
        profile = profile_of([(1, 8)])
        profile.times[0] = now_s
        for _ in range(2):
            _, _, _, end_s = place(profile, now_s, now_s + length_s, (10.0 * steps, quick), 0)
            assert end_s == math.inf or end_s <= now_s + length_s + 1e-6
        assert profile.free[profile.size[0] - 1] == 8


@settings(derandomize=True, deadline=None, max_examples=100)
@given(STEPPED, st.integers(0, 3), st.integers(1, 12), st.floats(0.05, 6.0), st.integers(1, 4))
def test_as_wide_as_it_goes_ends_no_later_and_is_chosen_only_where_that_is_in_time(
    stretches, ready, length, steps, level
):
    narrow, wide = profile_of(stretches), profile_of(stretches)
    ready_s, due_s = ready / 4, (ready + length) / 4
    cheap = place(narrow, ready_s, due_s, (steps, speeds(*SPEEDS)), 0)
    eager = place(wide, ready_s, due_s, (steps, speeds(*SPEEDS)), level)
    assert (eager[0] >= 0.0) == (cheap[0] >= 0.0)
    if level == len(SPEEDS):
        assert eager[3] <= cheap[3] + 1e-9
    assert (wide.free[: wide.size[0]] >= 0).all()


def test_trying_leaves_the_profile_as_it_is():
    profile = profile_of([(4, 3), (4, 8)])
    before, scratch = copy_of(profile), make_profile(50)
    tried = try_place(profile, scratch, 0.0, 2.0, (2.5, *speeds(*SPEEDS)))
    assert all((a == b).all() for a, b in zip(profile, before, strict=True))
    assert tried == place(profile, 0.0, 2.0, (2.5, speeds(*SPEEDS)), 0)
    assert (profile.free[: profile.size[0]] == scratch.free[: scratch.size[0]]).all()


def test_the_earliest_end_is_as_wide_as_it_goes():
    one = speeds(1.0, 2.0)
    assert earliest_end(profile_of([(4, 0), (4, 1), (1, 2)]), 0.0, 2.0, one) == pytest.approx(2.5)
    assert earliest_end(profile_of([(4, 2), (1, 0)]), 0.5, 0.5, one) == pytest.approx(0.75)
    assert earliest_end(profile_of([(4, 2), (1, 0)]), 0.5, 1.5, one) == math.inf


REQUEST = st.tuples(QUARTERS, st.integers(1, 16).map(lambda n: n / 4), st.floats(0.1, 8.0), st.integers(0, 1))
CROWD = st.lists(REQUEST, min_size=1, max_size=9)
TABLE = ShapeTable(np.array([DEGREES, (1, 2, 0, 0)]), np.array([SPEEDS, (2.0, 2.5, 0.0, 0.0)]), np.array([4, 2]))


def crowd_of(entries):
    ready_s = np.array([entry[0] for entry in entries])
    due_s = ready_s + [entry[1] for entry in entries]
    return Requests(
        np.argsort(due_s, kind="stable"),
        np.zeros(len(entries), np.int64),
        ready_s,
        due_s,
        np.array([entry[2] for entry in entries]),
        np.array([entry[3] for entry in entries]),
        np.ones(len(entries), np.int64),
        np.zeros(len(entries), np.int64),
    )


def empty_packing(count):
    return Packing(np.zeros(count), np.zeros(count, np.int64), np.zeros(count), np.zeros(count), make_profile(300))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(CROWD, STEPPED)
def test_a_packing_never_takes_more_than_is_free_and_is_each_request_in_turn(entries, stretches):
    requests, start, packing = crowd_of(entries), profile_of(stretches), empty_packing(len(entries))
    saved, total = pack(requests, TABLE, start, packing)
    left = packing.left
    assert (left.free[: left.size[0]] >= 0).all(), "at no moment more than is free"
    own = copy_of(start)
    for index in requests.order:
        rows = TABLE.num_degrees[requests.shapes[index]]
        shape = Speeds(*(column[requests.shapes[index], :rows] for column in TABLE[:2]))
        alone = place(own, requests.ready_s[index], requests.due_s[index], (requests.steps[index], shape), 0)
        assert alone == tuple(column[index] for column in packing[:4])
    assert saved == int((packing.gpu_seconds >= 0).sum())
    assert total == pytest.approx(packing.gpu_seconds[packing.gpu_seconds >= 0].sum())
    gone = sum(
        (min(b, 100.0) - a) * (free_at(start, a) - free_at(left, a))
        for a, b in itertools.pairwise([*left.times[: left.size[0]], 100.0])
        if b > a
    )
    assert gone == pytest.approx(total, abs=1e-6)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(CROWD, STEPPED, st.integers(1, 12), st.integers(1, 4))
def test_giving_up_the_dearest_never_saves_fewer(entries, stretches, tries, width):
    start = profile_of(stretches)
    plain, chosen = empty_packing(len(entries)), empty_packing(len(entries))
    saved, total = pack(crowd_of(entries), TABLE, start, plain)
    requests = crowd_of(entries)
    choose(requests, TABLE, start, chosen, (tries, width))
    now = chosen.gpu_seconds[chosen.gpu_seconds >= 0]
    assert len(now) > saved or (len(now) == saved and now.sum() <= total + 1e-9)
    assert not (requests.left_out & (chosen.gpu_seconds >= 0)).any()
    assert (chosen.left.free[: chosen.left.size[0]] >= 0).all()


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(REQUEST, min_size=9, max_size=40), STEPPED, st.integers(2, 20), st.integers(1, 6))
def test_packings_tried_from_a_mark_are_what_packing_from_the_first_request_gives(entries, stretches, tries, width):
    start, requests = profile_of(stretches), crowd_of(entries)
    chosen, anew = empty_packing(len(entries)), empty_packing(len(entries))
    choose(requests, TABLE, start, chosen, (tries, width))
    pack(requests, TABLE, start, anew)
    length = int(chosen.left.size[0])
    assert all(np.array_equal(*both) for both in zip(chosen[:4], anew[:4], strict=True))
    assert anew.left.size[0] == length
    assert np.array_equal(chosen.left.times[:length], anew.left.times[:length])
    assert np.array_equal(chosen.left.free[:length], anew.left.free[:length])


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(QUARTERS, max_size=8), st.integers(0, 4), QUARTERS)
def test_ranks_that_return_are_free_from_then_on_and_those_that_should_have_at_once(returns_s, idle, origin_s):
    profile = make_profile(len(returns_s) + 1)
    fill_profile(profile, idle, np.array(returns_s, float), origin_s)
    times = profile.times[: profile.size[0]]
    assert times[0] == 0.0 and all(np.diff(times) > 0)
    for n in range(100):
        back = sum(return_s <= origin_s + n / 8 + 1e-7 for return_s in returns_s)
        assert free_at(profile, n / 8) == idle + back


@settings(derandomize=True, deadline=None, max_examples=60)
@given(CROWD, st.integers(1, 8), st.integers(0, 3), QUARTERS)
def test_a_whole_plan_is_a_choice_among_those_who_can_be_in_time_on_ranks_of_their_own(entries, idle, busy, origin_s):
    count, returns_s = len(entries), np.array([origin_s + n / 2 for n in range(1, busy + 1)], float)
    by_hand, expected = crowd_of(entries), empty_packing(count)
    fastest = np.array([TABLE.rates[row, TABLE.num_degrees[row] - 1] for row in by_hand.shapes])
    by_hand.left_out[:] = by_hand.ready_s + by_hand.steps / fastest > by_hand.due_s + 1e-9
    start = make_profile(busy + 1)
    fill_profile(start, idle, returns_s, origin_s)
    worth = choose(by_hand, TABLE, start, expected, (6, 2))

    columns = by_hand.ready_s + origin_s, by_hand.due_s + origin_s, by_hand.steps, by_hand.shapes, by_hand.weights
    # In other places than their order, as they are found when some are known longer than others.
    facts, places = np.zeros((count + 3, NUM_FACTS)), np.arange(count + 2, 2, -1)
    facts[places] = np.array(columns).T
    plan = np.empty((NUM_FLOATS, count)), np.empty((NUM_INTS, count), np.int64)
    results = ((*make_profile(busy + 1),), (*make_profile(300),), *plan)
    found = plan_batches((facts, places), (*TABLE,), (idle, returns_s, origin_s), (6, 2), results)
    assert found == pytest.approx(worth)
    assert np.allclose(plan[0][3], expected.gpu_seconds) and np.allclose(plan[0][4:], expected[2:4])
    assert np.array_equal(plan[1][5], expected.first_degree)


def test_a_narrow_request_is_widened_where_that_makes_room_for_a_wide_group():
    """On one rank for all of its second the first would keep the other from its eight ranks."""
    start, packing = profile_of([(1, 8)]), empty_packing(2)
    requests = crowd_of([(0.0, 1.0, 2.0, 1), (0.0, 1.25, 4.3, 0)])
    assert pack(requests, TABLE, start, packing)[0] == 1
    choose(requests, TABLE, start, packing, (6, 2))
    assert (packing.gpu_seconds >= 0).all() and requests.levels[0] == 2


def test_one_dear_request_is_given_up_for_two_cheap_ones():
    start, packing = profile_of([(1, 8)]), empty_packing(3)
    requests = crowd_of([(0.0, 1.0, 4.4, 0), (0.0, 1.25, 3.0, 0), (0.0, 1.25, 3.0, 0)])
    assert pack(requests, TABLE, start, packing)[0] == 1
    choose(requests, TABLE, start, packing, (6, 2))
    assert (packing.gpu_seconds >= 0).tolist() == [False, True, True]
