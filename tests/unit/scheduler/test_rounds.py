"""TetriServe's rounds: who runs, where, and what happens between two boundaries."""

import pytest

from tests.unit.scheduler.conftest import check_plan, denoise_of, idle_view, make_request, running, serve, waiting
from tetriserve_backend.domain import Assignment, Placement, Plan, SegmentKind
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.scheduler.view import RankView, SchedulerView

WORLD = tuple(range(8))


@pytest.fixture
def policy_of(h100):
    """Requests apart from each other; `test_round_batches.py` has those that share their steps."""
    return lambda **settings: make_policy(SchedulerSettings(policy="tetriserve", max_batch=1, **settings), h100, 8)


def with_busy(requests, busy: dict[int, float], now_s: float, lead_s: float = 0.0) -> SchedulerView:
    ranks = tuple(RankView(rank, busy.get(rank, now_s), int(rank in busy)) for rank in WORLD)
    return SchedulerView(tuple(requests), ranks, 8, lead_s)


def test_a_lone_request_is_scaled_up_to_its_fastest_degree(policy_of):
    plans = {
        side: denoise_of(policy_of().plan(idle_view([waiting(make_request("a", side))], WORLD, 8, 0.0), 0.0))["a"][0]
        for side in (256, 512, 1024, 2048)
    }
    assert {side: len(ranks) for side, ranks in plans.items()} == {256: 1, 512: 2, 1024: 4, 2048: 8}


def test_without_scale_up_a_request_with_time_takes_the_cheapest_degree(policy_of):
    view = idle_view([waiting(make_request("a", 1024, slo_s=100))], WORLD, 8, 0.0)
    assert denoise_of(policy_of(elastic_scale_up=False).plan(view, 0.0))["a"] == ((0,), 1)


def test_without_scale_up_a_tight_request_takes_the_degrees_that_meet_its_deadline(policy_of):
    view = idle_view([waiting(make_request("a", 1024, slo_s=1.7))], WORLD, 8, 0.0)
    assert denoise_of(policy_of(elastic_scale_up=False).plan(view, 0.0))["a"] == ((0, 1, 2, 3), 4)


def test_encode_goes_in_front_and_decode_behind_in_one_plan(policy_of):
    view = idle_view([waiting(make_request("a", 256, num_steps=3))], WORLD, 8, 0.0)
    plan = policy_of().plan(view, 0.0)
    kinds = [SegmentKind.ENCODE, SegmentKind.DENOISE, SegmentKind.DECODE]
    assert [(entry.kind, entry.placement.ranks) for entry in plan.assignments] == [(kind, (0,)) for kind in kinds]


def test_survivors_go_before_a_request_that_would_cost_them(policy_of):
    """One wide request and two narrow ones, all at their last chance: two survivors beat one."""
    wide = waiting(make_request("wide", 2048, slo_s=3.55), steps=20, at=WORLD)
    narrow = [waiting(make_request(name, 1024, slo_s=1.6), steps=20, at=(0,)) for name in ("n1", "n2")]
    plan = policy_of().plan(idle_view([wide, *narrow], WORLD, 8, 0.0), 0.0)
    assert {name: len(ranks) for name, (ranks, _) in denoise_of(plan).items()} == {"n1": 4, "n2": 4}


def test_late_request_does_not_delay_a_feasible_one(policy_of):
    late = waiting(make_request("late", 2048, slo_s=0.1))
    feasible = waiting(make_request("feasible", 2048, slo_s=3.9))
    plan = policy_of().plan(idle_view([late, feasible], WORLD, 8, 0.0), 0.0)
    assert denoise_of(plan)["feasible"][0] == WORLD
    assert "late" not in denoise_of(plan)


def test_late_request_gets_one_rank_of_what_is_left(policy_of):
    late = waiting(make_request("late", 512, slo_s=0.1))
    others = [waiting(make_request(f"r{i}", 512, slo_s=3.0)) for i in range(7)]
    plan = policy_of().plan(idle_view([late, *others], WORLD, 8, 0.0), 0.0)
    assert len(denoise_of(plan)) == 8
    assert len(denoise_of(plan)["late"][0]) == 1


def test_late_request_may_be_scaled_up_when_ranks_would_idle(policy_of):
    plan = policy_of().plan(idle_view([waiting(make_request("late", 2048, slo_s=0.1))], WORLD, 8, 0.0), 0.0)
    assert denoise_of(plan)["late"][0] == WORLD
    plan = policy_of(elastic_scale_up=False).plan(
        idle_view([waiting(make_request("late", 2048, slo_s=0.1))], WORLD, 8, 0.0), 0.0
    )
    assert denoise_of(plan)["late"] == ((0,), 1), "one step, although it outlasts the round"


def test_request_late_beyond_the_limit_goes_first(policy_of):
    late = waiting(make_request("late", 512, slo_s=1.0))
    others = [waiting(make_request(f"r{i}", 512, arrival_s=40.0, slo_s=1.9)) for i in range(20)]
    view = idle_view([late, *others], WORLD, 8, 40.0)
    assert len(denoise_of(policy_of(late_limit_s=30.0).plan(view, 40.0))["late"][0]) == 1
    assert "late" not in denoise_of(policy_of(late_limit_s=None).plan(view, 40.0))


def test_no_rank_idles_while_someone_can_use_it(policy_of):
    requests = [waiting(make_request(f"r{i}", 2048, slo_s=30.0)) for i in range(3)]
    plan = policy_of().plan(idle_view(requests, WORLD, 8, 0.0), 0.0)
    assert sum(len(ranks) for ranks, _ in denoise_of(plan).values()) == 8


def test_requests_stay_on_their_ranks_unless_preservation_is_off(policy_of):
    slow = [waiting(make_request(f"r{i}", 256), steps=10, at=(rank,)) for i, rank in enumerate((5, 3, 6))]
    view = idle_view(slow, WORLD, 8, 0.0)
    kept = {name: ranks for name, (ranks, _) in denoise_of(policy_of().plan(view, 0.0)).items()}
    assert kept == {"r0": (5,), "r1": (3,), "r2": (6,)}
    anew = denoise_of(policy_of(placement_preservation=False).plan(view, 0.0))
    assert {name: ranks for name, (ranks, _) in anew.items()} == {"r0": (0,), "r1": (1,), "r2": (2,)}


def test_a_round_ends_before_its_boundary_and_the_next_is_planned_ahead(policy_of):
    policy = policy_of()
    requests = [waiting(make_request(f"r{i}", 256)) for i in range(8)]
    plan = policy.plan(idle_view(requests, WORLD, 8, 0.0), 0.0)
    assert all(steps == 5 for _, steps in denoise_of(plan).values()), "six steps less the time of the encode"
    assert plan.wake_at_s is not None and plan.wake_at_s <= policy.round_length_s


def amid_a_round(policy, now_s, *requests) -> Plan:
    """What the policy plans at `now_s` for four idle ranks, while the others run until the boundary."""
    first = make_request("first", 1024)
    policy.plan(idle_view([waiting(first)], WORLD, 8, 0.0), 0.0)
    busy = running(first, 16, (0, 1, 2, 3), policy.round_length_s)
    view = with_busy([busy, *requests], dict.fromkeys(range(4), policy.round_length_s), now_s)
    plan = policy.plan(view, now_s)
    check_plan(plan, view, now_s)
    return plan


def test_between_boundaries_an_idle_rank_runs_what_fits_into_the_rest_of_the_round(policy_of, h100):
    policy = policy_of()
    rest_s = policy.round_length_s - 0.1
    steps = denoise_of(amid_a_round(policy, 0.1, waiting(make_request("new", 256))))["new"]
    fit = int((rest_s - h100.encode_s() - 2 * h100.dispatch_s) / h100.step_s(256, 256, 1))
    assert steps == ((4,), fit) and 0 < fit < 5
    steps = denoise_of(amid_a_round(policy, 0.1, waiting(make_request("wide", 1024), steps=9)))["wide"]
    assert steps == ((4, 5, 6, 7), int((rest_s - h100.dispatch_s) / h100.step_s(1024, 1024, 4)))


@pytest.mark.parametrize(("now_s", "elastic"), [(0.26, True), (0.1, False)])
def test_between_boundaries_an_idle_rank_encodes_an_arrival_of_which_no_step_may_run(policy_of, now_s, elastic):
    plan = amid_a_round(policy_of(elastic_scale_up=elastic), now_s, waiting(make_request("new", 256)))
    assert plan.assignments == (Assignment(SegmentKind.ENCODE, ("new",), Placement((4,))),)


@pytest.mark.parametrize("slo_s", [0.1, 9.0])
def test_nothing_that_begins_amid_a_round_outlasts_it(policy_of, slo_s):
    """A step of 2048×2048 takes 0.31 s on the four ranks that are idle, for 0.23 s."""
    assert amid_a_round(policy_of(), 0.1, waiting(make_request("huge", 2048, slo_s=slo_s), steps=20)).assignments == ()


def test_no_encode_is_started_that_would_outlast_the_round(policy_of):
    assert amid_a_round(policy_of(), 0.31, waiting(make_request("new", 256))).assignments == ()


def test_when_all_ranks_are_idle_a_round_starts_at_once(policy_of):
    policy = policy_of()
    policy.plan(idle_view([waiting(make_request("a", 256, num_steps=1))], WORLD, 8, 0.0), 0.0)
    plan = policy.plan(idle_view([waiting(make_request("b", 256))], WORLD, 8, 0.1), 0.1)
    assert "b" in denoise_of(plan)


def at_the_boundary(policy, overdue: float, *requests, lead_s: float = 0.0):
    """Plan at the end of a round in which ranks 0 to 3 still run, until `overdue` of a round later."""
    first = make_request("first", 1024)
    policy.plan(idle_view([waiting(first)], WORLD, 8, 0.0), 0.0)
    boundary_s = policy.round_length_s
    until_s = boundary_s + overdue * policy.round_length_s
    views = [running(first, 16, (0, 1, 2, 3), until_s), *requests]
    view = with_busy(views, dict.fromkeys(range(4), until_s), boundary_s, lead_s)
    plan = policy.plan(view, boundary_s)
    check_plan(plan, view, boundary_s)
    return plan, until_s


def test_boundary_waits_for_a_rank_that_is_about_to_finish(policy_of):
    second = waiting(make_request("second", 256), steps=20, at=(4,))
    plan, soon_s = at_the_boundary(policy_of(boundary_overrun=0.0), 0.05, second)
    assert plan.assignments == () and plan.wake_at_s == pytest.approx(soon_s)
    plan, _ = at_the_boundary(policy_of(boundary_overrun=0.0), 0.5, second)
    assert denoise_of(plan)["second"] == ((4,), 6)


def test_while_the_boundary_waits_whoever_stays_where_it_is_goes_on(policy_of):
    plan, _ = at_the_boundary(policy_of(), 0.05, waiting(make_request("second", 256), steps=20, at=(4,)))
    assert denoise_of(plan) == {"second": ((4,), 1)}


def test_next_round_is_sent_within_lead_of_the_end_of_the_last(policy_of):
    policy = policy_of()
    first = make_request("first", 1024)
    policy.plan(idle_view([waiting(first)], WORLD, 8, 0.0), 0.0)
    ends_s = policy.round_length_s
    requests = [running(first, 16, (0, 1, 2, 3), ends_s)]
    busy = dict.fromkeys(range(4), ends_s)
    early = policy.plan(with_busy(requests, busy, 0.1, lead_s=0.02), 0.1)
    assert early.assignments == () and early.wake_at_s == pytest.approx(ends_s - 0.02)
    now_s = ends_s - 0.015
    assert denoise_of(policy.plan(with_busy(requests, busy, now_s, lead_s=0.02), now_s)) == {"first": ((0, 1, 2, 3), 4)}


def test_lost_decode_is_done_at_once_even_between_boundaries(policy_of):
    plan = amid_a_round(policy_of(), 0.1, waiting(make_request("again", 256), steps=0))
    assert plan.assignments == (Assignment(SegmentKind.DECODE, ("again",), Placement((4,))),)


@pytest.mark.parametrize("ranks", [(1,), (1, 4), (0, 2, 3, 5, 6, 7), (1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("elastic", [True, False])
def test_holes_in_the_world_are_planned_around(policy_of, ranks, elastic):
    requests = [
        waiting(make_request(f"r{i}", side, slo_s=slo_s))
        for i, (side, slo_s) in enumerate([(2048, 3.6), (2048, 9.0), (1024, 1.6), (512, 2.0), (256, 0.1)])
    ]
    view = idle_view(requests, ranks, 8, 0.0)
    plan = policy_of(elastic_scale_up=elastic).plan(view, 0.0)
    check_plan(plan, view, 0.0)
    assert denoise_of(plan)


def test_a_shape_whose_only_degree_is_slower_than_a_round_is_served(h100):
    """127 × 127 tokens divide by no degree but 1, and a step at 1 takes longer than a round."""
    run = serve([make_request("odd", 2032, num_steps=3)], h100, 8, SchedulerSettings(policy="tetriserve"))
    assert run.degrees("odd") == [1, 1, 1]


def test_nobody_starves_under_lasting_overload(h100):
    """Requests that can still make it arrive faster than eight ranks can serve them; a late one still ends."""
    hopeless = make_request("hopeless", 2048, arrival_s=1.0, slo_s=0.5)
    stream = [make_request(f"r{i}", 512, arrival_s=0.1 * i, slo_s=4.0) for i in range(900)]
    requests = sorted([hopeless, *stream], key=lambda request: request.arrival_s)
    run = serve(requests, h100, 8, SchedulerSettings(policy="tetriserve", late_limit_s=5.0))
    assert run.outcomes["hopeless"].end_s < 60.0
