"""Models of one server share its ranks, each by a latency table of its own."""

from dataclasses import replace

import pytest

from tests.unit.scheduler.conftest import (
    POLICIES,
    CheckedPolicy,
    denoise_of,
    idle_view,
    make_request,
    make_table,
    serve,
    waiting,
)
from tetriserve_backend.domain import InvalidRequestError
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.engine.events import ModelAdded, RequestArrived
from tetriserve_backend.latency_table import LatencyTables
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy

QUICK, SLOW = (0.1, 0.06, 0.04, 0.03), (0.4, 0.21, 0.11, 0.06)


def two_models() -> LatencyTables:
    return LatencyTables({"quick": make_table({512: QUICK}, 8), "slow": make_table({512: SLOW}, 8)})


@pytest.mark.parametrize("policy", POLICIES)
def test_each_request_takes_the_time_of_its_model(policy):
    pairs = [make_request(f"r{n}", 512, arrival_s=0.3 * n, num_steps=5) for n in range(20)]
    requests = [replace(request, model="quick" if n % 2 else "slow") for n, request in enumerate(pairs)]
    run = serve(requests, two_models(), 8, SchedulerSettings(policy=policy))
    assert all(outcome.outcome == "finish" for outcome in run.outcomes.values())
    for _, segment in run.segments:
        (part,) = segment.parts
        assert segment.model == run.outcomes[part.request_id].request.model
    alone = serve(requests[:2], two_models(), 8, SchedulerSettings(policy="fixed-sp1")).outcomes
    assert alone["r0"].end_s - 0.0 == pytest.approx(5 * 0.4 + 0.02)
    assert alone["r1"].end_s - 0.3 == pytest.approx(5 * 0.1 + 0.02)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("narrow_first", [True, False])
def test_models_of_one_resolution_run_at_their_own_degrees_and_paces(policy, narrow_first):
    tables = LatencyTables({"narrow": make_table({512: (0.5,)}, 8), "wide": make_table({512: SLOW}, 8)})
    models = ["narrow", "wide"] if narrow_first else ["wide", "narrow"]
    waits = [waiting(replace(make_request(model, 512, slo_s=12.0), model=model), steps=20) for model in models]
    policy = CheckedPolicy(make_policy(SchedulerSettings(policy=policy), tables, 8))
    sent = denoise_of(policy.plan(idle_view(waits, range(8), 8, 0.0), 0.0))
    assert sent, "a wide request may take all ranks, but something runs"
    assert all(len(ranks) == 1 for model, (ranks, _) in sent.items() if model == "narrow")


def test_a_round_holds_as_many_steps_of_a_request_as_its_model_does_in_it():
    tables = two_models()
    policy = make_policy(SchedulerSettings(policy="tetriserve"), tables, 8)
    waits = [
        waiting(replace(make_request(model, 512, num_steps=99, slo_s=99.0), model=model), steps=99)
        for model in ("quick", "slow")
    ]
    sent = denoise_of(policy.plan(idle_view(waits, range(8), 8, 0.0), 0.0))
    for model, times in (("quick", QUICK), ("slow", SLOW)):
        ranks, steps = sent[model]
        step_s = times[len(ranks).bit_length() - 1]
        assert steps * step_s <= policy.round_length_s + 1e-9 < (steps + 1) * step_s, model


def test_a_model_that_is_not_served_is_refused_by_name():
    tables = two_models()
    core = EngineCore(make_policy(SchedulerSettings(policy="rssp"), tables, 8), tables, 8, EngineSettings())
    (end,) = core.handle(RequestArrived(replace(make_request("r", 512), model="other")), 0.0)
    assert isinstance(end.error, InvalidRequestError)
    assert str(end.error) == "model: got 'other'; allowed: quick, slow"


def test_plans_follow_a_table_that_has_changed():
    tables = LatencyTables({"": make_table({512: QUICK}, 8)})
    policy = make_policy(SchedulerSettings(policy="tetriserve"), tables, 8)
    before = policy.round_length_s
    tables.put("", make_table({512: SLOW}, 8))
    core = EngineCore(policy, tables, 8, EngineSettings())
    core.handle(RequestArrived(make_request("r", 512)), 0.0)
    assert policy.round_length_s > 1.5 * before


@pytest.mark.parametrize("policy", POLICIES)
def test_model_that_comes_later_is_served_as_one_that_was_there(policy):
    def core_with(tables):
        return EngineCore(make_policy(SchedulerSettings(policy=policy), tables, 8), tables, 8, EngineSettings())

    request = replace(make_request("r", 512), model="quick")
    table = make_table({512: QUICK}, 8)
    early, late = core_with(LatencyTables({"quick": table})), core_with(LatencyTables({}))
    late.handle(ModelAdded("quick", table), 0.0)
    assert late.handle(RequestArrived(request), 0.0) == early.handle(RequestArrived(request), 0.0)
