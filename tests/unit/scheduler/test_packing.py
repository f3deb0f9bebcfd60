"""The knapsack finds the greatest value, and a group budget says what fits: both against exhaustive search."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from tetriserve_backend.domain import Placement
from tetriserve_backend.scheduler.groups import GroupBudget, aligned_groups
from tetriserve_backend.scheduler.packing import PackItem, PackOption, pack_options
from tetriserve_backend.scheduler.placement import PlacementDemand, place

OPTIONS = st.builds(
    PackOption, sp_degree=st.sampled_from([1, 2, 4, 8]), num_steps=st.integers(1, 5), value=st.integers(0, 20)
)
ITEMS = st.lists(
    st.builds(PackItem, idle_value=st.integers(0, 20), options=st.lists(OPTIONS, max_size=2).map(tuple)),
    min_size=1,
    max_size=4,
)


def value_of(items, chosen) -> int:
    return sum(option.value if option else item.idle_value for item, option in zip(items, chosen, strict=True))


def width_of(chosen) -> int:
    return sum(option.sp_degree for option in chosen if option)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(ITEMS, st.integers(0, 8))
def test_value_equals_exhaustive_search(items, num_ranks):
    chosen = pack_options(items, num_ranks)
    assert all(option is None or option in item.options for item, option in zip(items, chosen, strict=True))
    assert width_of(chosen) <= num_ranks
    every = itertools.product(*[(None, *item.options) for item in items])
    assert value_of(items, chosen) == max(value_of(items, c) for c in every if width_of(c) <= num_ranks)


def test_two_narrow_survivors_beat_one_wide_one():
    wide = PackItem(0, (PackOption(8, 5, 10),))
    narrow = PackItem(0, (PackOption(4, 5, 10),))
    assert pack_options([wide, narrow, narrow], 8) == [None, narrow.options[0], narrow.options[0]]


def fits_somewhere(sizes: list[int], world_size: int, free: frozenset[int]) -> bool:
    if not sizes:
        return True
    return any(
        fits_somewhere(sizes[1:], world_size, free - set(group))
        for group in aligned_groups(world_size).get(sizes[0], ())
        if free.issuperset(group)
    )


SIZES = st.lists(st.sampled_from([1, 2, 4, 8]), max_size=5)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(SIZES, st.frozensets(st.integers(0, 7)), st.sampled_from([6, 8]))
def test_what_the_budget_grants_can_be_placed_and_nothing_more(sizes, free, world_size):
    free = frozenset(rank for rank in free if rank < world_size)
    budget = GroupBudget(world_size, free)
    taken: list[int] = []
    for size in sizes:
        fits = budget.fits(size)
        assert fits == fits_somewhere([*taken, size], world_size, free)
        if fits:
            budget.take(size)
            taken.append(size)
    demands = [PlacementDemand(str(index), size, None) for index, size in enumerate(taken)]
    placed = place(demands, world_size, free)
    ranks = [rank for placement in placed.values() for rank in placement.ranks]
    assert len(ranks) == len(set(ranks)) == sum(taken)
    assert free.issuperset(ranks)


def test_giving_back_undoes_taking():
    budget = GroupBudget(8, range(8))
    budget.take(4)
    budget.take(2)
    budget.give_back(4)
    assert (budget.free_ranks, budget.widest, budget.fits(8)) == (6, 4, False)
    budget.give_back(2)
    assert budget.fits(8)


def test_aligned_groups_are_2n_minus_1_and_start_at_multiples_of_their_size():
    groups = aligned_groups(8)
    assert sum(len(of_size) for of_size in groups.values()) == 15
    assert groups[2] == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert aligned_groups(6) == {1: tuple((r,) for r in range(6)), 2: ((0, 1), (2, 3), (4, 5)), 4: ((0, 1, 2, 3),)}


def test_requests_stay_where_they_were():
    demands = [PlacementDemand("a", 2, Placement((4, 5))), PlacementDemand("b", 1, Placement((7,)))]
    assert place(demands, 8, range(8)) == {"a": Placement((4, 5)), "b": Placement((7,))}


def test_a_wider_request_takes_the_block_that_holds_its_ranks():
    assert place([PlacementDemand("a", 4, Placement((6,)))], 8, range(8)) == {"a": Placement((4, 5, 6, 7))}


def test_a_request_without_history_leaves_the_ranks_of_others_alone():
    demands = [PlacementDemand("new", 2, None), PlacementDemand("old", 1, Placement((0,)))]
    assert place(demands, 4, range(4)) == {"new": Placement((2, 3)), "old": Placement((0,))}
