"""The engine as a pure state machine: `EngineCore.handle(event, now_s) -> commands`."""

from collections.abc import Iterable

from tetriserve_backend.domain import (
    Assignment,
    InvalidRequestError,
    LatencyTableError,
    Request,
    RequestCancelledError,
    RequestFailedError,
    Segment,
    SegmentKind,
    SegmentPart,
    TetriserveError,
    UnavailableError,
)
from tetriserve_backend.engine import events as ev
from tetriserve_backend.engine.commands import (
    Command,
    EndRequest,
    FinishRequest,
    ReformWorld,
    ReleaseRequest,
    RunSegment,
    SegmentRecord,
    SetTimer,
)
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.handover import hand_over, note_sent
from tetriserve_backend.engine.prediction import predict_finish_s
from tetriserve_backend.engine.state import InFlight, RankState, RequestState
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.scheduler.policy import Policy
from tetriserve_backend.scheduler.view import RankView, RequestView, SchedulerView


class PlanError(RuntimeError):
    """A policy broke the rules of `Plan`: a bug, never the fault of a request."""


class EngineCore:
    """Tracks requests and ranks, asks the policy, and says what to do. No clock, no IO, no randomness.

    The same object serves live (asyncio shell, xDiT ranks) and simulated (virtual time); only the shell
    that performs the commands differs.

    Args:
        policy: decides what runs next.
        table: seconds per step, encode and decode; used to expect when sent work ends.
        world_size: number of ranks, all usable at the start.
        settings: see `EngineSettings`.
    """

    def __init__(self, policy: Policy, table: LatencyTable, world_size: int, settings: EngineSettings) -> None:
        self._policy, self._table, self._settings = policy, table, settings
        self._ranks = [RankState(rank) for rank in range(world_size)]
        self._requests: dict[str, RequestState] = {}
        self._in_flight: dict[int, InFlight] = {}
        self._next_segment_id = 0
        self._lost: set[int] = set()
        self._loaded: set[int] = set()
        self._reforming = False
        self._draining = False
        self._timer_at_s: float | None = None

    # -- questions ------------------------------------------------------------------------------------

    def knows(self, request_id: str) -> bool:
        """Whether this id is being served, or was cancelled with a segment still in flight."""
        return request_id in self._requests or any(
            part.request_id == request_id for sent in self._in_flight.values() for part in sent.segment.parts
        )

    @property
    def is_idle(self) -> bool:
        """No request is here and nothing is in flight."""
        return not self._requests and not self._in_flight

    @property
    def usable_ranks(self) -> tuple[int, ...]:
        """Ranks that can take work now."""
        return tuple(state.rank for state in self._ranks if state.usable)

    @property
    def num_requests(self) -> int:
        """Requests between arrival and answer."""
        return len(self._requests)

    @property
    def num_running(self) -> int:
        """Requests with a segment in flight."""
        return sum(1 for state in self._requests.values() if state.in_flight)

    @property
    def is_draining(self) -> bool:
        """Whether new requests are refused."""
        return self._draining

    # -- the one way in -------------------------------------------------------------------------------

    def handle(self, event: ev.Event, now_s: float) -> list[Command]:
        """Apply `event` at `now_s` (seconds, monotonic) and return what to do, in order.

        Raises:
            PlanError: the policy returned a plan that breaks the rules.
            ValueError: a request arrived whose id is in use; the shell must ask `knows` first.
        """
        out: list[Command] = []
        match event:
            case ev.RequestArrived(request):
                self._arrive(request, now_s, out)
            case ev.RequestCancelled(request_id):
                if request_id in self._requests:
                    error = RequestCancelledError(f"request '{request_id}' was cancelled by its client")
                    self._end(request_id, "cancel", error, out)
            case ev.SegmentFinished():
                self._finish_segment(event, now_s, out)
            case ev.SegmentFailed():
                self._fail_segment(event, now_s, out)
            case ev.WorkerLost(rank):
                self._lose_worker(rank)
            case ev.WorkerReady(rank):
                self._loaded.add(rank)
            case ev.WorldFormed(ranks):
                self._form_world(ranks, now_s)
            case ev.TimerFired():
                self._timer_at_s = None
            case ev.DrainRequested():
                self._draining = True
            case ev.AbortRequested(reason):
                for request_id in list(self._requests):
                    self._end(request_id, "fail", UnavailableError(reason), out)
        self._heal_or_plan(now_s, out)
        return out

    # -- requests -------------------------------------------------------------------------------------

    def _arrive(self, request: Request, now_s: float, out: list[Command]) -> None:
        if self.knows(request.request_id):
            raise ValueError(f"request id {request.request_id!r} is in use")
        error: TetriserveError | None = None
        if self._draining:
            error = UnavailableError("the server is stopping and takes no new requests; try another one")
        else:
            try:
                self._table.check_resolution(request.height, request.width)
            except LatencyTableError as problem:
                error = InvalidRequestError("height/width", f"{request.height}x{request.width}", str(problem))
        if error is not None:
            out.append(EndRequest(request, "reject", error))
            return
        predicted_s = predict_finish_s(
            self._table, request, self._requests.values(), len(self.usable_ranks), now_s
        )
        self._requests[request.request_id] = RequestState(request, predicted_s, ready_at_s=now_s)

    def _end(self, request_id: str, outcome: str, error: TetriserveError, out: list[Command]) -> None:
        # Segments of it that are in flight run out by themselves; their results find no request.
        state = self._requests.pop(request_id)
        out.append(EndRequest(state.request, outcome, error))
        out.append(ReleaseRequest(request_id))

    def _complete(self, state: RequestState, finish_s: float, out: list[Command]) -> None:
        del self._requests[state.request.request_id]
        out.append(FinishRequest(state.request, finish_s, state.predicted_finish_s, tuple(state.records)))
        out.append(ReleaseRequest(state.request.request_id))

    # -- segments -------------------------------------------------------------------------------------

    def _finish_segment(self, event: ev.SegmentFinished, now_s: float, out: list[Command]) -> None:
        segment = self._take_in_flight(event.segment_id, now_s)
        if segment is None:
            return
        for part in segment.parts:
            state = self._requests.get(part.request_id)
            if state is None:
                continue
            state.in_flight.remove(segment.segment_id)
            state.done.advance(segment.kind, part.num_steps)
            state.records.append(
                SegmentRecord(
                    kind=segment.kind.value,
                    ranks=segment.placement.ranks,
                    first_step=part.first_step,
                    num_steps=part.num_steps,
                    start_s=event.start_s,
                    end_s=event.end_s,
                )
            )
            if not state.in_flight:
                state.ready_at_s = now_s
                if state.rolling_back:
                    state.roll_back(now_s)
            if state.done.decoded:
                self._complete(state, now_s, out)

    def _fail_segment(self, event: ev.SegmentFailed, now_s: float, out: list[Command]) -> None:
        segment = self._take_in_flight(event.segment_id, now_s)
        if segment is None:
            return
        for part in segment.parts:
            state = self._requests.get(part.request_id)
            if state is None:
                continue
            state.in_flight.remove(segment.segment_id)
            if not state.rolling_back:
                state.retries += 1
            state.rolling_back = True
            if not event.retryable:
                error = RequestFailedError(f"{segment.kind.value} failed: {event.reason}")
                self._end(part.request_id, "fail", error, out)
            elif state.retries > self._settings.max_retries:
                times = f"its ranks were lost {state.retries} times, last: {event.reason}"
                self._end(part.request_id, "fail", RequestFailedError(times), out)
            elif not state.in_flight:
                state.roll_back(now_s)

    def _take_in_flight(self, segment_id: int, now_s: float) -> Segment | None:
        sent = self._in_flight.pop(segment_id, None)
        if sent is None:
            return None
        for rank in sent.segment.placement.ranks:
            self._ranks[rank].queue.remove(segment_id)
        self._expect_again(sent.segment.placement.ranks, now_s)
        return sent.segment

    def _expect_again(self, ranks: Iterable[int], now_s: float) -> None:
        """Work on these ranks ended earlier or later than expected: when will what is queued behind end?"""
        waiting: set[int] = set()
        for rank in ranks:
            self._ranks[rank].free_at_s = now_s
            waiting.update(self._ranks[rank].queue)
        for segment_id in sorted(waiting):
            sent = self._in_flight[segment_id]
            members = [self._ranks[rank] for rank in sent.segment.placement.ranks]
            if all(member.queue[0] == segment_id for member in members):
                sent.end_s = max(sent.end_s, now_s) if self._started(sent, now_s) else now_s + sent.duration_s
            else:
                sent.end_s = max(self._before(member, segment_id, now_s) for member in members) + sent.duration_s
            for member in members:
                member.free_at_s = sent.end_s
            for part in sent.segment.parts:
                if part.request_id in self._requests:
                    self._requests[part.request_id].ready_at_s = sent.end_s

    @staticmethod
    def _started(sent: InFlight, now_s: float) -> bool:
        return sent.end_s - sent.duration_s < now_s < sent.end_s

    def _before(self, member: RankState, segment_id: int, now_s: float) -> float:
        position = member.queue.index(segment_id)
        return now_s if position == 0 else self._in_flight[member.queue[position - 1]].end_s

    # -- ranks ----------------------------------------------------------------------------------------

    def _lose_worker(self, rank: int) -> None:
        self._ranks[rank].usable = False
        self._lost.add(rank)
        self._loaded.discard(rank)
        if self._reforming:
            # The groups were half built when the rank went: none of them can be used before the next try.
            self._reforming = False
            for state in self._ranks:
                state.usable = False
        for request in self._requests.values():
            request.forget_rank(rank)

    def _form_world(self, ranks: tuple[int, ...], now_s: float) -> None:
        self._reforming = False
        self._lost.clear()
        self._loaded.clear()
        for rank in ranks:
            self._ranks[rank].usable = True
            self._ranks[rank].free_at_s = now_s

    def _heal_or_plan(self, now_s: float, out: list[Command]) -> None:
        if self._reforming:
            return
        if self._lost and self._lost <= self._loaded:
            # Every rank takes part in forming the groups, so all work ends first and none is started.
            if not self._in_flight:
                self._reforming = True
                out.append(ReformWorld())
            return
        self._plan(now_s, out)

    # -- planning -------------------------------------------------------------------------------------

    def view(self, now_s: float) -> SchedulerView:
        """What the policy sees at `now_s`."""
        depth = self._settings.max_queue_depth
        # A rank that is far behind the table looks free for ever; past the depth it takes nothing more.
        not_yet_s = now_s + self._settings.lead_s + 1e-3
        ranks = tuple(
            RankView(
                rank=state.rank,
                free_at_s=state.free_at_s if len(state.queue) < depth else max(state.free_at_s, not_yet_s),
                in_flight=len(state.queue),
            )
            for state in self._ranks
            if state.usable
        )
        requests = tuple(
            RequestView(
                request=state.request,
                next_kind=state.next_kind,
                remaining_steps=state.request.num_steps - state.sent.steps,
                ready_at_s=state.ready_at_s,
                placement=state.placement,
                in_flight=len(state.in_flight),
            )
            for state in self._requests.values()
            if not state.rolling_back and state.next_kind is not None
        )
        return SchedulerView(requests, ranks, len(self._ranks), self._settings.lead_s)

    def _plan(self, now_s: float, out: list[Command]) -> None:
        view = self.view(now_s)
        if not view.requests:
            return
        plan = self._policy.plan(view, now_s)
        for assignment in plan.assignments:
            out.append(self._send(assignment, now_s))
        if plan.wake_at_s is not None and plan.wake_at_s != self._timer_at_s:
            self._timer_at_s = plan.wake_at_s
            out.append(SetTimer(plan.wake_at_s))

    def _send(self, assignment: Assignment, now_s: float) -> RunSegment:
        states = self._check(assignment)
        kind, placement = assignment.kind, assignment.placement
        request = states[0].request
        segment = Segment(
            segment_id=self._next_segment_id,
            kind=kind,
            parts=tuple(self._part(state, assignment) for state in states),
            placement=placement,
            height=request.height,
            width=request.width,
        )
        self._next_segment_id += 1
        sources = tuple(hand_over(state, kind, placement) for state in states)
        duration_s = self._duration_s(segment)
        start_s = max(
            now_s, *(self._ranks[rank].free_at_s for rank in placement.ranks), *(s.ready_at_s for s in states)
        )
        self._in_flight[segment.segment_id] = InFlight(segment, duration_s, start_s + duration_s)
        for rank in placement.ranks:
            self._ranks[rank].queue.append(segment.segment_id)
            self._ranks[rank].free_at_s = start_s + duration_s
        for state, part in zip(states, segment.parts, strict=True):
            note_sent(state, kind, placement)
            state.sent.advance(kind, part.num_steps)
            state.in_flight.append(segment.segment_id)
            state.placement = placement
            state.ready_at_s = start_s + duration_s
        return RunSegment(segment, tuple(state.request for state in states), sources)

    @staticmethod
    def _part(state: RequestState, assignment: Assignment) -> SegmentPart:
        if assignment.kind is not SegmentKind.DENOISE:
            return SegmentPart(state.request.request_id)
        steps = min(assignment.num_steps, state.request.num_steps - state.sent.steps)
        return SegmentPart(state.request.request_id, state.sent.steps, steps)

    def _duration_s(self, segment: Segment) -> float:
        if segment.kind is SegmentKind.ENCODE:
            busy_s = self._table.encode_s()
        elif segment.kind is SegmentKind.DECODE:
            busy_s = self._table.decode_s(segment.height, segment.width)
        else:
            busy_s = segment.num_steps * self._table.step_s(
                segment.height, segment.width, segment.placement.sp_degree, segment.batch_size
            )
        return busy_s + self._table.dispatch_s

    def _check(self, assignment: Assignment) -> list[RequestState]:
        """The states that an assignment is about.

        Raises:
            PlanError: unknown request, wrong stage, no steps, mixed resolutions, or a rank that is not usable.
        """
        states = []
        for request_id in assignment.request_ids:
            state = self._requests.get(request_id)
            if state is None or state.rolling_back or state.next_kind is not assignment.kind:
                raise PlanError(f"{assignment}: {request_id} is not waiting for {assignment.kind.value}")
            states.append(state)
        if not states or len(set(assignment.request_ids)) != len(states):
            raise PlanError(f"{assignment}: needs distinct requests, at least one")
        if len({(state.request.height, state.request.width) for state in states}) > 1:
            raise PlanError(f"{assignment}: one batch, one resolution")
        if (assignment.kind is SegmentKind.DENOISE) != (assignment.num_steps > 0):
            raise PlanError(f"{assignment}: steps go with denoise, and only with it")
        unusable = [r for r in assignment.placement.ranks if r >= len(self._ranks) or not self._ranks[r].usable]
        if unusable:
            raise PlanError(f"{assignment}: ranks {unusable} are not usable")
        return states
