"""The look ahead over a round's boundary: whom the next round keeps on its ranks, and who goes on there at once."""

import pytest

from tests.unit.scheduler.conftest import check_plan, denoise_of, make_request, make_table, running, waiting
from tetriserve_backend.latency_table import LatencyTable, LatencyTables
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.scheduler.view import RankView, RequestView, SchedulerView


class Pair:
    """Two ranks with a request on one of them each, at 0.15 s before the end of a round of 1.2 s.

    `short` has ended its three steps of 0.35 s on rank 0; `long` does its second one of 0.6 s on rank 1, until the end.
    In a larger world the other ranks are busy until then.
    """

    def __init__(self, *, world_size=2, **settings) -> None:
        self.world_size = world_size
        self.tables = LatencyTables({"": self.table_of(0.35)})
        self.policy = make_policy(
            SchedulerSettings(policy="tetriserve", max_batch=1, step_granularity=3, **settings), self.tables, world_size
        )
        assert self.policy.round_length_s == pytest.approx(1.2)
        self.short, self.long = make_request("short", 256), make_request("long", 512)
        both = [waiting(self.short, steps=15, at=(0,)), waiting(self.long, steps=15, at=(1,))]
        busy = {f"rank{rank}": 1.2 for rank in range(2, world_size)}
        assert self.plan(0.0, both, **busy) == {"short": ((0,), 3), "long": ((1,), 2)}

    def table_of(self, short_step_s: float) -> LatencyTable:
        return make_table({256: (short_step_s,), 512: (0.6, 0.4)}, self.world_size, stage_s=0.001)

    def plan(self, now_s, requests, **busy_until_s) -> dict[str, tuple[tuple[int, ...], int]]:
        ranks = tuple(RankView(rank, busy_until_s.get(f"rank{rank}", now_s), 0) for rank in range(self.world_size))
        view = SchedulerView(tuple(requests), ranks, self.world_size, 0.0)
        plan = self.policy.plan(view, now_s)
        check_plan(plan, view, now_s)
        return denoise_of(plan)

    def in_the_rest(self, *others, at=(0,)) -> dict[str, tuple[tuple[int, ...], int]]:
        """What is planned when `short` has ended its part of the round, last seen on ranks `at`."""
        requests = [waiting(self.short, steps=12, at=at), running(self.long, 13, (1,), 1.2), *others]
        return self.plan(1.05, requests, rank1=1.2)

    def when_long_is_early(self, *others) -> dict[str, tuple[tuple[int, ...], int]]:
        """What is planned after that when `short` goes on until 1.4 s and `long` has ended at 1.1 s already."""
        requests = [running(self.short, 11, (0,), 1.4), waiting(self.long, steps=13, at=(1,)), *others]
        return self.plan(1.1, requests, rank0=1.4)


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


def urgent(name="urgent") -> RequestView:
    """A request that is encoded, and late unless the round from 1.2 s on does all its steps."""
    return waiting(make_request(name, 256, arrival_s=1.0, slo_s=1.3, num_steps=3), steps=3)


def patient(name: str, count: int) -> list[RequestView]:
    """Requests that are encoded and have time for many rounds."""
    return [waiting(make_request(f"{name}{n}", 256, slo_s=1000.0), steps=20) for n in range(count)]


def test_a_request_that_comes_amid_a_round_takes_the_seat_that_another_would_have_kept():
    alone, joined = Pair(), Pair()
    assert alone.in_the_rest() == joined.in_the_rest() == {"short": ((0,), 1)}
    assert alone.when_long_is_early() == {"long": ((1,), 1)}
    assert joined.when_long_is_early(urgent()) == {}
    requests = [running(joined.short, 11, (0,), 1.4), waiting(joined.long, steps=13, at=(1,)), urgent()]
    assert joined.plan(1.2, requests, rank0=1.4) == {"urgent": ((1,), 3)}


@pytest.mark.parametrize(("num_new", "planned"), [(1, {"long": ((1,), 1)}), (4, {"long": ((1,), 1)}), (5, {})])
def test_among_64_requests_a_few_new_ones_change_no_seat_until_there_are_more(num_new, planned):
    pair, known = Pair(), patient("known", 62)
    assert pair.in_the_rest(*known) == {"short": ((0,), 1)}
    assert pair.when_long_is_early(*known, urgent(), *patient("new", num_new - 1)) == planned


@pytest.mark.parametrize(("num_later", "planned"), [(1, {"long": ((1,), 1)}), (2, {})])
def test_new_requests_that_changed_no_seat_count_with_those_that_come_later(num_later, planned):
    """Of 64 requests `short` has no seat, so it looks ahead each time; three requests come, and later some more."""
    pair = Pair(world_size=4)
    busy = [running(make_request(f"busy{rank}", 256), 17, (rank,), 1.2) for rank in (2, 3)]
    known = [waiting(pair.short, steps=12, at=(0,)), urgent("known"), *patient("known", 59)]
    new = [urgent(f"new{n}") for n in range(3 + num_later)]
    requests = [running(pair.long, 13, (1,), 1.2), *busy, *known]
    assert pair.plan(1.05, requests, rank1=1.2, rank2=1.2, rank3=1.2) == {}
    assert pair.plan(1.06, [*requests, *new[:3]], rank1=1.2, rank2=1.2, rank3=1.2) == {}
    requests = [waiting(pair.long, steps=13, at=(1,)), *busy, *known]
    assert pair.plan(1.1, [*requests, *new], rank2=1.2, rank3=1.2) == planned


@pytest.mark.parametrize(("step_s", "planned"), [(0.35, {"long": ((1,), 1)}), (0.4, {})])
def test_what_was_foreseen_before_costs_changed_counts_no_more(step_s, planned):
    """At 0.35 s a step `tight` has time to leave out a round, at 0.4 s it has not."""
    pair = Pair()
    tight = waiting(make_request("tight", 256, arrival_s=1.0, slo_s=2.5, num_steps=3), steps=3)
    assert pair.in_the_rest(tight) == {"short": ((0,), 1)}
    pair.tables.put("", pair.table_of(step_s))
    assert pair.when_long_is_early(tight) == planned


@pytest.mark.parametrize(("long_slo_s", "goes_on"), [(100.0, {"short": ((0,), 1)}), (7.0, {})])
def test_each_round_looks_ahead_anew(long_slo_s, goes_on):
    """With 7 s `long` has time for one rank in the first two rounds and needs both in the third."""
    pair = Pair()
    pair.long = make_request("long", 512, slo_s=long_slo_s)
    assert pair.in_the_rest() == {"short": ((0,), 1)}
    requests = [running(pair.short, 11, (0,), 1.4), waiting(pair.long, steps=13, at=(1,))]
    assert pair.plan(1.2, requests, rank0=1.4) == {"long": ((1,), 2)}
    requests = [waiting(pair.short, steps=11, at=(0,)), running(pair.long, 11, (1,), 2.4)]
    assert pair.plan(1.4, requests, rank1=2.4) == {"short": ((0,), 2)}
    requests = [waiting(pair.short, steps=9, at=(0,)), running(pair.long, 11, (1,), 2.4)]
    assert pair.plan(2.1, requests, rank1=2.4) == goes_on


@pytest.mark.parametrize(("num_steps", "others"), [(1, {}), (2, {"long": ((1,), 1)})])
def test_a_request_that_will_have_no_step_left_has_no_seat(num_steps, others):
    """In the last 0.36 s of a round a step of `brief` is done, none of `long`, which gets both ranks if that is all."""
    pair = Pair(world_size=4)
    busy = [running(make_request(f"busy{rank}", 256), 17, (rank,), 1.2) for rank in (2, 3)]
    brief, long = make_request("brief", 256, num_steps=num_steps), waiting(pair.long, steps=14, at=(1,))
    plan = pair.plan(0.84, [*busy, waiting(brief), long], rank2=1.2, rank3=1.2)
    assert plan == {"brief": ((0,), 1), **others}


def test_the_boundary_waits_again_for_ranks_that_went_on_across_the_one_before():
    """`short` goes on until 0.2 s behind the first boundary, and is late by as much at the second one."""
    pair = Pair(boundary_grace=0.2, boundary_overrun=0.17)
    assert pair.in_the_rest() == {"short": ((0,), 1)}
    requests = [running(pair.short, 11, (0,), 1.4), waiting(pair.long, steps=13, at=(1,))]
    assert pair.plan(1.2, requests, rank0=1.4) == {"long": ((1,), 2)}
    requests = [waiting(pair.short, steps=11, at=(0,)), running(pair.long, 11, (1,), 2.4)]
    assert pair.plan(1.4, requests, rank1=2.4) == {"short": ((0,), 2)}
    requests = [running(pair.short, 9, (0,), 2.6), waiting(pair.long, steps=11, at=(1,))]
    assert pair.plan(2.4, requests, rank0=2.6) == {}
    requests = [waiting(pair.short, steps=9, at=(0,)), waiting(pair.long, steps=11, at=(1,))]
    assert pair.plan(2.6, requests) == {"short": ((0,), 3), "long": ((1,), 2)}
