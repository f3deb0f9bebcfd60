"""When a slow rank gets no work, for how long, and what it takes to send it back."""

import pytest

from tetriserve_backend.engine.quarantine import Quarantine
from tetriserve_backend.engine.rank_speeds import Evidence

TERM_S = 300.0


class Watch:
    """Reviews once a second, of ranks that are as slow as said, each with one more segment a second."""

    def __init__(self, *, world_size=8, limit=2.0, wide=True):
        self.quarantine, self.now_s, self.samples = Quarantine(limit, world_size), 0.0, dict.fromkeys(range(8), 0)
        self.quarantine.note(4 if wide else 1, 100.0)

    def see(self, ratios: dict[int, float], *, for_s=1, news=1, alone=True) -> set[int]:
        """Who is out afterwards."""
        for _ in range(for_s):
            self.now_s += 1.0
            self.quarantine.release(self.now_s)
            for rank in ratios:
                self.samples[rank] += news
            evidence = {rank: Evidence(ratio, self.samples[rank], alone) for rank, ratio in ratios.items()}
            self.quarantine.review(evidence, self.now_s)
        return set(self.quarantine.ranks)

    def wait(self, seconds: float) -> set[int]:
        self.now_s += seconds
        self.quarantine.release(self.now_s)
        return set(self.quarantine.ranks)


def test_a_rank_goes_that_was_too_slow_for_ten_seconds_on_end():
    watch = Watch()
    assert watch.see({0: 1.0, 3: 3.0}, for_s=10) == set()
    assert watch.see({0: 1.0, 3: 3.0}) == {3}


def test_a_hiccup_costs_no_rank_its_work():
    watch = Watch()
    for _ in range(5):
        watch.see({3: 5.0}, for_s=10)
        watch.see({3: 1.0})
    assert not watch.quarantine.ranks


def test_slow_segments_one_after_another_within_a_moment_are_a_hiccup():
    watch = Watch()
    watch.see({3: 5.0}, news=50)
    assert watch.see({3: 5.0}, news=0, for_s=100) == set(), "nothing new is known of it"
    assert watch.see({3: 5.0}, news=1) == {3}


def test_few_segments_tell_nothing():
    watch = Watch()
    for segments in range(8):
        assert not watch.quarantine.ranks, segments
        watch.see({3: 5.0})
        watch.wait(60.0)
    assert watch.quarantine.ranks == {3}


def test_what_is_old_does_not_count():
    watch = Watch()
    watch.see({3: 5.0}, for_s=7)
    watch.wait(301.0)
    assert watch.see({3: 5.0}, for_s=7) == set()


@pytest.mark.parametrize("options", [{"limit": None}, {"limit": 5.0}, {"wide": False}])
def test_ranks_that_are_not_so_slow_or_do_narrow_work_go_on(options):
    assert Watch(**options).see({3: 4.0}, for_s=60) == set()


@pytest.mark.parametrize(
    ("world_size", "ratio", "goes"),
    [(1, 99.0, False), (2, 6.9, False), (2, 7.1, True), (4, 2.3, False), (4, 2.4, True), (8, 2.0, True)],
)
def test_a_small_world_keeps_ranks_that_do_a_share_of_its_work(world_size, ratio, goes):
    assert Watch(world_size=world_size).see({0: ratio}, for_s=60) == ({0} if goes else set())


@pytest.mark.parametrize(("alone", "world_size", "goes"), [(False, 4, False), (False, 8, True), (True, 4, True)])
def test_a_rank_that_was_not_seen_alone_may_be_good_for_narrow_work(alone, world_size, goes):
    assert Watch(world_size=world_size).see({3: 9.0}, for_s=60, alone=alone) == ({3} if goes else set())


@pytest.mark.parametrize(("ratio", "most"), [(2.0, 1), (3.0, 2), (100.0, 7)])
def test_however_many_are_slow_one_after_another_most_of_the_work_is_still_done(ratio, most):
    watch, slow = Watch(), {}
    for rank in range(8):
        slow[rank] = ratio
        watch.see(slow, for_s=12)
    out = len(watch.quarantine.ranks)
    assert out <= most and out / ratio <= (8 - out) / 7


def test_a_rank_is_tried_again_and_stays_if_it_is_as_fast_as_the_others():
    watch = Watch()
    watch.see({3: 3.0}, for_s=11)
    assert watch.wait(TERM_S - 1) == {3}
    assert watch.wait(1.0) == set()
    watch.samples[3] = 0
    assert watch.see({3: 1.0}, for_s=1000) == set()


def test_a_rank_that_is_still_slow_is_out_twice_as_long_and_sooner():
    watch = Watch()
    watch.see({3: 3.0}, for_s=11)
    watch.wait(TERM_S)
    watch.samples[3] = 0
    assert watch.see({3: 3.0}, for_s=3) == set()
    assert watch.see({3: 3.0}) == {3}
    assert watch.wait(2 * TERM_S - 1) == {3}
    assert watch.wait(1.0) == set()


def test_a_rank_that_was_well_for_as_long_as_it_was_out_has_a_clean_record():
    watch = Watch()
    watch.see({3: 3.0}, for_s=11)
    watch.wait(2 * TERM_S)
    watch.samples[3] = 0
    assert watch.see({3: 3.0}, for_s=10) == set()
    assert watch.see({3: 3.0}) == {3}
    assert watch.wait(TERM_S) == set()


def test_nobody_is_out_for_longer_than_eighty_minutes():
    watch = Watch()
    watch.see({3: 3.0}, for_s=11)
    for _ in range(8):
        while watch.wait(1.0):
            pass
        watch.samples[3] = 0
        watch.see({3: 3.0}, for_s=4)
    assert watch.wait(4799.0) == {3}
    assert watch.wait(1.0) == set()


def test_a_new_worker_has_a_clean_record():
    watch = Watch()
    watch.see({3: 3.0}, for_s=11)
    watch.quarantine.forget(3)
    watch.samples[3] = 0
    assert watch.see({3: 3.0}, for_s=10) == set()
