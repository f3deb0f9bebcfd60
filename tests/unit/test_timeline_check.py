"""The checker that guards live timelines finds what it is there to find."""

import pytest

from tetriserve_backend.cli.timeline_check import find_problems, find_trace_problems


def work(segment, gpus, cat, ts, dur, first=None, steps=None, request="r0"):
    part = {"id": request} if first is None else {"id": request, "first_step": first, "steps": steps}
    args = {"segment": segment, "gpus": gpus, "requests": [part]}
    base = {"ph": "X", "cat": cat, "ts": ts, "dur": dur, "name": f"{cat} {request}", "args": args}
    return [{**base, "tid": gpu} for gpu in gpus]


def instant(name, ts, **args):
    return {"ph": "i", "name": name, "ts": ts, "args": {"id": "r0", **args}}


def good():
    return [
        instant("arrive", 0, num_inference_steps=4),
        *work(0, [0], "encode", 10, 10),
        *work(1, [0, 1], "denoise", 20, 50, 0, 3),
        *work(2, [1], "denoise", 70, 30, 3, 1),
        *work(3, [1], "decode", 100, 10),
        instant("finish", 115),
    ]


def test_a_good_timeline_has_no_problems():
    assert find_problems(good(), 2) == []


def test_an_id_may_be_used_again_after_its_request_ended():
    again = [{**event, "ts": event["ts"] + 1000} for event in good()]
    for event in again:
        if "segment" in event["args"]:
            event["args"] = {**event["args"], "segment": event["args"]["segment"] + 10}
    assert find_problems([*good(), *again], 2) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda e: e.pop(), "ended 0 times"),
        (lambda e: e.append(instant("cancel", 120)), "ended 2 times"),
        (lambda e: e.append(instant("finish", 120) | {"args": {"id": "ghost"}}), "ghost: ended but never arrived"),
        (lambda e: e[2].update(ts=15), "disagree"),
        (lambda e: e[1].update(ts=-10), "starts before it arrives"),
        (lambda e: e.pop(5), "finished without a decode"),
        (lambda e: e.pop(4), "finished after 3 steps"),
        (lambda e: e[4].update(ts=60), "overlap"),
        (lambda e: e[1]["args"].update(model="sd3"), "of another model"),
        (lambda e: e.extend(work(9, [2], "encode", 0, 1)), "GPU 2 does not exist"),
        (lambda e: e.extend(work(9, [0], "encode", 200, 1, request="ghost")), "never arrived"),
    ],
)
def test_each_broken_promise_is_named(change, problem):
    events = good()
    change(events)
    assert any(problem in found for found in find_problems(events, 2)), find_problems(events, 2)


def test_a_timeline_must_hold_each_request_of_its_trace_with_its_deadline():
    events = [instant("arrive", 1000, deadline_us=501_000)]
    assert find_trace_problems(events, {"r0": 0.5}) == []
    assert find_trace_problems(events, {"r0": 0.6}) == ["r0: its deadline is not arrival + SLO"]
    assert find_trace_problems(events, {"r0": 0.5, "r1": 1.0}) == ["r1: arrived 0 times"]
    assert find_trace_problems(events, {}) == ["r0: not in the trace"]
