"""One slow rank makes all look slow that work with it: what may be said of whom."""

import math
import random

import pytest

from tetriserve_backend.engine.rank_speeds import RankSpeeds

PAIR, QUAD = (2, 3), (0, 1, 2, 3)


def speeds(*seen, times=12, ranks=8):
    """What eight ranks are told to be after groups took so many times as long as usual, several times each."""
    found = RankSpeeds(ranks, half_life=16.0)
    for _ in range(times):
        for group, ratio in seen:
            found.add(group, ratio)
    return found


def alone(*ranks, ratio=1.0):
    return [((rank,), ratio) for rank in ranks]


@pytest.mark.parametrize("ratio", [1.3, 2.0, 4.0, 10.0])
def test_a_slow_rank_is_known_by_its_whole_ratio(ratio):
    found = speeds(*alone(0, 1, 2), *alone(3, ratio=ratio), times=100).relative()
    assert found.ratios[3] == pytest.approx(ratio, rel=0.06)
    assert found.suspects == {(3,): found.ratios[3]}
    assert found.ratios[:3] == (1.0, 1.0, 1.0)


def test_single_outliers_say_nothing():
    found = speeds(*alone(0, 1, 2, 3), times=20)
    found.add((3,), 50.0)
    assert found.relative().ratios[3] < 1.05


def test_of_ranks_that_were_only_seen_together_the_last_counts_as_the_slow_one_and_all_are_suspected():
    found = speeds((PAIR, 2.0), ((0, 1), 1.0), ((4, 5), 1.0)).relative()
    assert found.ratios[2] == 1.0 and found.ratios[3] == pytest.approx(2.0, rel=0.05)
    assert found.suspects == {PAIR: found.ratios[3]}


@pytest.mark.parametrize("slow", PAIR)
def test_what_one_of_them_does_alone_shows_which_it_is(slow):
    seen = [(PAIR, 2.0), ((0, 1), 1.0), *alone(0, 2)]
    found = speeds(*((group, 2.0 if slow in group else ratio) for group, ratio in seen)).relative()
    assert set(found.suspects) == {(slow,)}
    assert [found.ratios[rank] for rank in PAIR] == [
        pytest.approx(2.0 if rank == slow else 1.0, rel=0.05) for rank in PAIR
    ]


def test_groups_of_a_rank_that_is_known_to_be_slow_accuse_nobody_else():
    found = speeds(*alone(0), *alone(3, ratio=4.0), (QUAD, 4.0), ((4, 5, 6, 7), 1.0)).relative()
    assert set(found.suspects) == {(3,)} and found.ratios[3] == pytest.approx(4.0, rel=0.2)
    assert [found.ratios[rank] for rank in (1, 2)] == [1.0, 1.0]


def test_a_rank_is_as_slow_as_its_fastest_group():
    found = speeds(*alone(0, 1), *alone(3, ratio=3.0), ((0, 1), 1.0), (PAIR, 1.5)).relative()
    assert found.ratios[3] == pytest.approx(1.5, rel=0.05)


def test_a_size_of_which_one_group_was_seen_tells_nothing():
    everybody = tuple(range(8))
    assert speeds((everybody, 3.0), (PAIR, 2.0), *alone(5, ratio=4.0)).relative().ratios == (1.0,) * 8


def test_of_two_groups_the_faster_is_as_it_should_be():
    assert speeds(*alone(0), *alone(1, ratio=2.0), ranks=2).relative().ratios == (1.0, pytest.approx(2.0, rel=0.06))


def test_a_rank_that_is_forgotten_is_as_fast_as_the_others_until_it_is_measured():
    found = speeds(*alone(0, 1, 2), *alone(3, ratio=2.0), (PAIR, 2.0), ((0, 1), 1.0))
    found.forget(3)
    assert found.relative().ratios == (1.0,) * 8 and found.samples(3) == 0 and found.samples(2) > 0


def test_noise_accuses_nobody():
    draw, found = random.Random(1), RankSpeeds(8, half_life=16.0)
    for _ in range(2000):
        size = draw.choice([1, 1, 2, 4, 8])
        start = draw.randrange(0, 8, size)
        found.add(range(start, start + size), math.exp(draw.gauss(0.0, 0.05)))
    assert all(abs(ratio - 1.0) < 0.06 for ratio in found.relative().ratios)
