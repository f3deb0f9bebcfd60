"""Ranks in virtual time: every segment takes as long as a formula says, and fails when a test says so."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tetriserve_backend.domain import SegmentKind, image_tokens
from tetriserve_backend.engine.commands import RunSegment, SourceKind
from tetriserve_backend.engine.events import SegmentFailed, SegmentFinished, WorkerLost, WorkerReady, WorldFormed
from tetriserve_backend.executor.model_facts import ModelFacts

DISPATCH_S = 0.001
BROADCAST_S, HOST_S = 0.002, 0.005
PEAK_BYTES_PER_TOKEN = 1000
Fault = Callable[[RunSegment], str | None]


def step_s(command: RunSegment) -> float:
    """Of one step: tokens over ranks, and a little that does not scale."""
    segment = command.segment
    tokens = image_tokens(segment.height, segment.width) * segment.batch_size
    return 1e-5 * tokens / segment.placement.sp_degree + 1e-3


class FakeExecutor:
    """A `ProfiledExecutor`.

    Args:
        fault: why a segment raises, if it does. `lost` instead loses the lead rank of the segment.
    """

    def __init__(self, world_size: int = 2, fault: Fault = lambda command: None, guided: bool = False) -> None:
        self.model_name, self.model_directory, self.dtype = "org/model", Path("/models/model-1a2b"), "float32"
        self.software = {"torch": "2"}
        self.device, self.world_size = "cpu", world_size
        self.device_names = dict.fromkeys(range(world_size), "Some GPU 80GB")
        self.facts = ModelFacts(64, 64, {"heads": 8, "text": 64}, guided, 3.5)
        self.commands: list[RunSegment] = []
        self.released: list[str] = []
        self.reformed = 0
        self._fault = fault
        self._now_s = 0.0
        # Of ranks, and of requests, whose segments follow each other.
        self._free_s: dict[int | str, float] = defaultdict(float)
        self._events: asyncio.Queue[object] = asyncio.Queue()

    def run_segment(self, command: RunSegment) -> None:
        self.commands.append(command)
        segment = command.segment
        problem = self._fault(command)
        if problem == "lost":
            lead = segment.placement.lead
            for event in (
                WorkerLost(lead, "killed"),
                SegmentFailed(segment.segment_id, f"rank {lead} was lost: killed", retryable=True),
                WorkerReady(lead),
            ):
                self._events.put_nowait(event)
            return
        if problem is not None:
            self._events.put_nowait(SegmentFailed(segment.segment_id, problem, retryable=False))
            return
        busy = [*segment.placement.ranks, *(request.request_id for request in command.requests)]
        start_s = max(self._now_s, *(self._free_s[one] for one in busy)) + DISPATCH_S + self._move_s(command)
        end_s = start_s + self._seconds(command)
        self._free_s.update(dict.fromkeys(busy, end_s))
        peak = PEAK_BYTES_PER_TOKEN * image_tokens(segment.height, segment.width) * segment.batch_size
        self._events.put_nowait(SegmentFinished(segment.segment_id, start_s, end_s, peak))

    def release(self, request_id: str) -> None:
        self.released.append(request_id)

    def reform_world(self) -> None:
        self.reformed += 1
        self._events.put_nowait(WorldFormed(tuple(range(self.world_size))))

    def take_image(self, request_id: str) -> np.ndarray:
        raise NotImplementedError

    async def start(self) -> None:
        pass

    async def shutdown(self) -> None:
        pass

    async def next_event(self) -> object:
        event = await self._events.get()
        if isinstance(event, SegmentFinished):
            self._now_s = max(self._now_s, event.end_s)
        return event

    def worker_pids(self) -> dict[int, int]:
        return {}

    def _move_s(self, command: RunSegment) -> float:
        costs = {SourceKind.BROADCAST: BROADCAST_S, SourceKind.HOST: HOST_S}
        return sum(costs.get(hand_over.latent.kind, 0.0) for hand_over in command.hand_over)

    def _seconds(self, command: RunSegment) -> float:
        if command.segment.kind is SegmentKind.ENCODE:
            return 0.03 * command.segment.batch_size
        if command.segment.kind is SegmentKind.DECODE:
            return 1e-6 * command.segment.height * command.segment.width
        return command.segment.num_steps * step_s(command)
