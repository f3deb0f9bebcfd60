"""The allocation takes the fewest GPU-seconds that meet the deadline: against brute force over all splits."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.scheduler.conftest import make_table
from tetriserve_backend.scheduler.allocation import Allocation, allocate
from tetriserve_backend.scheduler.costs import CostModel, DegreeCost, ShapeCosts

EPS = 1e-9


def shape_costs(column: list[float]) -> ShapeCosts:
    world_size = 2 ** (len(column) - 1)
    return CostModel(make_table({256: column}, world_size), world_size).of_shape(256, 256)


def every_split(num_steps: int, degrees: int):
    """All ways to write `num_steps` as an ordered sum of `degrees` non-negative integers."""
    for bars in itertools.combinations(range(num_steps + degrees - 1), degrees - 1):
        edges = (-1, *bars, num_steps + degrees - 1)
        yield tuple(b - a - 1 for a, b in itertools.pairwise(edges))


def brute_force(num_steps: int, step_s: dict[int, float], budget_s: float, max_degrees: int) -> float | None:
    costs = []
    for split in every_split(num_steps, len(step_s)):
        used = [(steps, degree) for steps, degree in zip(split, step_s, strict=True) if steps]
        if len(used) <= max_degrees and sum(n * step_s[k] for n, k in used) <= budget_s + EPS:
            costs.append(sum(n * k * step_s[k] for n, k in used))
    return min(costs, default=None)


def gpu_seconds(parts: tuple[Allocation, ...], step_s: dict[int, float]) -> float:
    return sum(part.num_steps * part.sp_degree * step_s[part.sp_degree] for part in parts)


COLUMNS = st.lists(st.integers(1, 60).map(lambda n: n / 20), min_size=1, max_size=4)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(COLUMNS, st.integers(1, 12), st.floats(0.0, 40.0))
def test_one_or_two_degrees_are_exactly_minimal(column, num_steps, budget_s):
    costs = shape_costs(column)
    parts = allocate(num_steps, costs.efficient, budget_s)
    best = brute_force(num_steps, costs.step_s, budget_s, max_degrees=2)
    if best is None:
        assert parts == ()
        return
    assert 1 <= len(parts) <= 2
    assert sum(part.num_steps for part in parts) == num_steps
    assert all(part.num_steps >= 1 for part in parts)
    assert sum(part.num_steps * costs.step_s[part.sp_degree] for part in parts) <= budget_s + 2 * EPS
    assert gpu_seconds(parts, costs.step_s) == pytest.approx(best, abs=1e-6)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(COLUMNS, st.integers(1, 12), st.floats(0.0, 40.0))
def test_more_degrees_save_less_than_one_step(column, num_steps, budget_s):
    costs = shape_costs(column)
    parts = allocate(num_steps, costs.efficient, budget_s)
    best = brute_force(num_steps, costs.step_s, budget_s, max_degrees=len(column))
    assert (best is None) == (parts == ())
    if best is not None:
        dearest = max(cost.gpu_seconds for cost in costs.efficient)
        assert best - 1e-6 <= gpu_seconds(parts, costs.step_s) <= best + dearest


@settings(derandomize=True, deadline=None)
@given(st.sampled_from([256, 512, 1024, 2048]), st.integers(1, 20), st.floats(0.0, 30.0))
def test_on_the_h100_table_no_split_over_any_degrees_is_cheaper_by_a_hundredth(h100, side, num_steps, budget_s):
    costs = CostModel(h100, 8).of_shape(side, side)
    parts = allocate(num_steps, costs.efficient, budget_s)
    best = brute_force(num_steps, costs.step_s, budget_s, max_degrees=4)
    assert (best is None) == (parts == ())
    if best is not None:
        assert gpu_seconds(parts, costs.step_s) <= best * 1.01


def test_wider_part_comes_first():
    costs = (DegreeCost(1, 1.0, 1.0), DegreeCost(2, 0.6, 1.2))
    assert allocate(10, costs, 8.0) == (Allocation(5, 2), Allocation(5, 1))
    assert allocate(10, costs, 10.0) == (Allocation(10, 1),)
    assert allocate(10, costs, 6.0) == (Allocation(10, 2),)
    assert allocate(10, costs, 5.9) == ()


def test_degrees_beaten_in_time_and_gpu_seconds_are_left_out(h100):
    model = CostModel(h100, 8)
    efficient = [[cost.sp_degree for cost in model.of_shape(side, side).efficient] for side in (256, 512, 1024, 2048)]
    assert efficient == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 8]]
