"""Drives an executor over its port as the engine would, one event loop for all tests of a module."""

import asyncio
import itertools
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tetriserve_backend.domain import Placement, Request, Segment, SegmentKind, SegmentPart
from tetriserve_backend.engine.commands import HandOver, RunSegment, Source, SourceKind
from tetriserve_backend.engine.events import SegmentFailed, SegmentFinished, WorkerLost, WorkerReady, WorldFormed
from tetriserve_backend.engine.executor_port import ExecutorEvent, StepProgress
from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.executor.model_executor import ModelExecutor

T = TypeVar("T")
CREATE, RESIDENT = Source(SourceKind.CREATE), Source(SourceKind.RESIDENT)
EVENT_TIMEOUT_S = 60.0
Outcome = SegmentFinished | SegmentFailed
Schedule = Sequence[tuple[tuple[int, ...], int]]


def broadcast(root: int) -> Source:
    return Source(SourceKind.BROADCAST, root)


def host(root: int) -> Source:
    return Source(SourceKind.HOST, root)


class Driver:
    """An executor, its loop, and commands with rising segment ids."""

    def __init__(self, model: ModelSettings, settings: ExecutorSettings) -> None:
        self.loop = asyncio.new_event_loop()
        self.executor = ModelExecutor.alone(model, settings)
        self._ids = itertools.count(1)
        self.spans: dict[int, list[SegmentFinished]] = {}
        self._sent: dict[int, RunSegment] = {}
        self._outcomes: dict[int, Outcome] = {}
        self.progress: list[StepProgress] = []
        self._lost: set[int] = set()
        self._ready: set[int] = set()

    def start(self) -> "Driver":
        self.do(self.executor.start())
        return self

    def stop(self) -> None:
        self.do(self.executor.shutdown())
        self.loop.close()

    def do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def next_event(self) -> ExecutorEvent:
        async def wait() -> ExecutorEvent:
            return await asyncio.wait_for(self.executor.next_event(), EVENT_TIMEOUT_S)

        event = self.do(wait())
        if isinstance(event, SegmentFinished | SegmentFailed):
            assert event.segment_id not in self._outcomes, "a segment was reported twice"
            self._outcomes[event.segment_id] = event
        elif isinstance(event, StepProgress):
            self.progress.append(event)
        elif isinstance(event, WorkerLost):
            self._lost.add(event.rank)
            self._ready.discard(event.rank)
        elif isinstance(event, WorkerReady):
            self._ready.add(event.rank)
        elif isinstance(event, WorldFormed):
            self._lost.clear()
            self._ready.clear()
        if isinstance(event, SegmentFinished):
            for rank in self._sent[event.segment_id].segment.placement.ranks:
                self.spans.setdefault(rank, []).append(event)
        return event

    def wait_for(self, *wanted: type[ExecutorEvent]) -> list[ExecutorEvent]:
        """All events up to and including the first of one of these types."""
        events: list[ExecutorEvent] = []
        while not events or not isinstance(events[-1], wanted):
            events.append(self.next_event())
        return events

    def reform(self) -> None:
        """As the engine does: once every lost rank has a loaded worker, until no rank is lost on the way."""
        while self._lost:
            while not self._lost <= self._ready:
                self.next_event()
            self.executor.reform_world()
            self.wait_for(WorldFormed, WorkerLost)

    def send(self, command: RunSegment) -> int:
        self._sent[command.segment.segment_id] = command
        self.executor.run_segment(command)
        return command.segment.segment_id

    def is_over(self, segment_id: int) -> bool:
        """Whether it is known by now how a segment ended."""
        return segment_id in self._outcomes

    def outcomes(self, segment_ids: Sequence[int]) -> list[Outcome]:
        """Wait for all of these, in any order; those that have ended before count."""
        while not set(segment_ids) <= self._outcomes.keys():
            self.next_event()
        return [self._outcomes[segment_id] for segment_id in segment_ids]

    def run(self, commands: Sequence[RunSegment]) -> list[Outcome]:
        return self.outcomes([self.send(command) for command in commands])

    def image(self, request: Request) -> npt.NDArray[np.uint8]:
        pixels = self.executor.take_image(request.request_id)
        self.executor.release(request.request_id)
        return pixels

    def previews(self, request: Request, schedule: Schedule) -> tuple[list[npt.NDArray[np.uint8]], Any]:
        """The preview of each step of a request that asks for them, in order, and its image."""
        image = self.generate(request, schedule)
        steps = [step for step in self.progress if step.request_id == request.request_id]
        assert [step.step_index for step in steps] == list(range(request.num_steps))
        return [step.preview for step in steps if step.preview is not None], image

    # -- commands -------------------------------------------------------------------------------------

    def encode(self, request: Request, rank: int) -> RunSegment:
        return self._command(SegmentKind.ENCODE, [request], (rank,), [(0, 0)], HandOver(CREATE, CREATE))

    def decode(self, request: Request, rank: int, latent: Source) -> RunSegment:
        return self._command(SegmentKind.DECODE, [request], (rank,), [(0, 0)], HandOver(CREATE, latent))

    def denoise(
        self, request: Request, ranks: tuple[int, ...], first: int, steps: int, conditioning: Source, latent: Source,
        cfg_degree: int = 1,
    ) -> RunSegment:  # fmt: skip
        hand_over = HandOver(conditioning, latent)
        return self._command(SegmentKind.DENOISE, [request], ranks, [(first, steps)], hand_over, cfg_degree)

    def batch(
        self, requests: Sequence[Request], ranks: tuple[int, ...], hand_over: HandOver,
        parts: Sequence[tuple[int, int]] | None = None, cfg_degree: int = 1,
    ) -> RunSegment:  # fmt: skip
        """(first step, steps) of several requests together; all of them by default."""
        parts = parts or [(0, request.num_steps) for request in requests]
        return self._command(SegmentKind.DENOISE, requests, ranks, parts, hand_over, cfg_degree)

    def whole(
        self, request: Request, schedule: Schedule, encode_on: int = 0, decode_on: int = 0, split: Sequence[int] = (),
    ) -> list[RunSegment]:  # fmt: skip
        """Encode, denoise by `schedule` ((ranks, steps), …), decode; sources as an engine would choose them.

        Guidance is split in the segments that `split` numbers.
        """
        commands = [self.encode(request, encode_on)]
        conditioning: set[int] = {encode_on}
        latent: set[int] = set()
        first = 0
        for number, (ranks, steps) in enumerate(schedule):
            latent_source = source_for(latent, ranks) if first else CREATE
            sources = (source_for(conditioning, ranks), latent_source)
            commands.append(self.denoise(request, ranks, first, steps, *sources, 2 if number in split else 1))
            conditioning |= set(ranks)
            latent, first = set(ranks), first + steps
        assert first == request.num_steps
        commands.append(self.decode(request, decode_on, source_for(latent, (decode_on,))))
        return commands

    def generate(
        self, request: Request, schedule: Schedule, encode_on: int = 0, decode_on: int = 0, split: Sequence[int] = ()
    ) -> Any:
        outcomes = self.run(self.whole(request, schedule, encode_on, decode_on, split))
        assert all(isinstance(outcome, SegmentFinished) for outcome in outcomes), outcomes
        return self.image(request)

    def _command(
        self, kind: SegmentKind, requests: Sequence[Request], ranks: tuple[int, ...],
        steps: Sequence[tuple[int, int]], hand_over: HandOver, cfg_degree: int = 1,
    ) -> RunSegment:  # fmt: skip
        parts = tuple(SegmentPart(r.request_id, first, n) for r, (first, n) in zip(requests, steps, strict=True))
        segment = Segment(
            next(self._ids), kind, parts, Placement(ranks), requests[0].height, requests[0].width, cfg_degree=cfg_degree
        )
        return RunSegment(segment, tuple(requests), (hand_over,) * len(requests))


def source_for(holders: set[int], ranks: tuple[int, ...]) -> Source:
    inside = [rank for rank in ranks if rank in holders]
    if len(inside) == len(ranks):
        return RESIDENT
    return broadcast(inside[0]) if inside else host(ranks[0])


_numbers = itertools.count()


def make_request(height: int = 128, width: int = 128, num_steps: int = 4, **changes: Any) -> Request:
    name, prompt = f"r{next(_numbers)}", "a red fox, oil on canvas"
    request = Request(name, height, width, num_steps, arrival_s=0.0, deadline_s=1.0, prompt=prompt, seed=7)
    return replace(request, **changes)
