"""The simulator's side of what a live server did: the same traces, policy and settings in virtual time."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from tetriserve_backend.cli.bench.observed import as_served, cut_out, summarize
from tetriserve_backend.cli.bench.replay import Answer
from tetriserve_backend.cli.bench.results import BenchRun
from tetriserve_backend.domain import Request, Segment
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.timeline import TimelineRecorder, TraceEvent
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.simulator.pace import Pace
from tetriserve_backend.simulator.run import SimulationSettings, Stretch, simulate
from tetriserve_backend.simulator.summary import Summary
from tetriserve_backend.simulator.trace import TraceRequest

ImageSeconds: TypeAlias = Mapping[tuple[int, int], float]
"""From pixels to the image file, by (height, width)."""

_DRAWS = 8
"""Simulations of one live run: what is decided by a hair goes either way, live as in virtual time."""

_LEFT_CV, _LEAST_CV = 0.02, 0.01
"""What single steps differ by beside the pace of their stretch of time, and what segments differ by at least: those of
ranks that hold their pace too, since what passes between them takes now one, now three milliseconds."""

_APART_S = 1e5
"""Between the traces of one server in virtual time: longer than any of them takes."""


@dataclass(frozen=True, slots=True)
class ServedTrace:
    """What a live server left of one run: its files, read."""

    run: BenchRun
    trace: list[TraceRequest]
    events: list[TraceEvent]
    answers: dict[str, Answer]

    @property
    def requests(self) -> list[Request]:
        """As they came to the server, which is a little later than the trace says."""
        return as_served(self.trace, self.events)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the simulator expects of a run.

    Attributes:
        draws: one summary for each simulation; as the live run's, with a request finished when its pixels are there.
        images_on_time: requests whose image file is there by the deadline; mean of the draws.
        events: the timeline of the first draw.
    """

    draws: tuple[Summary, ...]
    images_on_time: float
    events: list[TraceEvent]


@dataclass(frozen=True, slots=True)
class Simulator:
    """What all predictions share.

    Attributes:
        told: the table that the servers planned with.
        measured: what work costs by all that was measured.
        engine: the servers' settings, where their policy has none of its own.
        gpus: their ranks.
        image_s: what image encoding cost live.
    """

    told: LatencyTable
    measured: LatencyTable
    engine: EngineSettings
    gpus: int
    image_s: ImageSeconds

    def by_table(self, served: Sequence[ServedTrace]) -> list[Prediction]:
        """Serve the traces of one server one after the other; steps vary about as when the table was measured."""
        return self._predict(served, lambda segment, start_s: 1.0, max(_LEAST_CV, _usual_cv(self.measured)))

    def at_pace(self, served: Sequence[ServedTrace], paces: Sequence[Pace]) -> list[Prediction]:
        """The same with how fast the ranks were during each of the live runs, beside the measured table."""

        def pace(segment: Segment, start_s: float) -> float:
            number = int(start_s // _APART_S)
            return paces[number](segment, start_s - number * _APART_S)

        return self._predict(served, pace, _LEFT_CV)

    def _predict(self, served: Sequence[ServedTrace], pace: Stretch, noise_cv: float) -> list[Prediction]:
        # What a server learns of drift in one trace it knows in the next.
        requests = [
            replace(
                request,
                request_id=f"{one.run.name}-{request.request_id}",
                arrival_s=request.arrival_s + number * _APART_S,
                deadline_s=request.deadline_s + number * _APART_S,
            )
            for number, one in enumerate(served)
            for request in one.requests
        ]
        runs: list[list[list[TraceEvent]]] = [[] for _ in served]
        variant = served[0].run.variant
        for draw in range(_DRAWS):
            settings = SimulationSettings(
                self.gpus,
                variant.scheduler,
                variant.engine or self.engine,
                noise_cv=noise_cv,
                noise_seed=draw,
                pace=pace,
            )
            timeline = TimelineRecorder()
            simulate(self.told, requests, settings, true_table=self.measured, timeline=timeline)
            for events, one in zip(runs, served, strict=True):
                events.append(cut_out(timeline.events, one.trace, f"{one.run.name}-"))
        return [self._prediction(one, draws) for one, draws in zip(served, runs, strict=True)]

    def _prediction(self, served: ServedTrace, draws: Sequence[list[TraceEvent]]) -> Prediction:
        run = served.run
        labels = {**run.workload.labels(), "policy": run.variant.scheduler.policy, "where": "simulator"}
        summaries = tuple(
            summarize(events, served.trace, {}, policy=run.variant.name, gpus=self.gpus, decision_ms={}, labels=labels)
            for events in draws
        )
        return Prediction(summaries, statistics.fmean(self._images_on_time(served, one) for one in draws), draws[0])

    def _images_on_time(self, served: ServedTrace, events: Sequence[TraceEvent]) -> int:
        requests = {request.request_id: request for request in served.requests}
        ends = ((requests[request_id], end_s) for request_id, end_s in _finishes(events))
        return sum(
            end_s + self.image_s.get((request.height, request.width), 0.0) <= request.deadline_s
            for request, end_s in ends
        )


def image_seconds(served: Iterable[ServedTrace]) -> ImageSeconds:
    """Mean seconds from pixels to image file in live runs."""
    samples: dict[tuple[int, int], list[float]] = defaultdict(list)
    for one in served:
        shapes = {request.id: (request.height, request.width) for request in one.trace}
        arrivals_s = {event["args"]["id"]: event["ts"] / 1e6 for event in one.events if event["name"] == "arrive"}
        for request_id, end_s in _finishes(one.events):
            answer = one.answers.get(request_id)
            if answer is not None and answer.total_s is not None:
                samples[shapes[request_id]].append(answer.total_s - (end_s - arrivals_s[request_id]))
    return {shape: statistics.fmean(values) for shape, values in samples.items()}


def _usual_cv(table: LatencyTable) -> float:
    """The CV of a step, of the middle one of the table's steps; 0 where it does not tell."""
    known = [entry["cv"] for entry in table.to_dict()["step"] if entry.get("cv") is not None]
    return float(statistics.median(known)) if known else 0.0


def _finishes(events: Iterable[TraceEvent]) -> Iterator[tuple[str, float]]:
    for event in events:
        if event.get("ph") == "i" and event["name"] == "finish":
            yield event["args"]["id"], event["ts"] / 1e6
