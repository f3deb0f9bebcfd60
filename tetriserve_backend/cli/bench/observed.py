"""What a live server did with one trace, from its timeline: as a timeline of its own and as a summary."""

import collections
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tetriserve_backend.cli.bench.replay import Answer
from tetriserve_backend.cli.timeline_view import TimelineView
from tetriserve_backend.domain import ConfigurationError, Placement, Request, Segment, SegmentKind, SegmentPart
from tetriserve_backend.engine.timeline import TraceEvent
from tetriserve_backend.simulator.pace import TimedSegment
from tetriserve_backend.simulator.quantiles import QuantileSketch
from tetriserve_backend.simulator.summary import Summary, SummaryBuilder
from tetriserve_backend.simulator.trace import TraceRequest
from tetriserve_backend.simulator.virtual_world import Outcome

_ENDS = frozenset({"finish", "reject", "cancel", "fail"})


def read_events(path: Path) -> list[TraceEvent]:
    """The events of a `*.timeline.json`, which may still grow.

    Raises:
        ConfigurationError: it is no timeline; names it.
        OSError: it cannot be read.
    """
    try:
        events: list[TraceEvent] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        # Whoever takes them finds all that such events have.
        TimelineView.from_events(events)
        collections.deque(segments_of(events), maxlen=0)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{path}: no timeline in the Chrome trace-event format ({error!r})") from error
    return events


def cut_out(events: Iterable[TraceEvent], trace: Sequence[TraceRequest], id_prefix: str) -> list[TraceEvent]:
    """The events of one trace's requests, under the trace's ids and on its clock.

    The clock is set by the request that came with the least delay, so nothing arrives before the trace says.

    Args:
        events: of a server that served several traces one after the other.
        trace: the requests that were sent.
        id_prefix: what the ids on the server begin with.
    """
    own = [renamed for event in events if (renamed := _renamed(event, id_prefix)) is not None]
    planned_us = {request.id: 1e6 * request.arrival_s for request in trace}
    delays_us = (event["ts"] - planned_us[name] for name, event in _arrivals(own) if name in planned_us)
    origin_us = min(delays_us, default=0.0)
    return [_shifted(event, round(origin_us)) for event in own]


def segments_of(events: Iterable[TraceEvent]) -> Iterator[TimedSegment]:
    """The segments on a timeline, each once."""
    for event in events:
        if event.get("ph") != "X" or event["tid"] != event["args"]["gpus"][0]:
            continue
        args = event["args"]
        parts = tuple(SegmentPart(p["id"], p.get("first_step", 0), p.get("steps", 0)) for p in args["requests"])
        placement = Placement(tuple(args["gpus"]))
        segment = Segment(
            args["segment"],
            SegmentKind(event["cat"]),
            parts,
            placement,
            args["height"],
            args["width"],
            cfg_degree=args.get("cfg", 1),
        )
        yield TimedSegment(segment, event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6)


def as_served(trace: Iterable[TraceRequest], events: Iterable[TraceEvent]) -> list[Request]:
    """The requests that came to the server, with the arrivals and deadlines that it stamped, in order of arrival.

    What is not in the trace is left out.
    """
    asked = {request.id: request.to_request() for request in trace}
    served = [
        replace(asked[name], arrival_s=event["ts"] / 1e6, deadline_s=event["args"]["deadline_us"] / 1e6)
        for name, event in _arrivals(events)
        if name in asked
    ]
    return sorted(served, key=lambda request: request.arrival_s)


def summarize(
    events: Sequence[TraceEvent],
    trace: Sequence[TraceRequest],
    answers: Mapping[str, Answer],
    *,
    policy: str,
    gpus: int,
    decision_ms: Mapping[str, float],
    labels: Mapping[str, Any],
) -> Summary:
    """The summary of a trace that was served live; a request finishes when its pixels are there.

    Args:
        events: as `cut_out` returns them.
        trace: what was sent. A request that the timeline does not know the end of was refused before it came to the
            engine, or was lost with its server: it failed. So did one that ended without having arrived; of several
            ends the first counts (`timeline_check` calls such a timeline wrong).
        answers: what came back, by request id.
        policy: the name in the summary.
        gpus: ranks of the server.
        decision_ms: the server's own account of its last decisions, over all traces that it has served.
        labels: go into the summary as they are.
    """
    builder = SummaryBuilder(gpus)
    for timed in segments_of(events):
        builder.add_segment(timed.segment, timed.start_s, timed.end_s)
    asked = {request.request_id: request for request in as_served(trace, events)}
    lost = {request.id: request for request in trace}
    for event in events:
        if event.get("ph") == "i" and event["name"] in _ENDS:
            request = asked.get(event["args"]["id"])
            if request is None or lost.pop(request.request_id, None) is None:
                continue
            answer = answers.get(request.request_id)
            forecast_s = answer.predicted_finish_s if answer is not None else None
            predicted_s = request.arrival_s + forecast_s if forecast_s is not None else None
            builder.add_outcome(Outcome(request, event["name"], event["ts"] / 1e6, predicted_s))
    for missing in lost.values():
        request = missing.to_request()
        builder.add_outcome(Outcome(request, "fail", request.arrival_s))
    summary = builder.build(policy, QuantileSketch(), labels=dict(labels))
    return replace(summary, decision_ms=dict(decision_ms))


def _arrivals(events: Iterable[TraceEvent]) -> Iterator[tuple[str, TraceEvent]]:
    """Those among the events, each behind its request's id."""
    for event in events:
        if event.get("ph") == "i" and event["name"] == "arrive":
            yield event["args"]["id"], event


def write_timeline(path: Path, events: Sequence[TraceEvent]) -> None:
    """Write events as a `*.timeline.json`."""
    lines = ",\n".join(json.dumps(event) for event in events)
    path.write_text(f'{{"displayTimeUnit": "ms", "traceEvents": [\n{lines}\n]}}\n', encoding="utf-8")


def _renamed(event: TraceEvent, id_prefix: str) -> TraceEvent | None:
    """The event under the trace's ids; None if it is about other requests. What names the tracks is everybody's."""
    if event.get("ph") == "M":
        return event
    args = event["args"]
    if "id" in args:
        found = {"id": args["id"]}
        return {**event, "args": {**args, **_without(found, id_prefix)}} if _has(found, id_prefix) else None
    parts = args["requests"]
    if not all(_has(part, id_prefix) for part in parts):
        return None
    renamed = [{**part, **_without(part, id_prefix)} for part in parts]
    name = f"{event['cat']} {' '.join(part['id'] for part in renamed)}"
    return {**event, "name": name, "args": {**args, "requests": renamed}}


def _has(part: Mapping[str, Any], id_prefix: str) -> bool:
    return str(part["id"]).startswith(id_prefix)


def _without(part: Mapping[str, Any], id_prefix: str) -> dict[str, str]:
    return {"id": str(part["id"]).removeprefix(id_prefix)}


def _shifted(event: TraceEvent, origin_us: int) -> TraceEvent:
    if event.get("ph") == "M":
        return event
    args = event["args"]
    if "deadline_us" in args:
        args = {**args, "deadline_us": args["deadline_us"] - origin_us}
    return {**event, "ts": event["ts"] - origin_us, "args": args}
