"""The live engine on a driver's ranks, with a policy under which everybody shares forward passes."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests.integration.executor.driver import EVENT_TIMEOUT_S, Driver
from tetriserve_backend.domain import Assignment, Placement, Plan, Request, SegmentKind, TetriserveError
from tetriserve_backend.engine.async_engine import AsyncEngine
from tetriserve_backend.engine.commands import RunSegment
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.engine.request_listener import Answer
from tetriserve_backend.executor.model_executor import ModelExecutor
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.scheduler.view import RequestView, SchedulerView

STAGES = list(SegmentKind)
STEPS_A_SEGMENT = 2
MAX_BATCH = 4


class TogetherOn:
    """Nobody goes ahead: who is behind catches up first, then all who may share their next steps on these ranks."""

    name = "together"

    def __init__(self, ranks: tuple[int, ...]) -> None:
        self._ranks = ranks

    def plan(self, view: SchedulerView, now_s: float) -> Plan:
        if any(request.in_flight for request in view.requests):
            return Plan()
        stage = min((request.next_kind for request in view.requests), key=STAGES.index)
        waiting = [request for request in view.requests if request.next_kind is stage]
        sharing = [request for request in waiting if stage is SegmentKind.DENOISE and not request.runs_alone]
        alone = [[request] for request in waiting if request not in sharing]
        return Plan(tuple(self._assignment(members, stage) for members in [sharing, *alone] if members))

    def _assignment(self, members: list[RequestView], stage: SegmentKind) -> Assignment:
        ids = tuple(member.request.request_id for member in members)
        if stage is SegmentKind.DENOISE:
            return Assignment(stage, ids, Placement(self._ranks), STEPS_A_SEGMENT)
        return Assignment(stage, ids, Placement(self._ranks[:1]))


class ServedByEngine:
    """Serves requests by `AsyncEngine` on ranks that outlive it.

    Attributes:
        denoised: who shared each denoise segment, in the order of sending.
    """

    def __init__(self, driver: Driver, ranks: tuple[int, ...]) -> None:
        self._driver, self._ranks = driver, ranks
        self.denoised: list[tuple[str, ...]] = []

    def serve(self, first: Sequence[Request], later: Sequence[Request]) -> dict[str, Answer | TetriserveError]:
        """How each request ended; `later` arrive when `first` have begun to denoise."""
        return self._driver.do(asyncio.wait_for(self._serve(first, later), EVENT_TIMEOUT_S))

    async def _serve(self, first: Sequence[Request], later: Sequence[Request]) -> dict[str, Answer | TetriserveError]:
        ranks = _LentRanks(self._driver.executor, self.denoised)
        world_size = self._driver.executor.world_size
        core = EngineCore(TogetherOn(self._ranks), _table(first[0], world_size), world_size, EngineSettings())
        engine = AsyncEngine(core, ranks)
        listener = _Listener(len(first) + len(later))
        await engine.start()
        try:
            for request in first:
                engine.submit(_arriving_now(request), listener)
            await ranks.denoising.wait()
            for request in later:
                engine.submit(_arriving_now(request), listener)
            await listener.all_ended.wait()
        finally:
            await engine.shutdown()
        return listener.ends


class _LentRanks:
    """An executor that its owner shuts down."""

    def __init__(self, executor: ModelExecutor, denoised: list[tuple[str, ...]]) -> None:
        self._executor, self._denoised = executor, denoised
        self.denoising = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def run_segment(self, command: RunSegment) -> None:
        if command.segment.kind is SegmentKind.DENOISE:
            self._denoised.append(tuple(part.request_id for part in command.segment.parts))
            self.denoising.set()
        self._executor.run_segment(command)

    async def shutdown(self) -> None:
        pass


class _Listener:
    def __init__(self, num_requests: int) -> None:
        self.ends: dict[str, Answer | TetriserveError] = {}
        self.all_ended = asyncio.Event()
        self._num_requests = num_requests

    def on_progress(self, request: Request, step_index: int, preview: Any) -> None:
        pass

    def on_finish(self, answer: Answer) -> None:
        self._end(answer.request, answer)

    def on_error(self, request: Request, error: TetriserveError) -> None:
        self._end(request, error)

    def _end(self, request: Request, end: Answer | TetriserveError) -> None:
        assert request.request_id not in self.ends
        self.ends[request.request_id] = end
        if len(self.ends) == self._num_requests:
            self.all_ended.set()


def _arriving_now(request: Request) -> Request:
    now_s = time.monotonic()
    return replace(request, arrival_s=now_s, deadline_s=now_s + EVENT_TIMEOUT_S)


def _table(request: Request, world_size: int) -> LatencyTable:
    """Times that are long enough for nothing to be late."""
    shape = {"height": request.height, "width": request.width, "seconds": 0.2}
    degrees = [degree for degree in (1, 2, 4) if degree <= world_size]
    return LatencyTable.from_dict(
        {
            "schema": "tetriserve.latency_table/1",
            "model": "tiny",
            "device": "test",
            "world_size": world_size,
            "dtype": "float32",
            "source": "analytic",
            "step": [{**shape, "batch": n, "sp": degree} for n in range(1, MAX_BATCH + 1) for degree in degrees],
            "encode": [{"batch": 1, "seconds": 0.2}],
            "decode": [shape],
            "dispatch_seconds": 0.001,
        },
        origin="test",
    )
