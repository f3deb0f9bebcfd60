"""Groups are aligned, complete and in one order."""

from itertools import combinations

import pytest

from tetriserve_backend.executor.placements import shared_groups, usable_degrees


@pytest.mark.parametrize("world_size", [1, 2, 4, 8, 16])
def test_power_of_two_world_has_two_n_minus_one_placements(world_size: int) -> None:
    groups = shared_groups(world_size)
    assert len(groups) + world_size == 2 * world_size - 1
    assert len(set(groups)) == len(groups)


def test_groups_come_small_ones_first_and_in_rank_order() -> None:
    assert shared_groups(4) == [(0, 1), (2, 3), (0, 1, 2, 3)]


def test_world_of_six_has_the_shared_groups_that_fit() -> None:
    assert shared_groups(6) == [(0, 1), (2, 3), (4, 5), (0, 1, 2, 3)]


@pytest.mark.parametrize("world_size", range(1, 17))
def test_two_groups_are_disjoint_or_one_holds_the_other(world_size: int) -> None:
    for one, other in combinations(map(set, shared_groups(world_size)), 2):
        assert one.isdisjoint(other) or one < other or other < one


def test_degrees_divide_everything_that_is_shared() -> None:
    assert usable_degrees(8, 24, 512, 4096) == (1, 2, 4, 8)
    assert usable_degrees(8, 24, 512, 54) == (1, 2)
    assert usable_degrees(8, 24, 77, 4096) == (1,)
    assert usable_degrees(8, 4, 512, 4096) == (1, 2, 4)
    assert usable_degrees(1, 24, 512, 4096) == (1,)
