"""A server's timeline is cut into one per trace, and summed up as the simulator sums up its own."""

import pytest

from tests.unit.simulator.conftest import small_table
from tetriserve_backend.cli.bench import predicted
from tetriserve_backend.cli.bench.observed import (
    cut_out,
    read_events,
    segments_of,
    summarize,
    write_timeline,
)
from tetriserve_backend.cli.bench.predicted import ServedTrace, Simulator, image_seconds
from tetriserve_backend.cli.bench.replay import Answer
from tetriserve_backend.cli.bench.results import BenchRun
from tetriserve_backend.cli.timeline_check import find_problems, find_trace_problems
from tetriserve_backend.domain import Placement, Segment, SegmentKind, SegmentPart
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.timeline import TimelineRecorder, segment_events
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.simulator.pace import Pace
from tetriserve_backend.simulator.run import SimulationSettings, simulate
from tetriserve_backend.simulator.sweep import Variant
from tetriserve_backend.simulator.trace import TraceRequest
from tetriserve_backend.simulator.workload import WorkloadSpec

TRACE = [
    TraceRequest(id=f"r{n}", arrival_s=0.4 * n, height=side, width=side, num_inference_steps=6, slo_s=2.0)
    for n, side in enumerate((256, 512, 256, 512, 512, 256))
]
LATE_S = 0.003


def a_run(cell):
    return BenchRun(cell, WorkloadSpec(seed=cell), Variant(name="tetris", scheduler=SchedulerSettings(policy="tetris")))


@pytest.fixture(scope="module")
def served():
    """Two traces, one after the other, with each request but the first a little late; and the first one's summary."""
    events, summary = [], None
    for prefix, begin_s in (("c000-", 7.0), ("c001-", 60.0)):
        timeline = TimelineRecorder()
        requests = [
            request.model_copy(
                update={"id": prefix + request.id, "arrival_s": begin_s + request.arrival_s + LATE_S * (index > 0)}
            ).to_request()
            for index, request in enumerate(TRACE)
        ]
        settings = SimulationSettings(4, SchedulerSettings(policy="tetris"))
        found = simulate(small_table(dispatch_s=0.001), requests, settings, timeline=timeline)
        summary = summary or found
        events += timeline.events
    return events, summary


def test_a_trace_is_cut_out_under_its_own_ids_and_on_its_own_clock(served):
    events, _ = served
    for prefix in ("c000-", "c001-"):
        own = cut_out(events, TRACE, prefix)
        arrivals = {event["args"]["id"]: event["ts"] / 1e6 for event in own if event["name"] == "arrive"}
        late_s = [arrivals[request.id] - request.arrival_s for request in TRACE]
        assert late_s == pytest.approx([0.0] + [LATE_S] * (len(TRACE) - 1), abs=1e-5)
        assert find_problems(own, 4) == [] and find_trace_problems(own, {r.id: r.slo_s for r in TRACE}) == []


def test_the_summary_of_a_timeline_is_that_of_the_run_which_wrote_it(served):
    events, expected = served
    own = cut_out(events, TRACE, "c000-")
    answers = {request.id: Answer(request.id, 0.0, 1.0, predicted_finish_s=0.5) for request in TRACE}
    found = summarize(own, TRACE, answers, policy="tetris", gpus=4, decision_ms={"p99": 1.0}, labels={"mix": "m"})
    assert (found.requests, found.on_time, found.outcomes) == (len(TRACE), expected.on_time, expected.outcomes)
    assert found.latency_s["mean"] == pytest.approx(expected.latency_s["mean"], rel=1e-4)
    assert found.mean_sp == pytest.approx(expected.mean_sp) and found.decision_ms == {"p99": 1.0}
    assert found.gpu_utilization == pytest.approx(expected.gpu_utilization, rel=0.02)
    assert found.prediction.expected_on_time == len(TRACE)


def test_a_request_that_never_ended_is_a_problem_of_the_timeline(served):
    own = [
        event
        for event in cut_out(served[0], TRACE, "c000-")
        if not (event["name"] == "finish" and event["args"]["id"] == "r3")
    ]
    assert find_problems(own, 4) == ["r3: ended 0 times"]


def test_a_request_without_an_end_on_the_timeline_failed(served):
    """It was refused before the engine, or lost with its server; it was submitted all the same."""
    own = cut_out(served[0], TRACE, "c000-")
    cut = [e for e in own if e["args"].get("id") != "r0" and not (e["name"] == "finish" and e["args"]["id"] == "r3")]
    found = summarize(cut, TRACE, {}, policy="tetris", gpus=4, decision_ms={}, labels={})
    assert found.requests == len(TRACE) and found.outcomes == {"fail": 2, "finish": len(TRACE) - 2}


def test_a_request_that_ends_without_having_arrived_failed_and_of_several_ends_the_first_counts(served):
    own = cut_out(served[0], TRACE, "c000-")
    ends = {event["args"]["id"]: event for event in own if event["name"] == "finish"}
    wrong = [event for event in own if not (event["name"] == "arrive" and event["args"]["id"] == "r0")]
    wrong += [{**ends["r1"], "name": "fail"}, {**ends["r2"], "args": {"id": "r99"}}]
    wrong += [{**event, "args": {**event["args"], "id": "r98"}} for event in own if event["name"] == "arrive"][:1]
    found = summarize(wrong, TRACE, {}, policy="tetris", gpus=4, decision_ms={}, labels={})
    assert found.requests == len(TRACE) and found.outcomes == {"fail": 1, "finish": len(TRACE) - 1}
    problems = [*find_problems(wrong, 4), *find_trace_problems(wrong, {r.id: r.slo_s for r in TRACE})]
    assert {"r0: arrived 0 times", "r1: ended 2 times", "r98: not in the trace"} <= set(problems)
    assert "r99: ended but never arrived" in problems


def test_the_split_of_guidance_is_read_back():
    segment = Segment(3, SegmentKind.DENOISE, (SegmentPart("r0", 0, 2),), Placement((0, 1)), 512, 512, cfg_degree=2)
    (timed,) = segments_of(segment_events(segment, 1.0, 2.0))
    assert timed.segment == segment


def test_every_segment_comes_once_whatever_its_degree(served):
    own = cut_out(served[0], TRACE, "c000-")
    segments = list(segments_of(own))
    numbers = [timed.segment.segment_id for timed in segments]
    assert len(numbers) == len(set(numbers)) == len({e["args"]["segment"] for e in own if e["ph"] == "X"})
    steps = sum(part.num_steps for timed in segments for part in timed.segment.parts)
    assert steps == sum(request.num_inference_steps for request in TRACE)


def test_a_written_timeline_reads_back(served, tmp_path):
    own = cut_out(served[0], TRACE, "c001-")
    write_timeline(tmp_path / "x.timeline.json", own)
    assert read_events(tmp_path / "x.timeline.json") == own


def test_the_cost_of_an_image_file_is_what_comes_behind_the_pixels(served):
    own = cut_out(served[0], TRACE, "c000-")
    arrivals_s = {event["args"]["id"]: event["ts"] / 1e6 for event in own if event["name"] == "arrive"}
    answers = {}
    for event in own:
        if event["name"] == "finish":
            request_id = event["args"]["id"]
            extra_s = 0.01 if TRACE[int(request_id[1:])].height == 256 else 0.04
            total_s = event["ts"] / 1e6 - arrivals_s[request_id] + extra_s
            answers[request_id] = Answer(request_id, 0.0, total_s, total_s=total_s)
    found = image_seconds([ServedTrace(a_run(0), TRACE, own, answers)])
    assert found == pytest.approx({(256, 256): 0.01, (512, 512): 0.04}, abs=1e-5)


def test_a_policy_with_an_engine_of_its_own_is_predicted_with_it(served, monkeypatch):
    used = []
    monkeypatch.setattr(predicted, "simulate", lambda told, requests, settings, **_: used.append(settings.engine))
    own, shared = EngineSettings(lead_s=0.5), EngineSettings()
    for engine, expected in ((own, own), (None, shared)):
        variant = Variant(name="tetris", scheduler=SchedulerSettings(policy="tetris"), engine=engine)
        one = ServedTrace(BenchRun(0, WorkloadSpec(), variant), TRACE, cut_out(served[0], TRACE, "c000-"), {})
        used.clear()
        Simulator(small_table(), small_table(), shared, 4, {}).by_table([one])
        assert set(used) == {expected}


def test_the_traces_of_a_server_are_predicted_one_by_one_from_what_came_to_it(served):
    table = small_table(dispatch_s=0.001)
    simulator = Simulator(table, table, EngineSettings(), 4, {(512, 512): 10.0})
    traces = [ServedTrace(a_run(cell), TRACE, cut_out(served[0], TRACE, f"c{cell:03d}-"), {}) for cell in (0, 1)]
    paces = [Pace(segments_of(one.events), table) for one in traces]
    by_table, at_pace = simulator.by_table(traces), simulator.at_pace(traces, paces)
    for prediction in (*by_table, *at_pace):
        assert {draw.requests for draw in prediction.draws} == {len(TRACE)}
        assert prediction.draws[0].latency_s["mean"] == pytest.approx(served[1].latency_s["mean"], rel=0.05)
        assert prediction.images_on_time == 3, "an image file of 512x512 takes longer than its deadline allows"
    arrivals_s = [event["ts"] / 1e6 for event in at_pace[1].events if event["name"] == "arrive"]
    assert arrivals_s == pytest.approx([request.arrival_s + LATE_S * (request.arrival_s > 0) for request in TRACE])
