"""A latency table in seconds rather than minutes, measured over the executor's own port."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

from tetriserve_backend.domain import (
    LatencyTableError,
    Placement,
    Request,
    Segment,
    SegmentKind,
    SegmentPart,
    image_tokens,
)
from tetriserve_backend.engine.commands import HandOver, RunSegment, Source, SourceKind
from tetriserve_backend.engine.events import SegmentFailed, SegmentFinished, WorkerLost
from tetriserve_backend.engine.executor_port import Executor
from tetriserve_backend.executor.model_facts import ModelFacts
from tetriserve_backend.executor.placements import usable_degrees
from tetriserve_backend.latency_table import LatencyTable

_PROMPT = "a lighthouse on a cliff at dusk, oil on canvas"
_CREATE = Source(SourceKind.CREATE)
_RESIDENT = Source(SourceKind.RESIDENT)
_FROM_FIRST_RANK = Source(SourceKind.BROADCAST, 0)
_BUDGET_S = 0.7
_ENCODE_SAMPLES, _DECODE_SAMPLES = 5, 2


class ProfiledExecutor(Executor, Protocol):
    """An executor that tells what it runs on."""

    model_name: str
    device_name: str
    dtype: str
    software: dict[str, str]
    world_size: int
    facts: ModelFacts


async def measure_table(
    executor: ProfiledExecutor,
    resolutions: Sequence[tuple[int, int]],
    on_progress: Callable[[str], None] | None = None,
    repeats: int = 8,
) -> LatencyTable:
    """Measure one step at each resolution and degree, an encode, and a decode at each resolution.

    Args:
        executor: started, and idle until this returns.
        resolutions: (height, width) in pixels.
        on_progress: told of each thing measured, in words.
        repeats: samples of each step; slow ones get fewer, but at least three.

    Raises:
        LatencyTableError: a segment failed or a rank was lost.
    """
    run = _Profile(executor, on_progress or (lambda _: None), repeats)
    for height, width in resolutions:
        await run.measure_resolution(height, width)
    return LatencyTable.from_dict(run.document(), origin="measured")


@dataclass(frozen=True, slots=True)
class _Span:
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


class _Profile:
    """The measurements so far."""

    def __init__(self, executor: ProfiledExecutor, on_progress: Callable[[str], None], repeats: int) -> None:
        self._executor, self._on_progress, self._repeats = executor, on_progress, repeats
        self._segment_id = 0
        self._steps: list[dict[str, Any]] = []
        self._decodes: list[dict[str, Any]] = []
        self._encodes: list[float] = []
        self._gaps: list[float] = []

    async def measure_resolution(self, height: int, width: int) -> None:
        request = Request(
            f"profile-{height}x{width}", height, width, num_steps=2 + self._repeats, arrival_s=0.0, deadline_s=0.0,
            prompt=_PROMPT,
        )  # fmt: skip
        executor = self._executor
        try:
            encode = HandOver(_CREATE, _CREATE)
            encodes = [self._segment(SegmentKind.ENCODE, request, (0,), encode) for _ in range(1 + _ENCODE_SAMPLES)]
            self._encodes += [span.seconds for span in (await self._run(encodes))[1:]]
            steps_done = 0
            for degree in usable_degrees(
                executor.world_size, *executor.facts.shared_counts.values(), image_tokens(height, width)
            ):
                steps_done = await self._measure_steps(request, degree)
            await self._measure_decode(request, steps_done)
        finally:
            executor.release(request.request_id)

    def document(self) -> dict[str, Any]:
        """The table in its file format."""
        executor = self._executor
        return {
            "schema": "tetriserve.latency_table/1",
            "model": executor.model_name,
            "device": executor.device_name,
            "world_size": executor.world_size,
            "dtype": executor.dtype,
            "source": "measured",
            "text_tokens": executor.facts.text_tokens,
            "software": executor.software,
            "step": self._steps,
            "encode": [{"batch": 1, "seconds": statistics.median(self._encodes)}],
            "decode": self._decodes,
            "dispatch_seconds": max(0.0, statistics.median(self._gaps)),
        }

    async def _measure_steps(self, request: Request, degree: int) -> int:
        """Segments of one step each, sent ahead of time, so that the ranks never wait for us; how many."""
        ranks = tuple(range(degree))
        source = _RESIDENT if degree == 1 else _FROM_FIRST_RANK
        first = [self._step(request, ranks, 0, HandOver(source, _CREATE))]
        first += [self._step(request, ranks, 1, HandOver(_RESIDENT, _RESIDENT))]
        # The first step of a shape pays for what later ones find in place.
        warm = (await self._run(first))[1].seconds
        count = max(3, min(self._repeats, int(_BUDGET_S / max(warm, 1e-6))))
        spans = await self._run(
            [self._step(request, ranks, 2 + n, HandOver(_RESIDENT, _RESIDENT)) for n in range(count)]
        )
        self._gaps += [after.start_s - before.end_s for before, after in pairwise(spans)]
        samples = [span.seconds for span in spans]
        seconds, cv = statistics.median(samples), statistics.stdev(samples) / statistics.fmean(samples)
        self._steps.append(
            {"height": request.height, "width": request.width, "batch": 1, "sp": degree, "seconds": seconds,
             "cv": round(cv, 4), "samples": count}
        )  # fmt: skip
        self._on_progress(f"step {request.height}x{request.width} on {degree}: {1e3 * seconds:.1f} ms (cv {cv:.1%})")
        return 2 + count

    async def _measure_decode(self, request: Request, steps_done: int) -> None:
        """Decode what the last measurement of steps has left on the first rank."""
        short = replace(request, num_steps=steps_done)
        decode = HandOver(_CREATE, _RESIDENT)
        spans = await self._run(
            [self._segment(SegmentKind.DECODE, short, (0,), decode) for _ in range(1 + _DECODE_SAMPLES)]
        )
        seconds = statistics.median(span.seconds for span in spans[1:])
        self._decodes.append({"height": request.height, "width": request.width, "seconds": seconds})
        self._on_progress(f"decode {request.height}x{request.width}: {1e3 * seconds:.1f} ms")

    def _step(self, request: Request, ranks: tuple[int, ...], step: int, hand_over: HandOver) -> RunSegment:
        return self._segment(SegmentKind.DENOISE, request, ranks, hand_over, first_step=step)

    def _segment(
        self, kind: SegmentKind, request: Request, ranks: tuple[int, ...], hand_over: HandOver, *, first_step: int = 0
    ) -> RunSegment:
        self._segment_id += 1
        part = SegmentPart(request.request_id, first_step, 1 if kind is SegmentKind.DENOISE else 0)
        segment = Segment(self._segment_id, kind, (part,), Placement(ranks), request.height, request.width)
        return RunSegment(segment, (request,), (hand_over,))

    async def _run(self, commands: list[RunSegment]) -> list[_Span]:
        """Send all, then wait for all; their spans in that order."""
        for command in commands:
            self._executor.run_segment(command)
        spans: dict[int, _Span] = {}
        while len(spans) < len(commands):
            event = await self._executor.next_event()
            if isinstance(event, SegmentFinished):
                spans[event.segment_id] = _Span(event.start_s, event.end_s)
            elif isinstance(event, SegmentFailed):
                raise LatencyTableError(f"measuring the latency table failed: {event.reason}")
            elif isinstance(event, WorkerLost):
                raise LatencyTableError(f"measuring the latency table failed: rank {event.rank}: {event.reason}")
        return [spans[command.segment.segment_id] for command in commands]
