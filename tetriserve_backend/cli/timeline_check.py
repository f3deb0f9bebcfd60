"""Checks a timeline against the promises of the engine, knowing nothing of the code that wrote it."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

TOLERANCE_US = 2
SLO_TOLERANCE_US = 2000
ENDS = {"finish", "reject", "cancel", "fail"}


def find_problems(events: Iterable[dict[str, Any]], num_gpus: int) -> list[str]:
    """What is wrong with these trace events, in words; empty if nothing is.

    No GPU does two things at once; the events of a segment agree; a request runs one segment at a time, not
    before it arrived, by the model that it asked for, its steps once each and in order; each arrival ends exactly
    once, and a finished request has all its steps and a decode behind it.
    """
    events = list(events)
    work = [event for event in events if event.get("ph") == "X"]
    return [*_gpu_problems(work, num_gpus), *_segment_problems(work), *_request_problems(events, work)]


def find_trace_problems(events: Iterable[dict[str, Any]], slo_s: Mapping[str, float]) -> list[str]:
    """What is wrong between these trace events and the trace that was sent, in words; empty if nothing is.

    Every request arrives once, with the deadline that its SLO gives, and nothing else does.

    Args:
        events: of a timeline that holds this trace alone.
        slo_s: by request id.
    """
    arrivals = defaultdict(list)
    for event in events:
        if event.get("ph") == "i" and event["name"] == "arrive":
            arrivals[event["args"]["id"]].append(event)
    problems = [f"{request_id}: not in the trace" for request_id in arrivals if request_id not in slo_s]
    for request_id, wanted_s in slo_s.items():
        own = arrivals.get(request_id, [])
        if len(own) != 1:
            problems.append(f"{request_id}: arrived {len(own)} times")
        elif abs(own[0]["args"]["deadline_us"] - own[0]["ts"] - 1e6 * wanted_s) > SLO_TOLERANCE_US:
            problems.append(f"{request_id}: its deadline is not arrival + SLO")
    return problems


def _gpu_problems(work: list[dict[str, Any]], num_gpus: int) -> Iterable[str]:
    by_gpu = defaultdict(list)
    for event in work:
        by_gpu[event["tid"]].append(event)
    for gpu, spans in by_gpu.items():
        if not 0 <= gpu < num_gpus:
            yield f"GPU {gpu} does not exist"
        yield from (f"GPU {gpu}: {before['name']} and {after['name']} overlap" for before, after in _overlaps(spans))


def _segment_problems(work: list[dict[str, Any]]) -> Iterable[str]:
    by_segment = defaultdict(list)
    for event in work:
        by_segment[event["args"]["segment"]].append(event)
    for segment, parts in by_segment.items():
        if len({(part["ts"], part["dur"]) for part in parts}) > 1:
            yield f"segment {segment}: its GPUs disagree on start or end"
        if sorted(part["tid"] for part in parts) != parts[0]["args"]["gpus"]:
            yield f"segment {segment}: events on other GPUs than it names"


def _request_problems(events: list[dict[str, Any]], work: list[dict[str, Any]]) -> Iterable[str]:
    """An id may be used again once its request has ended, so each arrival begins another life of it."""
    instants = sorted((event for event in events if event.get("ph") == "i"), key=lambda event: event["ts"])
    arrivals = defaultdict(list)
    for event in instants:
        if event["name"] == "arrive":
            arrivals[event["args"]["id"]].append(event)
    spans: dict[tuple[str, int], dict[int, dict[str, Any]]] = defaultdict(dict)
    for event in work:
        for part in event["args"]["requests"]:
            life = _life(arrivals[part["id"]], event["ts"])
            spans[part["id"], life][event["args"]["segment"]] = {**event, "part": part}
    ends = defaultdict(list)
    for event in instants:
        if event["name"] in ENDS:
            ends[event["args"]["id"], _life(arrivals[event["args"]["id"]], event["ts"])].append(event)
    yield from (f"{request_id}: ended but never arrived" for request_id, _ in ends if not arrivals[request_id])
    for request_id, lives in arrivals.items():
        for life, arrive in enumerate(lives):
            own = sorted(spans.pop((request_id, life), {}).values(), key=lambda event: event["ts"])
            yield from _life_problems(arrive, own, ends[request_id, life])
    yield from (f"{request_id}: worked on but never arrived" for request_id, _ in spans)


def _life(arrivals: list[dict[str, Any]], at_us: float) -> int:
    return max(0, sum(1 for arrive in arrivals if arrive["ts"] <= at_us + TOLERANCE_US) - 1)


def _life_problems(arrive: dict[str, Any], own: list[dict[str, Any]], ends: list[dict[str, Any]]) -> Iterable[str]:
    request_id = arrive["args"]["id"]
    yield from (f"{request_id}: {a['name']} and {b['name']} run at the same time" for a, b in _overlaps(own))
    if own and own[0]["ts"] < arrive["ts"] - TOLERANCE_US:
        yield f"{request_id}: starts before it arrives"
    next_step = 0
    for event in own:
        if event["args"].get("model") != arrive["args"].get("model"):
            yield f"{request_id}: asked for {arrive['args'].get('model')}, {event['name']} is of another model"
        if event["cat"] == "denoise":
            if event["part"]["first_step"] != next_step:
                yield f"{request_id}: runs step {event['part']['first_step']}, expected {next_step}"
            next_step = event["part"]["first_step"] + event["part"]["steps"]
    if len(ends) != 1:
        yield f"{request_id}: ended {len(ends)} times"
    elif ends[0]["name"] == "finish":
        if next_step != arrive["args"]["num_inference_steps"]:
            yield f"{request_id}: finished after {next_step} steps"
        if not own or own[-1]["cat"] != "decode" or own[-1]["ts"] + own[-1]["dur"] > ends[0]["ts"] + TOLERANCE_US:
            yield f"{request_id}: finished without a decode right before"


def _overlaps(spans: list[dict[str, Any]]) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    ordered = sorted(spans, key=lambda event: (event["ts"], event["ts"] + event["dur"]))
    for before, after in itertools.pairwise(ordered):
        if after["ts"] < before["ts"] + before["dur"] - TOLERANCE_US:
            yield before, after
