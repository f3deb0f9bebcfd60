"""Runs segments on an executor for the sake of their times, and survives those that fail."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tetriserve_backend.domain import Placement, Request, Segment, SegmentKind, SegmentPart
from tetriserve_backend.engine.commands import HandOver, RunSegment
from tetriserve_backend.engine.events import SegmentFailed, SegmentFinished, WorkerLost, WorkerReady, WorldFormed
from tetriserve_backend.engine.executor_port import Executor, ExecutorEvent
from tetriserve_backend.executor.model_facts import ModelFacts

# Of all benches: a rank may still report a segment that failed when the next bench has the executor.
_ids = itertools.count(1)
_OUT_OF_MEMORY = re.compile(r"out ?of ?memory|can't allocate memory|cannot allocate memory", re.IGNORECASE)


class ProfiledExecutor(Executor, Protocol):
    """An executor that tells what it runs on."""

    model_name: str
    model_directory: Path
    dtype: str
    software: dict[str, str]
    world_size: int
    facts: ModelFacts

    @property
    def device_names(self) -> dict[int, str]:
        """Product name of each rank's device, by rank."""

    def worker_pids(self) -> dict[int, int]:
        """Process ids of the ranks, by rank."""


@dataclass(frozen=True, slots=True)
class Span:
    """When all ranks of a segment were at work on it; `peak_memory_bytes` is the most that one of them held."""

    start_s: float
    end_s: float
    peak_memory_bytes: int | None = None

    @property
    def seconds(self) -> float:
        """How long."""
        return self.end_s - self.start_s


class SegmentsFailedError(Exception):
    """A segment did not finish.

    Attributes:
        retryable: the ranks are to blame, not the work.
        out_of_memory: the work does not fit on its ranks.
    """

    def __init__(self, reason: str, retryable: bool) -> None:
        super().__init__(reason)
        self.retryable = retryable
        self.out_of_memory = bool(_OUT_OF_MEMORY.search(reason))


class Bench:
    """Sends segments and waits for them.

    Args:
        executor: started, and nobody else's while this is used.
        model: the served model, as `Request.model`.
    """

    def __init__(self, executor: ProfiledExecutor, model: str = "") -> None:
        self.executor = executor
        self._model = model
        self._lost: set[int] = set()
        self._ready: set[int] = set()
        self._finished: dict[int, SegmentFinished] = {}
        self._failed: dict[int, SegmentFailed] = {}

    def request(self, name: str, height: int, width: int, num_steps: int) -> Request:
        """A request of the model; the bench keeps no list of them."""
        return Request(
            f"profile-{name}", height, width, num_steps, arrival_s=0.0, deadline_s=0.0,
            prompt="a lighthouse on a cliff at dusk, oil on canvas", model=self._model,
        )  # fmt: skip

    def command(
        self,
        kind: SegmentKind,
        requests: Sequence[Request],
        ranks: tuple[int, ...],
        hand_over: HandOver,
        *,
        first_step: int = 0,
        num_steps: int = 0,
        cfg: int = 1,
    ) -> RunSegment:
        """A segment of these requests, one batch of equal shape and progress."""
        parts = tuple(SegmentPart(request.request_id, first_step, num_steps) for request in requests)
        segment = Segment(
            next(_ids), kind, parts, Placement(ranks), requests[0].height, requests[0].width, self._model, cfg
        )
        return RunSegment(segment, tuple(requests), (hand_over,) * len(requests))

    async def run(self, commands: Sequence[RunSegment]) -> list[Span]:
        """Send all, then wait for all; their spans in that order.

        Raises:
            SegmentsFailedError: one of them failed; none of them runs any more.
            ServerError: the executor has given up.
        """
        for command in commands:
            self.executor.run_segment(command)
        ids = [command.segment.segment_id for command in commands]
        while not all(number in self._finished or number in self._failed for number in ids):
            await self._next_event()
        failures = [self._failed.pop(number) for number in ids if number in self._failed]
        spans = [self._finished.pop(number) for number in ids if number in self._finished]
        if failures:
            raise SegmentsFailedError(failures[0].reason, failures[0].retryable)
        return [Span(done.start_s, done.end_s, done.peak_memory_bytes) for done in spans]

    async def recover(self) -> None:
        """Wait until the world is whole again, if ranks were lost.

        Raises:
            ServerError: the executor has given up.
        """
        while self._lost:
            while not self._lost <= self._ready:
                await self._next_event()
            self.executor.reform_world()
            while not isinstance(await self._next_event(), WorldFormed | WorkerLost):
                pass

    async def _next_event(self) -> ExecutorEvent:
        event = await self.executor.next_event()
        if isinstance(event, SegmentFinished):
            self._finished[event.segment_id] = event
        elif isinstance(event, SegmentFailed):
            self._failed[event.segment_id] = event
        elif isinstance(event, WorkerLost):
            self._lost.add(event.rank)
            self._ready.discard(event.rank)
        elif isinstance(event, WorkerReady):
            self._ready.add(event.rank)
        elif isinstance(event, WorldFormed):
            self._lost.clear()
            self._ready.clear()
        return event
