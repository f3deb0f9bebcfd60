"""Samples of one entry at a time, each from a segment as the server would send it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tetriserve_backend.domain import Request, SegmentKind
from tetriserve_backend.engine.commands import HandOver, RunSegment, Source, SourceKind
from tetriserve_backend.latency_table.work import Work
from tetriserve_profiling.bench import Bench
from tetriserve_profiling.memory import peak_bytes, reset_peak
from tetriserve_profiling.settings import MAX_REPEATS, MAX_WARMUP
from tetriserve_profiling.work import ranks_of

CREATE = Source(SourceKind.CREATE)
RESIDENT = Source(SourceKind.RESIDENT)
STAY = HandOver(RESIDENT, RESIDENT)
# Short steps are measured several in a row, as the server runs them: their launches overlap on a GPU.
_SAMPLE_S, _MAX_STEPS_PER_SAMPLE = 0.1, 8
_NUM_STEPS = MAX_WARMUP + MAX_REPEATS * _MAX_STEPS_PER_SAMPLE
# An encode has no resolution, but a request has one.
_ANY_SIDE = 16


@dataclass(frozen=True, slots=True)
class Samples:
    """What one visit of an entry gave.

    Attributes:
        seconds: of each step, encode or decode.
        gaps_s: between the end of a segment and the start of the one that had been sent behind it.
        peak_memory_bytes: the most that any one rank held; None where that is not known.
    """

    seconds: tuple[float, ...]
    gaps_s: tuple[float, ...] = ()
    peak_memory_bytes: int | None = None


class Stopwatch:
    """Measures entries on a bench.

    All steps are those of the same few requests. Rank 0 holds their conditioning from the start and broadcasts it to
    the ranks of a visit; their latents are made from noise at the beginning of each visit.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._encoded = 0

    def forget(self) -> None:
        """What the ranks held may be gone."""
        self._encoded = 0

    def release(self) -> None:
        """Have the ranks drop what they hold."""
        for request in (*self._requests(self._encoded), self._bench.request("decode", _ANY_SIDE, _ANY_SIDE, 0)):
            self._bench.executor.release(request.request_id)
        self.forget()

    async def measure(self, work: Work, warmup: int, afford: Callable[[float], int]) -> Samples:
        """Run `work` `warmup` times (at least once) unmeasured, then take samples.

        Args:
            work: what to measure.
            warmup: unmeasured runs.
            afford: how many samples to take (at least one), told how many seconds one will take.

        Raises:
            SegmentsFailedError: a segment failed; call `forget` before the next measurement.
        """
        pids = [pid for rank, pid in self._bench.executor.worker_pids().items() if rank < work.degree]
        is_counted = reset_peak(pids)
        if work.kind is SegmentKind.DENOISE:
            await self.prepare(work)
        warm = await self._bench.run([self._command(work, number) for number in range(warmup)])
        once_s = max(warm[-1].seconds, 1e-6)
        steps = 1
        if work.kind is SegmentKind.DENOISE:
            steps = max(1, min(_MAX_STEPS_PER_SAMPLE, math.ceil(_SAMPLE_S / once_s)))
        starts = range(warmup, warmup + steps * afford(steps * once_s), steps)
        spans = await self._bench.run([self._command(work, start, steps) for start in starts])
        on_device = [span.peak_memory_bytes for span in spans if span.peak_memory_bytes is not None]
        return Samples(
            tuple(span.seconds / steps for span in spans),
            tuple(after.start_s - before.end_s for before, after in pairwise(spans)),
            max(on_device) if on_device else peak_bytes(pids) if is_counted else None,
        )

    async def prepare(self, work: Work) -> None:
        """Have rank 0 hold the conditioning of the requests of `work`."""
        if self._encoded < work.batch:
            missing = self._requests(work.batch)[self._encoded :]
            await self._bench.run([self._encode([request]) for request in missing])
            self._encoded = work.batch

    def steps(
        self,
        work: Work,
        hand_over: HandOver,
        first_step: int,
        num_steps: int = 1,
        ranks: tuple[int, ...] | None = None,
    ) -> RunSegment:
        """A segment of that work, on other ranks if these are given."""
        requests = self._requests(work.batch, work.height, work.width)
        return self._bench.command(
            SegmentKind.DENOISE, requests, ranks or ranks_of(work), hand_over,
            first_step=first_step, num_steps=num_steps, cfg=work.cfg_degree,
        )  # fmt: skip

    def _command(self, work: Work, first_step: int, num_steps: int = 1) -> RunSegment:
        if work.kind is SegmentKind.DENOISE:
            conditioning = RESIDENT if work.degree == 1 else Source(SourceKind.BROADCAST, 0)
            hand_over = STAY if first_step else HandOver(conditioning, CREATE)
            return self.steps(work, hand_over, first_step, num_steps)
        if work.kind is SegmentKind.ENCODE:
            self._encoded = max(self._encoded, work.batch)
            return self._encode(self._requests(work.batch))
        # Noise takes as long to decode as a picture, and needs no step before it.
        request = self._bench.request("decode", work.height, work.width, 0)
        return self._bench.command(SegmentKind.DECODE, [request], ranks_of(work), HandOver(CREATE, CREATE))

    def _encode(self, requests: Sequence[Request]) -> RunSegment:
        return self._bench.command(SegmentKind.ENCODE, requests, (0,), HandOver(CREATE, CREATE))

    def _requests(self, batch: int, height: int = _ANY_SIDE, width: int = _ANY_SIDE) -> list[Request]:
        return [self._bench.request(str(number), height, width, _NUM_STEPS) for number in range(batch)]
