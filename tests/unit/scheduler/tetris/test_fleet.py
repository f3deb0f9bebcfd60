"""Many ranks as pods side by side."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.scheduler.conftest import SLO_S, idle_view, make_request, make_table, serve, waiting
from tests.unit.scheduler.test_random_streams import ARRIVALS, stream
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.scheduler.view import RankView
from tetriserve_backend.simulator.virtual_world import RankFailure

STILL = tuple(RankView(rank, 0.0, 0) for rank in range(512))
PODS = SchedulerSettings(policy="tetris", pod_size=4)


@pytest.fixture(scope="module")
def table():
    return make_table({256: (0.1, 0.09, 0.085), 1024: (0.8, 0.4, 0.2)}, 4, stage_s=0.0)


def ranks_of(run, request_id):
    return {rank for _, s in run.segments if s.parts[0].request_id == request_id for rank in s.placement.ranks}


def test_a_world_of_one_pod_is_planned_as_without_pods(h100):
    requests = poisson(3, 60, 24)
    one, plain = (
        serve(requests, h100, 8, SchedulerSettings(policy="tetris", pod_size=size)).segments for size in (8, 64)
    )
    assert one == plain


def test_requests_spread_over_pods_and_each_stays_in_one(table):
    requests = [make_request(f"r{index}", 1024, arrival_s=0.001 * index, slo_s=4.5) for index in range(4)]
    run = serve(requests, table, 16, PODS)
    assert run.all_on_time
    pods = [{rank // 4 for rank in ranks_of(run, request.request_id)} for request in requests]
    assert all(len(pod) == 1 for pod in pods)
    assert len(set.union(*pods)) == 4, "each needs a pod of its own"


def test_what_has_not_started_moves_to_a_pod_that_runs_out_of_work(table):
    """All are late, so no pod is better than another at first; the pods share the work to the end."""
    requests = [make_request(f"r{index}", 1024, slo_s=0.1) for index in range(9)]
    run = serve(requests, table, 12, PODS)
    ends_s = [outcome.end_s for outcome in run.outcomes.values()]
    assert max(ends_s) < 1.1 * 9 * 4.0 / 3 + 1.0


def test_requests_of_a_pod_that_is_lost_go_on_elsewhere(table):
    requests = [make_request(f"r{index}", 1024, slo_s=30.0) for index in range(4)]
    failures = [RankFailure(rank, 1.0, float("inf")) for rank in range(4)]
    run = serve(requests, table, 8, PODS, failures=failures)
    assert all(outcome.outcome == "finish" for outcome in run.outcomes.values())


def test_a_decision_deals_with_a_crowd_piece_by_piece(h100):
    """4,096 requests at once on 1,024 ranks: each call sends some work, and the next is at once."""
    rng = random.Random(2)
    requests = [
        waiting(make_request(f"r{index}", rng.choice(list(SLO_S)), slo_s=rng.uniform(2.0, 20.0)))
        for index in range(4096)
    ]
    policy = make_policy(SchedulerSettings(policy="tetris"), h100, 1024)
    view = idle_view(requests, range(1024), 1024, 0.0)
    used, now_s = set(), 0.0
    for _ in range(20):
        plan = policy.plan(view, now_s)
        used |= {rank for entry in plan.assignments for rank in entry.placement.ranks}
        if len(used) > 900:
            break
        assert plan.wake_at_s == pytest.approx(now_s + 1e-4), "there is more to do at once"
        now_s = plan.wake_at_s
    assert len(used) > 900


def test_pods_where_nothing_happens_have_their_turn_beside_busy_ones(h100):
    """At each call something has changed in the first pods, as many as one call plans; the others wait too."""
    requests = [waiting(make_request(f"r{index}", 1024, slo_s=20.0)) for index in range(512)]
    policy = make_policy(SchedulerSettings(policy="tetris"), h100, 512)
    used: set[int] = set()
    for number in range(32):
        now_s = 0.001 * number
        view = idle_view(requests, range(512), 512, now_s)
        ranks = tuple(
            replace(r, free_at_s=now_s) if r.rank < 64 else old for r, old in zip(view.ranks, STILL, strict=True)
        )
        used |= {
            rank
            for entry in policy.plan(replace(view, ranks=ranks), now_s).assignments
            for rank in entry.placement.ranks
        }
    assert len({rank // 32 for rank in used}) == 16


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    arrivals=ARRIVALS,
    world_size=st.sampled_from([5, 8, 12, 16]),
    pod_size=st.sampled_from([1, 2, 4]),
    failures=st.lists(
        st.builds(RankFailure, rank=st.integers(0, 4), at_s=st.floats(0.0, 6.0), respawn_s=st.floats(0.1, 4.0)),
        max_size=2,
        unique_by=lambda failure: failure.rank,
    ),
)
def test_every_request_is_served_by_the_rules(h100, arrivals, world_size, pod_size, failures):
    config = SchedulerSettings(policy="tetris", pod_size=pod_size)
    run = serve(stream(arrivals), h100, world_size, config, failures=failures)
    assert all(outcome.outcome == "finish" for outcome in run.outcomes.values())


def poisson(seed, count, per_minute):
    rng = random.Random(seed)
    now_s, requests = 0.0, []
    for index in range(count):
        now_s += rng.expovariate(per_minute / 60)
        side = rng.choice(list(SLO_S))
        requests.append(make_request(f"r{index}", side, arrival_s=now_s, slo_s=SLO_S[side]))
    return requests


def test_pods_are_deterministic(h100):
    requests = poisson(1, 120, 192)
    first, second = (serve(requests, h100, 32, SchedulerSettings(policy="tetris")).segments for _ in range(2))
    assert first == second
