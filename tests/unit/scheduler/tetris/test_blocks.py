"""Which aligned group is taken, by the reasons that `Blocks.choose` gives, each against the next."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetriserve_backend.scheduler.groups import aligned_groups
from tetriserve_backend.scheduler.tetris.blocks import Blocks, mask_of

ALL = mask_of(range(8))
POD = Blocks(range(8, 16))


def ranks_of(block):
    return None if block is None else block.placement.ranks


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_groups_are_those_of_the_world_moved_to_the_first_rank(size):
    expected = [tuple(rank + 8 for rank in group) for group in aligned_groups(8)[size]]
    assert [block.placement.ranks for block in POD.of_size(size)] == expected
    assert all(block.mask == mask_of(block.placement.ranks) for block in POD.of_size(size))


@settings(derandomize=True, deadline=None)
@given(st.sets(st.integers(8, 15)), st.sampled_from([1, 2, 4, 8, 16]))
def test_a_group_is_chosen_exactly_if_one_is_idle_as_a_whole(idle, size):
    block = POD.choose(size, mask_of(idle), 0, 0, {})
    whole = [one for one in POD.of_size(size) if idle.issuperset(one.placement.ranks)]
    assert (block in whole) if whole else block is None


def test_a_group_whose_neighbour_is_busy_is_broken_up_first():
    # 12 stands alone, 14 and 15 are a pair, 8 to 11 are four.
    idle = mask_of((8, 9, 10, 11, 12, 14, 15))
    assert ranks_of(POD.choose(1, idle, 0, 0, {})) == (12,)
    assert ranks_of(POD.choose(2, idle, 0, 0, {})) == (14, 15)


def test_ranks_behind_the_last_whole_group_of_a_size_are_not_broken_up_for_nothing():
    """Of 12 ranks the last four are in no group of eight; a pair there is still worth less than a four."""
    world = Blocks(range(12))
    assert ranks_of(world.choose(1, mask_of((2, 3, 8, 9, 10, 11)), 0, 0, {})) == (2,)
    assert ranks_of(world.choose(4, mask_of(range(12)), 0, 0, {})) == (8, 9, 10, 11)


def test_a_request_stays_where_it_was_rather_than_where_others_were_not():
    idle, own, others = ALL << 8, mask_of((11,)), mask_of((8, 9, 10))
    assert ranks_of(POD.choose(1, idle, own, others, {})) == (11,)
    assert ranks_of(POD.choose(1, idle, 0, others | own, {})) == (12,)


def test_a_slow_rank_is_taken_last_even_where_that_breaks_up_more():
    idle = mask_of((8, 9, 10, 11, 12))
    assert ranks_of(POD.choose(1, idle, 0, 0, {})) == (12,)
    assert ranks_of(POD.choose(1, idle, 0, 0, {12: 1.2})) == (8,)
    assert ranks_of(POD.choose(2, idle, 0, 0, {8: 1.2, 11: 1.1})) == (10, 11)
