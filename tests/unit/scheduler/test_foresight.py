"""The look ahead over a round's boundary: whom the next round keeps on its ranks, and who goes on there at once."""

import pytest

from tests.unit.scheduler.conftest import check_plan, denoise_of, make_request, make_table, running, waiting
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.scheduler.view import RankView, SchedulerView


class Pair:
    """Two ranks with a request on one of them each, at 0.15 s before the end of a round of 1.2 s.

    `short` has ended its three steps of 0.35 s on rank 0; `long` does its second one of 0.6 s on rank 1, until the end.
    """

    def __init__(self, **settings) -> None:
        table = make_table({256: (0.35,), 512: (0.6, 0.4)}, 2, stage_s=0.001)
        self.policy = make_policy(
            SchedulerSettings(policy="tetriserve", max_batch=1, step_granularity=3, **settings), table, 2
        )
        assert self.policy.round_length_s == pytest.approx(1.2)
        self.short, self.long = make_request("short", 256), make_request("long", 512)
        both = [waiting(self.short, steps=15, at=(0,)), waiting(self.long, steps=15, at=(1,))]
        assert self.plan(0.0, both) == {"short": ((0,), 3), "long": ((1,), 2)}

    def plan(self, now_s, requests, **busy_until_s) -> dict[str, tuple[tuple[int, ...], int]]:
        ranks = tuple(RankView(rank, busy_until_s.get(f"rank{rank}", now_s), 0) for rank in (0, 1))
        view = SchedulerView(tuple(requests), ranks, 2, 0.0)
        plan = self.policy.plan(view, now_s)
        check_plan(plan, view, now_s)
        return denoise_of(plan)

    def in_the_rest(self, *others, at=(0,)) -> dict[str, tuple[tuple[int, ...], int]]:
        """What is planned when `short` has ended its part of the round, last seen on ranks `at`."""
        requests = [waiting(self.short, steps=12, at=at), running(self.long, 13, (1,), 1.2), *others]
        return self.plan(1.05, requests, rank1=1.2)


def test_a_request_that_the_next_round_keeps_on_its_ranks_goes_on_at_once_by_a_step():
    assert Pair().in_the_rest() == {"short": ((0,), 1)}


@pytest.mark.parametrize("off", [{"boundary_overrun": 0.0}, {"elastic_scale_up": False}])
def test_nobody_goes_on_where_that_is_switched_off(off):
    assert Pair(**off).in_the_rest() == {}


def test_nobody_goes_on_further_than_the_settings_say():
    """The step ends 0.2 s behind the boundary, a sixth of a round."""
    assert Pair(boundary_overrun=0.16).in_the_rest() == {}
    assert Pair(boundary_overrun=0.17).in_the_rest() == {"short": ((0,), 1)}


def test_nobody_goes_on_from_other_ranks_than_its_own():
    assert Pair().in_the_rest(at=(1,)) == {}


def test_nobody_goes_on_where_the_next_round_gives_its_rank_to_a_wider_group():
    wide = running(make_request("wide", 512, slo_s=7.0), 14, (1,), 1.2)
    pair = Pair()
    assert pair.in_the_rest(wide) == {}
    # The group forms at the boundary, and nobody was told otherwise meanwhile.
    requests = [waiting(pair.short, steps=12, at=(0,)), waiting(wide.request, steps=14, at=(1,))]
    assert pair.plan(1.2, requests) == {"wide": ((0, 1), 3)}


def test_the_boundary_does_not_wait_for_a_request_that_goes_on_across_it():
    pair = Pair(boundary_grace=0.2)
    pair.in_the_rest()
    requests = [running(pair.short, 11, (0,), 1.4), waiting(pair.long, steps=13, at=(1,))]
    assert pair.plan(1.2, requests, rank0=1.4) == {"long": ((1,), 2)}, "a whole round"
    requests = [waiting(pair.short, steps=11, at=(0,)), running(pair.long, 11, (1,), 2.4)]
    assert pair.plan(1.4, requests, rank1=2.4) == {"short": ((0,), 2)}, "what is left of it"
