"""Quantiles of any number of values in bounded memory."""

import random

import pytest

from tetriserve_backend.simulator.quantiles import QuantileSketch


def sketch_of(values):
    sketch = QuantileSketch()
    for value in values:
        sketch.add(value)
    return sketch


def test_quantiles_are_right_to_a_thousandth_and_mean_and_extremes_exact():
    draw = random.Random(0)
    values = sorted(draw.lognormvariate(0, 3) for _ in range(20_000))
    sketch = sketch_of(values)
    for share in (0.01, 0.5, 0.9, 0.99, 0.999):
        true = values[max(0, int(share * len(values) + 0.999999) - 1)]
        assert sketch.quantile(share) == pytest.approx(true, rel=1.1e-3)
    assert sketch.mean == pytest.approx(sum(values) / len(values))
    assert (sketch.min, sketch.max, sketch.count) == (values[0], values[-1], len(values))
    assert sketch.quantile(0.0) == pytest.approx(values[0], rel=1.1e-3) and sketch.quantile(1.0) == values[-1]


def test_memory_does_not_grow_with_the_number_of_values():
    draw = random.Random(1)
    sketch = sketch_of(10 ** draw.uniform(-9, 9) for _ in range(100_000))
    assert len(sketch._counts) <= 21_000


def test_zeros_count_and_an_empty_sketch_answers_zero():
    assert QuantileSketch().quantiles([0.5, 0.9]) == [0.0, 0.0]
    assert sketch_of([0.0, 0.0, 0.0, 8.0]).quantiles([0.5, 1.0]) == [0.0, 8.0]


def test_a_negative_value_is_refused():
    with pytest.raises(ValueError, match="at least 0"):
        QuantileSketch().add(-1e-12)
