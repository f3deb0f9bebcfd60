"""What moving a latent costs, from the moves that were profiled."""

import pytest

from tests.unit.simulator.conftest import small_table
from tetriserve_backend.simulator.sweep import table_with_dispatch


def test_a_move_costs_what_such_moves_took_beyond_a_dispatch():
    moves = {((0,), (0, 1)): 0.003, ((1,), (0, 1)): 0.005, ((0,), (1,)): 0.004, ((0, 1), (0,)): 0.9}
    table = small_table(dispatch_s=0.001, moves=moves)
    assert table.hand_over_s(2, from_outside=False) == pytest.approx(0.003)
    assert table.hand_over_s(1, from_outside=True) == pytest.approx(0.003)


def test_a_degree_without_moves_of_its_own_takes_those_of_all_and_less_than_a_dispatch_is_nothing():
    table = small_table(dispatch_s=0.001, moves={((0,), (0, 1)): 0.003, ((0, 1), (0, 1, 2, 3)): 0.0005})
    assert table.hand_over_s(8, from_outside=False) == pytest.approx(0.001)
    assert table.hand_over_s(4, from_outside=False) == 0.0


def test_a_table_that_tells_of_no_moves_has_them_cost_nothing():
    assert small_table(dispatch_s=0.001).hand_over_s(2, from_outside=True) == 0.0


def test_another_dispatch_leaves_what_a_move_costs_beyond_it():
    table = small_table(dispatch_s=0.001, moves={((0,), (0, 1)): 0.003})
    for dispatch_s in (0.0, 0.004):
        changed = table_with_dispatch(table, dispatch_s)
        assert changed.hand_over_s(2, from_outside=False) == pytest.approx(0.002)
        assert changed.origin == table.origin, "errors about it must name the file"


def test_a_move_that_takes_less_than_a_dispatch_still_takes_no_less_than_nothing_with_a_shorter_one():
    table = small_table(dispatch_s=0.004, moves={((0,), (0, 1)): 0.001})
    assert table_with_dispatch(table, 0.0).hand_over_s(2, from_outside=False) == 0.0
