"""Noise has the mean and the spread that were asked for."""

import statistics

import pytest

from tetriserve_backend.domain import Placement, Segment, SegmentKind, SegmentPart
from tetriserve_backend.simulator.noise import SlowRanks, StepNoise


def denoise(num_steps: int) -> Segment:
    part = SegmentPart("r0", 0, num_steps)
    return Segment(0, SegmentKind.DENOISE, (part,), Placement((0,)), 256, 256)


@pytest.mark.parametrize("num_steps", [1, 4, 25])
def test_a_segment_has_the_mean_of_its_steps(num_steps):
    noise = StepNoise(0.05, seed=1)
    factors = [noise(denoise(num_steps)) for _ in range(20_000)]
    assert statistics.mean(factors) == pytest.approx(1.0, abs=0.002)
    assert statistics.stdev(factors) == pytest.approx(0.05 / num_steps**0.5, rel=0.05)


def test_the_same_seed_gives_the_same_noise_and_none_gives_none():
    segment = denoise(5)
    first, second = StepNoise(0.1, seed=3), StepNoise(0.1, seed=3)
    assert [first(segment) for _ in range(5)] == [second(segment) for _ in range(5)]
    assert StepNoise(0.0)(segment) == 1.0


def test_a_segment_is_as_slow_as_its_slowest_rank():
    part = (SegmentPart("r0", 0, 5),)
    slow = SlowRanks(1.2, {3: 1.5, 1: 0.5})
    factors = [
        slow(Segment(0, SegmentKind.DENOISE, part, Placement(ranks), 256, 256)) for ranks in [(0,), (1,), (2, 3)]
    ]
    assert factors == pytest.approx([1.2, 0.6, 1.8])
