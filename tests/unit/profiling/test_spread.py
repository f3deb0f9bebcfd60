"""Medians, CVs, what may differ by chance, and the time that is left."""

import statistics

import pytest

from tetriserve_backend.latency_table.work import decode_work, encode_work, step_work
from tetriserve_profiling.hand_over import LatentMove, Move
from tetriserve_profiling.remaining import RemainingTime
from tetriserve_profiling.spread import NOISE_FLOOR, spread, tolerance


def test_the_median_ignores_an_outlier_and_the_cv_does_not():
    samples = [1.0, 1.01, 0.99, 1.0, 9.0]
    summary = spread(samples)
    assert (summary.seconds, summary.samples) == (1.0, 5)
    assert summary.cv == pytest.approx(statistics.stdev(samples) / statistics.fmean(samples))


def test_one_sample_has_no_spread():
    assert spread([2.0]).cv == 0.0


def test_two_measurements_may_differ_by_four_cv_but_at_least_the_floor():
    assert tolerance(0.02, 0.05) == pytest.approx(0.2)
    assert tolerance(0.001, None) == tolerance(None, None) == NOISE_FLOOR
    assert tolerance(0.001, 0.002, floor=0.1) == 0.1


def test_wild_samples_allow_half_and_no_more():
    assert tolerance(0.3, 0.9) == 0.5
    assert tolerance(0.9, 0.9, floor=0.7) == 0.7


def test_remaining_time_is_unknown_before_anything_of_the_kind_was_measured():
    remaining = RemainingTime()
    assert remaining.estimate([encode_work(1)]) is None
    remaining.note(encode_work(1), 0.5)
    assert remaining.estimate([encode_work(1), encode_work(2)]) == 1.5
    assert remaining.estimate([encode_work(1), decode_work(64, 64)]) is None
    assert remaining.estimate([]) == 0.0


def test_remaining_time_takes_the_last_visit_or_scales_by_tokens_per_rank():
    remaining = RemainingTime()
    remaining.note(step_work(256, 256), 4.0)
    remaining.note(step_work(256, 256), 2.0)
    assert remaining.estimate([step_work(256, 256)]) == 2.0
    assert remaining.estimate([step_work(512, 512), step_work(512, 512, sp=2)]) == pytest.approx(8.0 + 4.0)


def test_remaining_time_of_a_move_is_that_of_its_steps_until_it_was_visited():
    known = {step_work(512, 512): 3.0, step_work(512, 512, sp=2): 2.0}
    remaining = RemainingTime(known.get)
    widened = LatentMove(512, 512, Move((0,), (0, 1)))
    elsewhere = LatentMove(512, 512, Move((0,), (1,)))
    assert remaining.estimate([], [widened, widened, elsewhere]) == 2 * (3.0 + 2 * 2.0) + 5 * 3.0
    assert remaining.estimate([], [LatentMove(256, 256, Move((0,), (0, 1)))]) is None
    remaining.note_move(widened, 9.0)
    assert remaining.estimate([], [widened, widened]) == 18.0
