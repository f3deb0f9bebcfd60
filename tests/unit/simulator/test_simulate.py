"""A simulation serves every request by the rules of the ranks, and its summary counts what happened."""

import itertools
import tracemalloc

import pytest

from tests.unit.simulator.conftest import make_request
from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.engine.timeline import TimelineRecorder
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.simulator.run import SimulationSettings, simulate
from tetriserve_backend.simulator.summary import Summary
from tetriserve_backend.simulator.virtual_world import RankFailure
from tetriserve_backend.simulator.workload import WorkloadSpec, generate

POLICIES = ("tetriserve", "rssp", "fcfs-optimal-shape", "fixed-sp1", "fixed-sp8")


def settings(policy="tetriserve", gpus=8, **more):
    return SimulationSettings(gpus, SchedulerSettings(policy=policy), **more)


def requests_of(**spec):
    return [request.to_request() for request in generate(WorkloadSpec(**spec))]


def check_timeline(events, requests, table, *, exact=True):
    """The rules that every timeline keeps; returns the ids that ended in time."""
    by_rank, by_request, steps, decoded, ends = {}, {}, {}, set(), {}
    for event in events:
        if event["ph"] == "X":
            args, span = event["args"], (event["ts"], event["ts"] + event["dur"])
            by_rank.setdefault(event["tid"], []).append(span)
            if event["tid"] != args["gpus"][0]:
                continue
            for part in args["requests"]:
                by_request.setdefault(part["id"], []).append(span)
                if event["cat"] == "denoise":
                    steps.setdefault(part["id"], []).append((span[0], part["first_step"], part["steps"]))
                    least_s = part["steps"] * table.step_s(
                        args["height"], args["width"], len(args["gpus"]), len(args["requests"])
                    )
                    assert not exact or event["dur"] >= 1e6 * least_s - 2
                if event["cat"] == "decode":
                    decoded.add(part["id"])
        elif event["ph"] == "i" and event["name"] != "arrive":
            assert event["args"]["id"] not in ends, "ends once"
            ends[event["args"]["id"]] = (event["name"], event["ts"])
    for spans in (*by_rank.values(), *by_request.values()):
        spans.sort()
        assert all(a[1] <= b[0] + 2 for a, b in itertools.pairwise(spans)), "one thing at a time"
    on_time = set()
    for request in requests:
        outcome, end_us = ends[request.request_id]
        if outcome != "finish":
            continue
        parts = sorted(steps[request.request_id])
        assert [first for _, first, _ in parts] == [0, *itertools.accumulate(n for _, _, n in parts)][:-1]
        assert sum(n for _, _, n in parts) == request.num_steps and request.request_id in decoded
        assert by_request[request.request_id][0][0] >= 1e6 * request.arrival_s - 2
        if end_us <= 1e6 * request.deadline_s + 1:
            on_time.add(request.request_id)
    return on_time


@pytest.mark.parametrize("policy", POLICIES)
def test_the_timeline_keeps_the_rules_and_the_summary_counts_what_it_shows(h100, policy):
    requests, timeline = requests_of(requests=60, rate_per_minute=30, min_steps=8, max_steps=30), TimelineRecorder()
    summary = simulate(h100, requests, settings(policy), timeline=timeline)
    assert len(check_timeline(timeline.events, requests, h100)) == summary.on_time
    assert summary.requests == 60 and summary.outcomes == {"finish": 60}
    assert sum(part.requests for part in summary.by_resolution.values()) == 60
    assert 0 < summary.gpu_utilization <= 1 and summary.decision_ms["count"] > 0
    assert all(1 <= degree <= 8 for degree in summary.mean_sp.values())


def test_the_same_run_twice_gives_the_same_summary(h100):
    requests = requests_of(requests=40, rate_per_minute=30)

    def run():
        return simulate(h100, requests, settings(noise_cv=0.05, noise_seed=2)).to_dict() | {"decision_ms": 0}

    assert run() == run()


def test_a_request_alone_takes_what_the_table_says(h100):
    request = make_request("r0", 1024, num_steps=20)
    summary = simulate(h100, [request], settings("fixed-sp1"))
    busy_s = h100.encode_s() + 20 * h100.step_s(1024, 1024, 1) + h100.decode_s(1024, 1024)
    segments = 2 + 4  # encode, decode, and pieces of five steps
    assert summary.latency_s["max"] == pytest.approx(busy_s + segments * h100.dispatch_s)
    assert summary.mean_sp == {"1024x1024": 1.0}
    assert summary.gpu_utilization == pytest.approx(1 / 8)


def test_lost_ranks_cost_time_but_no_request(h100):
    requests, timeline = requests_of(requests=40, rate_per_minute=30, seed=1), TimelineRecorder()
    failures = (RankFailure(3, at_s=10.0, respawn_s=20.0), RankFailure(0, at_s=31.0, respawn_s=5.0))
    summary = simulate(h100, requests, settings(failures=failures), timeline=timeline)
    assert summary.outcomes == {"finish": 40}
    assert len(check_timeline(timeline.events, requests, h100)) == summary.on_time
    assert not any(e["ph"] == "X" and e["tid"] == 3 and 10.0 < e["ts"] / 1e6 < 30.0 for e in timeline.events)


def test_a_world_that_loses_all_its_ranks_for_good_fails_what_is_left(h100):
    requests = requests_of(requests=10, rate_per_minute=60)
    failures = tuple(RankFailure(rank, at_s=2.0, respawn_s=float("inf")) for rank in range(8))
    summary = simulate(h100, requests, settings(failures=failures))
    assert summary.requests == 10 and summary.outcomes.get("fail", 0) + summary.outcomes.get("finish", 0) == 10
    assert summary.outcomes["fail"] > 0


def test_a_resolution_outside_the_table_is_rejected_and_counts_as_missed(h100):
    requests = [make_request("r0", 256), make_request("r1", 4096, arrival_s=0.1)]
    summary = simulate(h100, requests, settings())
    assert summary.outcomes == {"finish": 1, "reject": 1} and summary.slo_attainment == 0.5


def test_an_id_that_is_still_in_use_is_an_error_and_may_be_used_again_later(h100):
    with pytest.raises(ConfigurationError, match="'r0' arrives while"):
        simulate(h100, [make_request("r0"), make_request("r0", arrival_s=0.1)], settings())
    assert simulate(h100, [make_request("r0"), make_request("r0", arrival_s=50)], settings()).on_time == 2


def test_an_empty_trace_has_a_summary(h100):
    summary = simulate(h100, [], settings())
    assert (summary.requests, summary.slo_attainment, summary.gpu_utilization) == (0, 1.0, 0.0)


def test_noise_changes_durations_and_nothing_else(h100):
    requests, timeline = requests_of(requests=30, rate_per_minute=20), TimelineRecorder()
    noisy = simulate(h100, requests, settings(noise_cv=0.05), timeline=timeline)
    check_timeline(timeline.events, requests, h100, exact=False)
    assert noisy.latency_s["mean"] != simulate(h100, requests, settings()).latency_s["mean"]


def test_a_summary_survives_its_file_format(h100):
    summary = simulate(h100, requests_of(requests=20), settings(), bound_on_time=20, labels={"mix": "x"})
    values = summary.to_dict()
    assert Summary.from_dict(values) == summary
    assert values["slo_attainment"] == summary.on_time / 20 and values["bound"] == 1.0
    assert set(values["latency_s"]) >= {"mean", "p50", "p90", "p99"} and set(values["decision_ms"]) >= {
        "p50",
        "p99",
        "max",
    }
    assert values["latency_cdf_s"] == sorted(values["latency_cdf_s"])


def test_memory_does_not_grow_with_the_length_of_the_trace(h100):
    def peak_bytes(count):
        stream = (
            request.to_request()
            for request in generate(WorkloadSpec(requests=count, mix="256x256", max_steps=1, min_steps=1))
        )
        tracemalloc.start()
        simulate(h100, stream, settings("fixed-sp1"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(50)
    assert peak_bytes(1500) < 1.3 * peak_bytes(500) + 200_000
