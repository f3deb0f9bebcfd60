"""Random streams in virtual time: no policy breaks a rule, and every request ends, whatever comes."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.scheduler.conftest import POLICIES, SLO_S, make_request, serve
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.simulator.virtual_world import RankFailure

ARRIVALS = st.lists(
    st.tuples(
        st.floats(0.0, 1.5),
        st.sampled_from([(256, 256), (512, 512), (1024, 1024), (2048, 2048), (272, 272), (1024, 512), (2032, 2032)]),
        st.integers(1, 30),
        st.floats(0.05, 8.0),
    ),
    min_size=1,
    max_size=14,
)
ARRIVALS_OF_SMALL = st.lists(
    st.tuples(st.floats(0.0, 0.4), st.just((256, 256)), st.integers(1, 30), st.floats(0.5, 4.0)),
    min_size=2,
    max_size=20,
)
FAILURES = st.lists(
    st.builds(RankFailure, rank=st.integers(0, 7), at_s=st.floats(0.0, 6.0), respawn_s=st.floats(0.1, 4.0)),
    max_size=2,
    unique_by=lambda failure: failure.rank,
)
ROUNDS = st.builds(
    SchedulerSettings,
    policy=st.just("tetriserve"),
    step_granularity=st.integers(1, 15),
    placement_preservation=st.booleans(),
    elastic_scale_up=st.booleans(),
    boundary_grace=st.sampled_from([0.0, 0.1, 0.5]),
    boundary_overrun=st.sampled_from([0.0, 0.5, 1.0]),
    late_limit_s=st.sampled_from([None, 0.0, 2.0]),
    max_batch=st.sampled_from([1, 2, 4]),
)
TETRIS = st.builds(
    SchedulerSettings,
    policy=st.just("tetris"),
    elastic_scale_up=st.booleans(),
    segment_seconds=st.sampled_from([0.02, 0.2, 0.25, 2.0]),
    plan_tries=st.integers(1, 12),
    plan_candidates=st.integers(1, 4),
    max_batch=st.sampled_from([1, 2, 4]),
    batch_patience_s=st.sampled_from([0.0, 0.25, 1.0]),
)
OTHERS = st.builds(SchedulerSettings, policy=st.sampled_from(POLICIES[2:]), max_segment_steps=st.integers(1, 20))


def stream(arrivals):
    now_s, requests = 0.0, []
    for index, (gap_s, (height, width), num_steps, slo_s) in enumerate(arrivals):
        now_s += gap_s
        request = make_request(f"r{index}", height, arrival_s=now_s, slo_s=slo_s, num_steps=num_steps)
        requests.append(replace(request, width=width))
    return requests


def check_segments(run, requests):
    """Steps of each request in order and all there, when no rank was lost."""
    for request in requests:
        parts = [p for _, s in run.segments for p in s.parts if p.request_id == request.request_id and s.num_steps]
        done = 0
        for part in parts:
            assert part.first_step == done
            done += part.num_steps
        assert done == request.num_steps


@settings(derandomize=True, deadline=None, max_examples=120)
@given(arrivals=ARRIVALS, config=st.one_of(ROUNDS, TETRIS, OTHERS), lead_s=st.sampled_from([0.0, 0.02]))
def test_every_request_is_served_by_the_rules(h100, arrivals, config, lead_s):
    requests = stream(arrivals)
    run = serve(requests, h100, 8, config, lead_s=lead_s)
    assert all(outcome.outcome == "finish" for outcome in run.outcomes.values())
    check_segments(run, requests)


@settings(derandomize=True, deadline=None, max_examples=80)
@given(arrivals=ARRIVALS, config=st.one_of(ROUNDS, TETRIS, OTHERS), failures=FAILURES)
def test_every_request_is_served_although_ranks_are_lost(h100, arrivals, config, failures):
    run = serve(stream(arrivals), h100, 8, config, failures=failures)
    assert all(outcome.outcome == "finish" for outcome in run.outcomes.values())


@settings(derandomize=True, deadline=None, max_examples=60)
@given(arrivals=ARRIVALS_OF_SMALL, config=st.one_of(ROUNDS, TETRIS), failures=FAILURES)
def test_batches_end_well_although_ranks_are_lost(h100, arrivals, config, failures):
    requests = stream(arrivals)
    run = serve(requests, h100, 8, config, failures=failures)
    assert all(outcome.outcome == "finish" for outcome in run.outcomes.values())
    if not failures:
        check_segments(run, requests)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    arrivals=ARRIVALS,
    config=st.one_of(ROUNDS, TETRIS, OTHERS.filter(lambda s: s.policy != "fixed-sp8")),
    seed=st.integers(),
)
def test_segments_may_take_longer_or_shorter_than_profiled(h100, arrivals, config, seed):
    noise = random.Random(seed)
    run = serve(stream(arrivals), h100, 6, config, stretch=lambda segment, start_s: noise.uniform(0.8, 1.5))
    assert all(outcome.outcome == "finish" for outcome in run.outcomes.values())


def poisson_uniform(seed: int, slo_scale: float):
    rng = random.Random(seed)
    now_s, requests = 0.0, []
    for index in range(300):
        now_s += rng.expovariate(12 / 60)
        side = rng.choice(list(SLO_S))
        requests.append(make_request(f"r{index}", side, arrival_s=now_s, slo_s=SLO_S[side] * slo_scale))
    return requests


@pytest.mark.parametrize("slo_scale", [1.0, 1.5])
def test_tetriserve_beats_every_baseline_on_the_load_of_the_paper(h100, slo_scale):
    requests = poisson_uniform(0, slo_scale)
    attained = {
        policy: serve(requests, h100, 8, SchedulerSettings(policy=policy)).slo_attainment for policy in POLICIES
    }
    ours = attained.pop("tetris")
    assert attained["tetriserve"] == max(attained.values()), "of the policies before ours"
    assert attained["tetriserve"] > 0.95
    assert ours > attained["tetriserve"] - 0.01


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_are_deterministic(h100, policy):
    requests = poisson_uniform(1, 1.0)[:60]
    first, second = (serve(requests, h100, 8, SchedulerSettings(policy=policy)).segments for _ in range(2))
    assert first == second
