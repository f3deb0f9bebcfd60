"""The simulator's side of a live run: the same trace, policy and settings in virtual time."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tetriserve_backend.cli.bench.replay import Answer
from tetriserve_backend.cli.bench.results import BenchRun
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.timeline import TimelineRecorder, TraceEvent
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.simulator.pace import Pace
from tetriserve_backend.simulator.run import SimulationSettings, simulate
from tetriserve_backend.simulator.summary import Summary
from tetriserve_backend.simulator.trace import TraceRequest

ImageSeconds: TypeAlias = Mapping[tuple[int, int], float]
"""From pixels to the image file, by (height, width)."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the simulator expects of a run.

    Attributes:
        summary: as the live run's; a request finishes when its pixels are there.
        images_on_time: requests whose image file is there by the deadline.
        events: its timeline.
    """

    summary: Summary
    images_on_time: int
    events: list[TraceEvent]


def predict(
    run: BenchRun,
    trace: Sequence[TraceRequest],
    table: LatencyTable,
    engine: EngineSettings,
    *,
    gpus: int,
    image_s: ImageSeconds,
    pace: Pace | None = None,
) -> Prediction:
    """Serve the trace of a run in virtual time.

    Args:
        run: which policy.
        trace: what was sent.
        table: what the live server planned with.
        engine: its settings.
        gpus: its ranks.
        image_s: what image encoding cost live.
        pace: how fast the ranks were during the live run; None takes the table's word for it.
    """
    timeline = TimelineRecorder()
    settings = SimulationSettings(gpus, run.variant.scheduler, engine, pace=pace)
    requests = [request.to_request() for request in trace]
    labels = {**run.workload.labels(), "policy": run.variant.scheduler.policy, "where": "simulator"}
    summary = simulate(table, requests, settings, timeline=timeline, labels=labels)
    deadlines = {request.request_id: request.deadline_s for request in requests}
    extra_s = {request.request_id: image_s.get((request.height, request.width), 0.0) for request in requests}
    in_time = sum(
        end_s + extra_s[request_id] <= deadlines[request_id] for request_id, end_s in _finishes(timeline.events)
    )
    return Prediction(summary.named(run.variant.name), in_time, timeline.events)


def image_seconds(
    served: Iterable[tuple[Sequence[TraceEvent], Sequence[TraceRequest], Mapping[str, Answer]]],
) -> ImageSeconds:
    """Mean seconds from pixels to image file in live runs, given as events, trace and answers of each."""
    samples: dict[tuple[int, int], list[float]] = defaultdict(list)
    for events, trace, answers in served:
        shapes = {request.id: (request.height, request.width) for request in trace}
        arrivals_s = {event["args"]["id"]: event["ts"] / 1e6 for event in events if event["name"] == "arrive"}
        for request_id, end_s in _finishes(events):
            answer = answers.get(request_id)
            if answer is not None and answer.total_s is not None:
                samples[shapes[request_id]].append(answer.total_s - (end_s - arrivals_s[request_id]))
    return {shape: statistics.fmean(values) for shape, values in samples.items()}


def _finishes(events: Iterable[TraceEvent]) -> Iterator[tuple[str, float]]:
    for event in events:
        if event.get("ph") == "i" and event["name"] == "finish":
            yield event["args"]["id"], event["ts"] / 1e6
