"""Nothing beats the exact optimum, and that does not beat the bound."""

import random

import pytest

from tests.unit.simulator.conftest import DECODE_S, ENCODE_S, STEP_S, make_request, small_table
from tetriserve_backend.domain import Request, TetriserveError
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.simulator.bound import BoundCache, BoundError, BoundSettings, clairvoyant_bound
from tetriserve_backend.simulator.bound.exact import exact_optimum
from tetriserve_backend.simulator.bound.milp import RowWiseModel, maximise
from tetriserve_backend.simulator.bound.modes import fluid_shape
from tetriserve_backend.simulator.run import SimulationSettings, simulate
from tetriserve_backend.simulator.workload import WorkloadSpec, generate

POLICIES = ("tetriserve", "rssp", "fcfs-optimal-shape", "fixed-sp1", "fixed-sp4")
GPUS = 4


def alone_s(side: int, num_steps: int) -> float:
    """The shortest latency of a request that has the world for itself."""
    return ENCODE_S + num_steps * min(STEP_S[side].values()) + DECODE_S


def tiny_trace(seed: int) -> list[Request]:
    """Two or three requests of one to three steps, with deadlines from just possible to relaxed."""
    draw, requests, now_s = random.Random(seed), [], 0.0
    for index in range(draw.choice((2, 3))):
        now_s += draw.random() * 0.2
        side, steps = draw.choice((256, 512)), draw.choice((1, 2, 3))
        slo_s = alone_s(side, steps) * draw.uniform(1.0, 2.5)
        requests.append(make_request(f"r{index}", side, arrival_s=now_s, slo_s=slo_s, num_steps=steps))
    return requests


@pytest.mark.parametrize("seed", range(25))
def test_policies_stay_below_the_exact_optimum_and_that_below_the_bound(seed):
    table, requests = small_table(), tiny_trace(seed)
    best = exact_optimum(table, requests, GPUS)
    for policy in POLICIES:
        summary = simulate(table, requests, SimulationSettings(GPUS, SchedulerSettings(policy=policy)))
        assert summary.on_time <= best, policy
    for batching in (False, True):
        assert best <= clairvoyant_bound(table, requests, GPUS, BoundSettings(batching=batching)).on_time


def test_the_exact_optimum_runs_requests_side_by_side_where_that_saves_both():
    # One after the other on all GPUs the second ends at 0.85 s, both on two GPUs each at 0.73 s.
    requests = [make_request(name, 512, slo_s=0.74, num_steps=3) for name in ("a", "b")]
    assert exact_optimum(small_table(), requests, GPUS) == 2
    assert exact_optimum(small_table(), requests, 2) == 1, "two GPUs are just enough for one of them"


def test_a_request_counts_only_if_its_own_time_suffices():
    table = small_table()
    possible, impossible = alone_s(512, 4) * 1.001, alone_s(512, 4) * 0.999
    for slo_s, expected in ((possible, 1), (impossible, 0)):
        request = make_request("r0", 512, slo_s=slo_s, num_steps=4)
        assert clairvoyant_bound(table, [request], GPUS).on_time == expected
        assert exact_optimum(table, [request], GPUS) == expected


def test_the_world_limits_how_many_fit_into_one_window():
    # At one GPU each, 5 steps of 512 take 2.0 s and 2.07 s with encode and decode: one GPU, one request.
    requests = [make_request(f"r{index}", 512, slo_s=2.1, num_steps=5) for index in range(9)]
    bound = clairvoyant_bound(small_table(), requests, GPUS)
    assert bound.on_time == 4 and bound.optimal and bound.found == 4
    assert bound.requests == 9 and bound.slo_attainment == pytest.approx(4 / 9)


def test_batches_raise_the_bound_because_they_save_gpu_seconds():
    table = small_table(batches={(256, 1, 2): 0.11, (256, 1, 4): 0.2})
    requests = [make_request(f"r{index}", slo_s=0.7, num_steps=5) for index in range(12)]
    alone = clairvoyant_bound(table, requests, GPUS, BoundSettings(batching=False)).on_time
    assert clairvoyant_bound(table, requests, GPUS).on_time > alone


def test_an_encode_takes_what_one_prompt_takes_whatever_else_the_table_has():
    raw = small_table(dispatch_s=0.001).to_dict()
    raw["encode"].append({"batch": 4, "seconds": ENCODE_S / 2})
    shape = fluid_shape(LatencyTable.from_dict(raw, "t"), 512, 512, GPUS, batching=True)
    assert shape.encode_s == pytest.approx(ENCODE_S + 0.001)
    assert shape.single_gpu_s == pytest.approx(ENCODE_S + DECODE_S + 0.002)


def test_only_modes_that_a_mixture_cannot_replace_are_kept():
    shape = fluid_shape(small_table(batches={(512, 2, 2): 0.45}), 512, 512, GPUS, batching=True)
    assert [mode.gpus for mode in shape.modes] == [1.0, 2.0, 4.0], "a pair on two GPUs saves little, and is slow"
    (single, *_), narrow = shape.modes, fluid_shape(small_table(), 512, 512, 2, batching=True)
    assert single.steps_per_s == 2.5 and narrow.modes[-1].gpus == 2.0, "a group is never wider than the world"


def test_merging_intervals_and_cutting_blocks_only_loosens_the_bound(h100):
    spec = WorkloadSpec(requests=40, mix="skewed", rate_per_minute=40, seed=4)
    requests = [request.to_request() for request in generate(spec)]
    tight = clairvoyant_bound(h100, requests, 8).on_time
    assert tight < 40
    assert clairvoyant_bound(h100, requests, 8, BoundSettings(merge_s=1.0)).on_time >= tight
    assert clairvoyant_bound(h100, requests, 8, BoundSettings(block_requests=10)).on_time >= tight


def test_a_bound_that_ran_out_of_time_is_still_a_bound(h100):
    requests = [r.to_request() for r in generate(WorkloadSpec(requests=60, mix="skewed", rate_per_minute=40, seed=1))]
    rushed = clairvoyant_bound(h100, requests, 8, BoundSettings(time_limit_s=0.02))
    full = clairvoyant_bound(h100, requests, 8)
    assert full.optimal and rushed.found <= full.on_time <= rushed.on_time


def test_what_the_engine_refuses_counts_as_missed(h100):
    requests = [make_request("small", 128), make_request("known", 256, num_steps=20)]
    assert clairvoyant_bound(h100, requests, 8).on_time == 1


def test_a_kept_bound_is_read_back_and_another_trace_has_its_own(tmp_path):
    cache, table = BoundCache(tmp_path), small_table()
    first = [make_request(f"r{index}", 512, slo_s=2.1) for index in range(6)]
    computed = cache.bound(table, iter(first), GPUS, BoundSettings())
    (kept,) = tmp_path.iterdir()
    assert cache.bound(table, first, GPUS, BoundSettings()) == computed
    kept.write_text("broken")
    assert cache.bound(table, first, GPUS, BoundSettings()).on_time == computed.on_time
    cache.bound(table, first[:5], GPUS, BoundSettings())
    cache.bound(table, first, GPUS, BoundSettings(batching=False))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_solver_that_fails_is_an_error_that_commands_tell():
    model = RowWiseModel()
    model.row([(model.choice(), 1.0)], lower=2.0, upper=3.0)
    with pytest.raises(BoundError, match="bound: HiGHS ended with Infeasible") as failed:
        maximise(model, time_limit_s=1.0, gap=0.01)
    assert isinstance(failed.value, TetriserveError)
