"""When a slow rank gets no work, for how long, and what it takes to send it back."""

import pytest

from tetriserve_backend.engine.rank_speeds import SlowRanks
from tetriserve_backend.engine.resting_ranks import RestingRanks

REST_S = 300.0


def known(**suspects) -> SlowRanks:
    """`r3=2.0`: rank 3 is twice as slow; `r2_3=2.0`: rank 2 or rank 3 is."""
    named = {tuple(int(rank) for rank in name[1:].split("_")): ratio for name, ratio in suspects.items()}
    return SlowRanks((1.0,) * 4, named)


class Watch:
    def __init__(self, limit=1.6):
        self.resting, self.now_s = RestingRanks(limit, min_samples=20), 0.0

    def see(self, speeds, *, for_s=0.0, samples=50) -> tuple[set[int], list[int]]:
        """Who rests, and who was tried again, after reviews once a second."""
        back = []
        for second in range(int(for_s) + 1):
            back += self.resting.review(speeds, dict.fromkeys(range(4), samples), self.now_s + second)
        self.now_s += for_s
        return set(self.resting.ranks), back


def test_a_rank_rests_that_was_too_slow_for_ten_seconds_on_end():
    watch = Watch()
    assert watch.see(known(r3=2.0), for_s=9) == (set(), [])
    assert watch.see(known(r3=2.0), for_s=1) == ({3}, [])


def test_a_hiccup_costs_no_rank_its_work():
    watch = Watch()
    for _ in range(5):
        watch.see(known(r3=5.0), for_s=9)
        watch.see(known(), for_s=1)
    assert not watch.resting.ranks


@pytest.mark.parametrize("speeds", [known(r3=1.5), known(r2_3=4.0), known()])
def test_a_rank_that_is_not_so_slow_or_only_suspected_goes_on(speeds):
    assert Watch().see(speeds, for_s=60) == (set(), [])


def test_a_rank_of_which_little_was_seen_goes_on():
    assert Watch().see(known(r3=4.0), for_s=60, samples=19) == (set(), [])


def test_no_limit_lets_no_rank_rest():
    assert Watch(limit=None).see(known(r3=9.0), for_s=60) == (set(), [])


def test_a_rank_is_tried_again_and_stays_if_it_is_as_fast_as_the_others():
    watch = Watch()
    watch.see(known(r3=2.0), for_s=10)
    assert watch.see(known(r3=2.0), for_s=REST_S - 1) == ({3}, [])
    assert watch.see(known(r3=2.0), for_s=1) == (set(), [3])
    assert watch.see(known(), for_s=1000) == (set(), [])


def test_a_rank_that_is_still_slow_rests_twice_as_long_and_a_slow_group_is_enough_to_tell():
    watch = Watch()
    watch.see(known(r3=2.0), for_s=10)
    watch.see(known(), for_s=REST_S)
    assert watch.see(known(r2_3=2.0), samples=3) == (set(), [])
    assert watch.see(known(r2_3=2.0), samples=4) == ({3}, []), "rank 2 has a clean record"
    assert watch.see(known(), for_s=2 * REST_S - 1) == ({3}, [])
    assert watch.see(known(), for_s=1) == (set(), [3])


def test_no_rest_is_longer_than_eighty_minutes():
    watch = Watch()
    watch.see(known(r3=2.0), for_s=10)
    for _ in range(8):
        watch.see(known(), for_s=6000)
        watch.see(known(r3=2.0))
    assert watch.see(known(), for_s=4799) == ({3}, [])
    assert watch.see(known(), for_s=1) == (set(), [3])


def test_a_new_worker_has_a_clean_record():
    watch = Watch()
    watch.see(known(r3=2.0), for_s=10)
    watch.resting.forget(3)
    assert watch.see(known(r3=2.0), for_s=9) == (set(), [])
