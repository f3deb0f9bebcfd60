"""Workloads have the rates, mixes and deadlines that they were asked for, and are the same for the same seed."""

import itertools
import math
import statistics

import pytest
from pydantic import ValidationError

from tetriserve_backend.domain import image_tokens
from tetriserve_backend.simulator.trace import TraceError
from tetriserve_backend.simulator.workload import Arrivals, ImportFormat, WorkloadSpec, generate, import_requests


def made(**settings):
    return list(generate(WorkloadSpec(**settings)))


def gaps(requests):
    return [b.arrival_s - a.arrival_s for a, b in itertools.pairwise(requests)]


def test_the_same_seed_gives_the_same_trace_and_another_one_does_not():
    assert made(requests=50, seed=3) == made(requests=50, seed=3) != made(requests=50, seed=4)


def test_a_longer_trace_begins_like_a_shorter_one():
    assert made(requests=9000, seed=1)[:5000] == made(requests=5000, seed=1)


def test_slo_scale_mix_and_rate_change_only_what_they_name():
    base, scaled = made(requests=100), made(requests=100, slo_scales=(1.5,))
    assert [(r.arrival_s, r.height) for r in base] == [(r.arrival_s, r.height) for r in scaled]
    assert all(b.slo_s == pytest.approx(1.5 * a.slo_s) for a, b in zip(base, scaled, strict=True))
    faster = made(requests=100, rate_per_minute=24)
    assert [r.height for r in faster] == [r.height for r in base]
    assert all(b.arrival_s == pytest.approx(a.arrival_s / 2, abs=1e-6) for a, b in zip(base, faster, strict=True))
    assert [r.arrival_s for r in made(requests=100, mix="skewed")] == [r.arrival_s for r in base]


@pytest.mark.parametrize("arrivals", list(Arrivals))
def test_arrivals_ascend_at_the_mean_rate(arrivals):
    requests = made(requests=12_000, arrivals=arrivals, rate_per_minute=120, period_s=300, seed=2)
    assert all(gap >= 0 for gap in gaps(requests))
    assert requests[-1].arrival_s == pytest.approx(12_000 / 2, rel=0.05)


def test_gaps_have_the_spread_of_their_kind():
    spread = {
        kind: statistics.stdev(gaps(requests)) / statistics.mean(gaps(requests))
        for kind in (Arrivals.POISSON, Arrivals.GAMMA, Arrivals.FIXED)
        for requests in [made(requests=12_000, arrivals=kind, cv=2.0, seed=5)]
    }
    assert spread[Arrivals.POISSON] == pytest.approx(1.0, abs=0.05)
    assert spread[Arrivals.GAMMA] == pytest.approx(2.0, abs=0.15)
    assert spread[Arrivals.FIXED] == pytest.approx(0.0, abs=1e-6)


def share_of_arrivals(requests, in_phase):
    return sum(in_phase(request.arrival_s) for request in requests) / len(requests)


@pytest.mark.parametrize(("factor", "share"), [(3.0, 0.75), (4.0, 1.0)])
def test_bursts_put_their_share_into_the_on_phase(factor, share):
    requests = made(
        requests=8000, arrivals="bursts", burst_on_s=15, burst_off_s=45, burst_factor=factor, rate_per_minute=60
    )
    assert share_of_arrivals(requests, lambda at_s: at_s % 60 <= 15 + 1e-6) == pytest.approx(share, abs=0.02)


def test_diurnal_arrivals_crowd_into_the_half_period_above_the_mean():
    requests = made(requests=12_000, arrivals="diurnal", period_s=600, amplitude=0.8, rate_per_minute=120)
    assert share_of_arrivals(requests, lambda at_s: at_s % 600 < 300) == pytest.approx(0.5 + 0.8 / math.pi, abs=0.02)


def test_the_skewed_mix_follows_the_paper_and_uniform_is_even():
    counts = {}
    for request in made(requests=40_000, mix="skewed", alpha=2.0):
        counts[request.height] = counts.get(request.height, 0) + 1
    weights = {side: math.exp(2.0 * image_tokens(side, side) / image_tokens(2048, 2048)) for side in counts}
    for side, count in counts.items():
        assert count / 40_000 == pytest.approx(weights[side] / sum(weights.values()), abs=0.01)
    even = WorkloadSpec().weights()
    assert set(even.values()) == {0.25} and (2048, 2048) in even


def test_one_resolution_and_weights_are_mixes_too():
    assert {r.width for r in made(requests=20, mix="768x512")} == {512}
    shapes = [(r.height, r.width) for r in made(requests=4000, mix={"256x256": 3, "512x768": 1})]
    assert shapes.count((512, 768)) / 4000 == pytest.approx(0.25, abs=0.03)


def test_a_shape_between_gets_an_slo_between_and_one_outside_the_nearest():
    spec = WorkloadSpec()
    assert spec.base_slo_s(1024, 1024) == 3.0
    assert 2.0 < spec.base_slo_s(768, 768) < 3.0
    assert spec.base_slo_s(128, 128) == 1.5 and spec.base_slo_s(4096, 4096) == 5.0


def test_steps_and_slo_classes_are_drawn_from_what_was_given():
    requests = made(requests=2000, min_steps=8, max_steps=50, slo_scales=(1.0, 1.5), mix="256x256")
    assert {r.num_inference_steps for r in requests} == set(range(8, 51))
    assert {r.slo_s for r in requests} == {1.5, 2.25}


def test_a_mix_of_weights_is_named_by_them_in_whichever_order_they_were_given():
    first, same, other = {"512x512": 1, "256x256": 2.5}, {"256x256": 2.5, "512x512": 1}, {"256x256": 2, "512x512": 1}
    names = [WorkloadSpec(mix=mix).labels()["mix"] for mix in (first, same, other, "skewed")]
    assert names == ["256x256:2.5 512x512:1", "256x256:2.5 512x512:1", "256x256:2 512x512:1", "skewed"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mix": "zipf"}, "uniform, skewed"),
        ({"mix": {"256x256": -1}}, "at least 0"),
        ({"mix": {"256x256": 0}}, "above 0"),
        ({"min_steps": 9, "max_steps": 8}, "exceeds"),
        ({"arrivals": "bursts", "burst_factor": 5}, "no room"),
        ({"slo_s": {}}, "at least one"),
        ({"rat": 3}, "rat"),
        ({"rate_per_minute": math.inf}, "finite"),
        ({"slo_scales": (math.inf,)}, "finite"),
        ({"slo_s": {"256x256": math.inf}}, "finite"),
        ({"cv": math.inf}, "finite"),
        ({"period_s": math.nan}, "finite"),
        ({"burst_factor": math.inf}, "finite"),
    ],
)
def test_a_spec_that_makes_no_sense_says_why(settings, message):
    with pytest.raises(ValidationError, match=message):
        WorkloadSpec(**settings)


HETU_LINES = """\
Request(request_id=0, timestamp=0.0, height=256, width=256, num_frames=1, prompt='A (dim) city', negative_prompt='low, bad', num_inference_steps=28)

Request(request_id=1, timestamp=0.666667, height=2048, width=1024, num_frames=1, prompt="It's", negative_prompt='', num_inference_steps=28)
"""  # noqa: E501


def written(tmp_path, text):
    path = tmp_path / "other_trace.txt"
    path.write_text(text)
    return path


def test_a_hetu_dit_trace_keeps_its_times_and_gets_slos(tmp_path):
    spec = WorkloadSpec(slo_scales=(2.0,))
    first, second = import_requests(written(tmp_path, HETU_LINES), ImportFormat.HETU_DIT, spec)
    assert (first.id, first.arrival_s, first.slo_s, first.prompt) == ("0", 0.0, 3.0, "A (dim) city")
    assert (second.height, second.width, second.num_inference_steps) == (2048, 1024, 28)
    assert second.arrival_s == 0.666667 and second.prompt == "It's"


def test_a_vllm_omni_trace_without_times_gets_arrivals_from_the_spec(tmp_path):
    lines = "\n".join(
        f"Request(request_id='req-{i}', prompt='p', width=512, height=768, num_inference_steps=20)" for i in range(40)
    )
    path, spec = written(tmp_path, lines), WorkloadSpec(rate_per_minute=60, arrivals="fixed")
    requests = import_requests(path, ImportFormat.VLLM_OMNI, spec)
    assert [r.arrival_s for r in requests[:3]] == [1.0, 2.0, 3.0] and requests[0].height == 768


def test_vllm_omni_lines_may_be_json_and_carry_their_own_slo(tmp_path):
    text = '{"prompt": "p", "width": 512, "height": 512, "slo_ms": 2500, "timestamp": 4.5}\n'
    (request,) = import_requests(written(tmp_path, text), ImportFormat.VLLM_OMNI, WorkloadSpec(max_steps=30))
    assert (request.id, request.slo_s, request.arrival_s, request.num_inference_steps) == ("r0", 2.5, 4.5, 30)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Request(request_id=0, height=256, width=256)", ":1: timestamp"),
        (HETU_LINES.replace("num_frames=1", "num_frames=49"), ":1: num_frames"),
        (HETU_LINES + "garbage", ":4: expected Request"),
        ("Request(timestamp=0, height=open('x'), width=256)", ":1: expected Request"),
        ("Request(timestamp=0, height=256)", ":1: width"),
    ],
)
def test_a_broken_import_is_named_by_file_and_line(tmp_path, text, message):
    with pytest.raises(TraceError, match=message):
        import_requests(written(tmp_path, text), ImportFormat.HETU_DIT, WorkloadSpec())
