"""Runs `EngineCore` in virtual time: a heap of events instead of a clock and ranks."""

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tetriserve_backend.domain import ConfigurationError, Request, Segment
from tetriserve_backend.engine import events as ev
from tetriserve_backend.engine.commands import (
    Command,
    EndRequest,
    FinishRequest,
    ReformWorld,
    RunSegment,
    SetTimer,
    SourceKind,
)
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.engine.prediction import work_seconds
from tetriserve_backend.engine.timeline import (
    TimelineWriter,
    arrive_event,
    outcome_event,
    segment_events,
    world_events,
)
from tetriserve_backend.latency_table import LatencyTable, LatencyTables, as_tables


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended: `outcome` is finish, reject, cancel or fail.

    `predicted_finish_s` is what the engine expected at arrival; None for one that did not finish.
    """

    request: Request
    outcome: str
    end_s: float
    predicted_finish_s: float | None = None

    @property
    def on_time(self) -> bool:
        """Finished by its deadline."""
        return self.outcome == "finish" and self.end_s <= self.request.deadline_s


@dataclass(frozen=True, slots=True)
class RankFailure:
    """Rank `rank` dies at `at_s` and has a loaded worker again `respawn_s` later (inf: never)."""

    rank: int
    at_s: float
    respawn_s: float = 5.0


class VirtualWorld:
    """Performs the core's commands in virtual time.

    Ranks behave as the real ones: each performs what it was sent strictly in order, and a segment starts
    when all its ranks are free and the segment before it of the same request is over.

    Args:
        core: a fresh core.
        tables: what segments cost; as they are now, whatever the core learns.
        world_size: number of ranks.
        timeline: where the timeline goes, if anywhere.
        stretch: a factor on the working time of a segment that starts at a time, such as measurement noise around 1.
        failures: ranks that die.
        observe: called after every event with the core, the time and the commands (for invariants).
        on_segment: called with each segment that ended well, and when it began and ended.
    """

    def __init__(
        self,
        core: EngineCore,
        tables: LatencyTable | LatencyTables,
        world_size: int,
        *,
        timeline: TimelineWriter | None = None,
        stretch: Callable[[Segment, float], float] = lambda segment, start_s: 1.0,
        failures: Iterable[RankFailure] = (),
        observe: Callable[[EngineCore, ev.Event, float, list[Command]], None] | None = None,
        on_segment: Callable[[Segment, float, float], None] | None = None,
    ) -> None:
        self._core, self._tables, self._timeline = core, as_tables(tables).copy(), timeline
        self._stretch, self._observe, self._on_segment = stretch, observe, on_segment
        self._heap: list[tuple[float, int, ev.Event]] = []
        self._order = itertools.count()
        self._rank_free_s = [0.0] * world_size
        self._request_free_s: dict[str, float] = {}
        self._running: dict[int, tuple[Segment, float, float]] = {}
        self._failed_segments: set[int] = set()
        self._timer_order = -1
        self._now_s = 0.0
        self._outcomes: list[Outcome] = []
        for failure in failures:
            self._push(failure.at_s, ev.WorkerLost(failure.rank, "simulated"))
            if math.isfinite(failure.respawn_s):
                self._push(failure.at_s + failure.respawn_s, ev.WorkerReady(failure.rank))
        self._world_size = world_size

    def run(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        """Serve `requests` (in order of arrival) to the end; yields each outcome as it happens.

        Takes one request at a time and forgets it when it has ended, so that memory does not grow with the
        length of the trace. Requests that nothing can happen to any more (no rank left, none to come back)
        fail at the end.

        Raises:
            ConfigurationError: a request arrived whose id another one was using.
        """
        arrivals = iter(requests)
        if self._timeline is not None:
            self._timeline.write(world_events(self._world_size))
        self._pull(arrivals)
        while self._heap:
            now_s, order, event = heapq.heappop(self._heap)
            if isinstance(event, ev.TimerFired) and order != self._timer_order:
                continue
            if isinstance(event, ev.RequestArrived):
                self._arrive(event.request)
                self._pull(arrivals)
            elif isinstance(event, ev.WorkerLost):
                self._break_segments(event, now_s)
            if isinstance(event, ev.SegmentFinished) and not self._close(event):
                continue
            self._handle(event, now_s)
            yield from self._outcomes
            self._outcomes.clear()
            self._now_s = now_s
        if self._core.num_requests:
            self._handle(ev.AbortRequested("the simulation ended with nothing left to happen"), self._now_s)
            yield from self._outcomes

    def _handle(self, event: ev.Event, now_s: float) -> None:
        commands = self._core.handle(event, now_s)
        for command in commands:
            self._perform(command, now_s)
        if self._observe is not None:
            self._observe(self._core, event, now_s, commands)

    def _arrive(self, request: Request) -> None:
        if self._core.knows(request.request_id):
            raise ConfigurationError(f"trace: id: {request.request_id!r} arrives while another request has it")
        if self._timeline is not None:
            self._timeline.write([arrive_event(request, 0.0)])

    def _pull(self, arrivals: Iterator[Request]) -> None:
        request = next(arrivals, None)
        if request is not None:
            self._push(request.arrival_s, ev.RequestArrived(request))

    def _push(self, at_s: float, event: ev.Event) -> int:
        order = next(self._order)
        heapq.heappush(self._heap, (at_s, order, event))
        return order

    def _perform(self, command: Command, now_s: float) -> None:
        match command:
            case RunSegment():
                self._start(command, now_s)
            case FinishRequest(request, finish_s, predicted_finish_s):
                self._end(Outcome(request, "finish", finish_s, predicted_finish_s))
            case EndRequest(request, outcome, _):
                self._end(Outcome(request, outcome, now_s))
            case SetTimer(at_s):
                self._timer_order = self._push(max(at_s, now_s), ev.TimerFired())
            case ReformWorld():
                self._push(now_s, ev.WorldFormed(tuple(range(self._world_size))))

    def _start(self, command: RunSegment, now_s: float) -> None:
        segment, start_s = command.segment, now_s
        for rank in segment.placement.ranks:
            start_s = max(start_s, self._rank_free_s[rank])
        for part in segment.parts:
            start_s = max(start_s, self._request_free_s.get(part.request_id, 0.0))
        table = self._tables.of(segment.model)
        dispatch_s = table.dispatch_s + _hand_over_s(table, command)
        work_s = work_seconds(table, segment) * self._stretch(segment, start_s)
        end_s = start_s + dispatch_s + work_s
        for rank in segment.placement.ranks:
            self._rank_free_s[rank] = end_s
        for part in segment.parts:
            self._request_free_s[part.request_id] = end_s
        self._running[segment.segment_id] = (segment, start_s, end_s)
        # As on real ranks: what they report is the time of the work, not of the way to them.
        self._push(end_s, ev.SegmentFinished(segment.segment_id, start_s + dispatch_s, end_s))

    def _close(self, event: ev.SegmentFinished) -> bool:
        if event.segment_id in self._failed_segments:
            self._failed_segments.remove(event.segment_id)
            return False
        segment, start_s, end_s = self._running.pop(event.segment_id)
        if self._timeline is not None:
            self._timeline.write(segment_events(segment, start_s, end_s))
        if self._on_segment is not None:
            self._on_segment(segment, start_s, end_s)
        return True

    def _break_segments(self, lost: ev.WorkerLost, now_s: float) -> None:
        """What runs or waits on the lost rank fails, and so does what was sent behind it for its requests."""
        broken: set[str] = set()
        for segment_id in sorted(self._running):
            segment, _, _ = self._running[segment_id]
            requests = {part.request_id for part in segment.parts}
            if lost.rank in segment.placement.ranks or requests & broken:
                broken |= requests
                del self._running[segment_id]
                self._failed_segments.add(segment_id)
                self._push(now_s, ev.SegmentFailed(segment_id, lost.reason, retryable=True))
        self._rank_free_s = [now_s] * self._world_size
        for segment, _, end_s in self._running.values():
            for rank in segment.placement.ranks:
                self._rank_free_s[rank] = max(self._rank_free_s[rank], end_s)
        for request_id in broken:
            self._request_free_s[request_id] = now_s

    def _end(self, outcome: Outcome) -> None:
        self._request_free_s.pop(outcome.request.request_id, None)
        self._outcomes.append(outcome)
        if self._timeline is not None:
            self._timeline.write([outcome_event(outcome.outcome, outcome.request.request_id, outcome.end_s)])


def _hand_over_s(table: LatencyTable, command: RunSegment) -> float:
    """How long the ranks of a segment wait for tensors: those that come from the host arrive last."""
    kinds = {source.kind for item in command.hand_over for source in (item.conditioning, item.latent)}
    if SourceKind.HOST in kinds or SourceKind.BROADCAST in kinds:
        return table.hand_over_s(command.segment.placement.sp_degree, from_outside=SourceKind.HOST in kinds)
    return 0.0
