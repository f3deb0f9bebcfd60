"""The engine as a pure state machine: `EngineCore.handle(event, now_s) -> commands`."""

from collections.abc import Iterable, Sequence

from tetriserve_backend.domain import (
    Assignment,
    Request,
    RequestCancelledError,
    RequestFailedError,
    Segment,
    TetriserveError,
    UnavailableError,
)
from tetriserve_backend.engine import events as ev
from tetriserve_backend.engine.admission import Admission
from tetriserve_backend.engine.commands import (
    Command,
    EndRequest,
    FinishRequest,
    ReformWorld,
    ReleaseRequest,
    RunSegment,
    SetTimer,
    WarnOperator,
)
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.drift import DriftMonitor, DriftSnapshot
from tetriserve_backend.engine.ledger import SegmentLedger
from tetriserve_backend.engine.plan_check import states_of
from tetriserve_backend.engine.prediction import tells_times_of
from tetriserve_backend.engine.request_book import RequestBook
from tetriserve_backend.engine.roster import ModelRoster
from tetriserve_backend.engine.segment_maker import SegmentMaker
from tetriserve_backend.engine.siblings import encoded_once
from tetriserve_backend.engine.state import RequestState
from tetriserve_backend.engine.views import ViewKeeper
from tetriserve_backend.engine.world import WorldState
from tetriserve_backend.latency_table import LatencyTable, LatencyTables, as_tables
from tetriserve_backend.scheduler.policy import Policy
from tetriserve_backend.scheduler.view import SchedulerView


class EngineCore:
    """Tracks requests and ranks, asks the policy, and says what to do. No clock, no IO, no randomness.

    The same object serves live (asyncio shell, xDiT ranks) and simulated (virtual time); only the shell
    that performs the commands differs.

    Args:
        policy: decides what runs next.
        tables: seconds per step, encode and decode, of every model; used to expect when sent work ends. Drift
            is corrected here, so `policy` should be made with the same `LatencyTables`.
        world_size: number of ranks, all usable at the start.
        settings: see `EngineSettings`.
    """

    def __init__(
        self, policy: Policy, tables: LatencyTable | LatencyTables, world_size: int, settings: EngineSettings
    ) -> None:
        self._policy, self._tables, self._settings = policy, as_tables(tables), settings
        self._world = WorldState(world_size)
        self._ledger = SegmentLedger()
        self._views = ViewKeeper(self._ledger, settings)
        self._admission = Admission(policy, self._tables, settings.admission)
        self._drift = DriftMonitor(self._tables, world_size, settings.drift)
        self._book = RequestBook(self._tables, self._views)
        self._requests = self._book.states
        self._maker = SegmentMaker(self._tables, self._ledger)
        self._roster = ModelRoster(self._tables)
        self._draining = self._is_resting = False
        self._timer_at_s: float | None = None
        self._working: tuple[int, ...] = ()
        self._working_of: tuple[tuple[int, ...], frozenset[int]] = ((), frozenset())

    # -- questions ------------------------------------------------------------------------------------

    def knows(self, request_id: str) -> bool:
        """Whether this id is being served, or has ended with a segment still in flight."""
        return request_id in self._requests or self._ledger.depth(request_id) > 0

    @property
    def is_idle(self) -> bool:
        """No request is here and nothing is in flight."""
        return not self._requests and not self._ledger

    @property
    def is_quiet(self) -> bool:
        """Nothing is in flight, and every rank is there."""
        return not self._ledger and self._world.is_whole

    def serves_any(self, model: str) -> bool:
        """Whether a request for that model is here, or a segment of it in flight."""
        return bool(self._book.of_model(model)) or self._ledger.holds(model)

    @property
    def world_size(self) -> int:
        """Ranks of the world, lost ones included."""
        return self._world.size

    @property
    def usable_ranks(self) -> tuple[int, ...]:
        """Ranks that can take work now."""
        return self._world.usable_ranks

    @property
    def num_requests(self) -> int:
        """Requests between arrival and answer."""
        return len(self._requests)

    @property
    def num_running(self) -> int:
        """Requests with a segment in flight."""
        return sum(1 for request_id in self._requests if self._ledger.depth(request_id))

    @property
    def is_draining(self) -> bool:
        """Whether new requests are refused."""
        return self._draining

    def drift(self) -> DriftSnapshot:
        """How measured times differ from the latency tables'."""
        return self._drift.snapshot()

    # -- the one way in -------------------------------------------------------------------------------

    def handle(self, event: ev.Event, now_s: float) -> list[Command]:
        """Apply `event` at `now_s` (seconds, monotonic) and return what to do, in order.

        Raises:
            PlanError: the policy returned a plan that breaks the rules.
            ValueError: a request arrived whose id is in use; the shell must ask `knows` first.
        """
        out: list[Command] = []
        self._drift.release_ranks(now_s)
        match event:
            case ev.RequestArrived(request, siblings):
                self._arrive((request, *siblings), now_s, out)
            case ev.RequestCancelled(request_id):
                if request_id in self._requests:
                    error = RequestCancelledError(f"request '{request_id}' was cancelled by its client")
                    self._end(request_id, "cancel", error, out)
            case ev.SegmentFinished():
                self._finish_segment(event, now_s, out)
            case ev.SegmentFailed():
                self._fail_segment(event, now_s, out)
            case ev.WorkerLost() | ev.WorkerReady() | ev.WorldFormed():
                self._change_world(event)
            case ev.TimerFired():
                self._timer_at_s = None
            case ev.DrainRequested():
                self._draining = True
            case ev.RestBegun() | ev.RestEnded():
                self._rest(event)
            case ev.AbortRequested(reason):
                self._abort(list(self._requests), reason, out)
            case ev.ModelAdded() | ev.ModelClosing() | ev.ModelRemoved():
                self._change_models(event, out)
        self._heal_or_plan(now_s, out)
        return out

    def _change_world(self, event: ev.WorkerLost | ev.WorkerReady | ev.WorldFormed) -> None:
        match event:
            case ev.WorkerLost(rank):
                self._world.lose(rank)
                self._drift.forget_rank(rank)
                for state in self._requests.values():
                    state.forget_rank(rank)
                # Its segments will be reported as failed; until then their requests must not be planned on
                # from a state that never came to be.
                for request_id in self._ledger.requests_behind(rank):
                    self._book.begin_roll_back(request_id)
            case ev.WorkerReady(rank):
                self._world.load(rank)
            case ev.WorldFormed(ranks):
                self._world.formed(ranks)

    def _rest(self, event: ev.RestBegun | ev.RestEnded) -> None:
        self._is_resting = isinstance(event, ev.RestBegun)
        if isinstance(event, ev.RestEnded):
            for change in event.happened:
                self._change_world(change)

    def _change_models(self, event: ev.ModelAdded | ev.ModelClosing | ev.ModelRemoved, out: list[Command]) -> None:
        match event:
            case ev.ModelAdded(model, table):
                self._roster.add(model, table)
            case ev.ModelClosing(model):
                self._roster.close(model)
            case ev.ModelRemoved(model, reason):
                self._abort(self._book.of_model(model), reason, out)
                self._roster.remove(model)

    # -- requests -------------------------------------------------------------------------------------

    def _arrive(self, requests: Iterable[Request], now_s: float, out: list[Command]) -> None:
        for request in requests:
            self._admit(request, now_s, out)

    def _admit(self, request: Request, now_s: float, out: list[Command]) -> None:
        if self.knows(request.request_id):
            raise ValueError(f"request id {request.request_id!r} is in use")
        error = self._roster.refusal(request)
        if self._draining:
            error = UnavailableError("the server is stopping and takes no new requests; try another one")
        if error is not None:
            out.append(EndRequest(request, "reject", error))
            return
        ahead_gpu_s = self._book.gpu_seconds
        state = self._book.enter(request, now_s)
        state.predicted_finish_s = self._admission.predict_finish_s(self.view(now_s), request, ahead_gpu_s, now_s)
        refusal = self._admission.refusal(request, state.predicted_finish_s)
        if refusal is not None:
            self._book.leave(request.request_id)
            out.append(EndRequest(request, "reject", refusal))

    def _abort(self, request_ids: Iterable[str], reason: str, out: list[Command]) -> None:
        for request_id in request_ids:
            self._end(request_id, "fail", UnavailableError(reason), out)

    def _end(self, request_id: str, outcome: str, error: TetriserveError, out: list[Command]) -> None:
        # Segments of it that are in flight run out by themselves; their results find no request.
        state = self._book.leave(request_id)
        out.append(EndRequest(state.request, outcome, error))
        out.append(ReleaseRequest(request_id))

    def _complete(self, state: RequestState, finish_s: float, out: list[Command]) -> None:
        self._book.leave(state.request.request_id)
        out.append(FinishRequest(state.request, finish_s, state.predicted_finish_s, tuple(state.records)))
        out.append(ReleaseRequest(state.request.request_id))

    # -- segments -------------------------------------------------------------------------------------

    def _finish_segment(self, event: ev.SegmentFinished, now_s: float, out: list[Command]) -> None:
        segment = self._ledger.take(event.segment_id, now_s)
        if segment is None:
            return
        if self._is_told_by_the_table(segment):
            out.extend(map(WarnOperator, self._drift.observe(segment, event.start_s, event.end_s, now_s)))
            self._views.slow_down(self._drift.slow_ranks)
        for part in segment.parts:
            state = self._requests.get(part.request_id)
            if state is None:
                continue
            self._book.go_on(state, segment, part, (event.start_s, event.end_s))
            if state.rolling_back and not self._ledger.depth(part.request_id):
                self._book.roll_back(state, now_s)
            if state.done.decoded:
                self._complete(state, now_s, out)

    def _is_told_by_the_table(self, segment: Segment) -> bool:
        """Whether the table tells what this took; of requests that have ended, nobody knows any more."""
        requests = [state.request for part in segment.parts if (state := self._requests.get(part.request_id))]
        return len(requests) == segment.batch_size and tells_times_of(self._tables.of(segment.model), requests)

    def _fail_segment(self, event: ev.SegmentFailed, now_s: float, out: list[Command]) -> None:
        behind = self._ledger.requests_behind_segment(event.segment_id)
        segment = self._ledger.take(event.segment_id, now_s)
        if segment is None:
            return
        states = [state for part in segment.parts if (state := self._requests.get(part.request_id))]
        if not event.retryable:
            states = self._blame(segment, states, event.reason, out)
        # What the end of one request took from the others of its batch says nothing about their ranks.
        lost = event.retryable and len(states) == segment.batch_size
        for request_id in behind:
            self._book.begin_roll_back(request_id, lost=lost)
        for state in states:
            if state.retries > self._settings.max_retries:
                times = f"its ranks were lost {state.retries} times, last: {event.reason}"
                self._end(state.request.request_id, "fail", RequestFailedError(times), out)
            elif not self._ledger.depth(state.request.request_id):
                self._book.roll_back(state, now_s)

    def _blame(
        self, segment: Segment, states: Sequence[RequestState], reason: str, out: list[Command]
    ) -> list[RequestState]:
        """End the request whose work failed; of a batch nobody knows whose it was. Returns those that go on.

        The members of a batch go on alone, so that the guilty one fails next time and the others are served.
        """
        if segment.batch_size == 1:
            error = RequestFailedError(f"{segment.kind.value} failed: {reason}")
            for state in states:
                self._end(state.request.request_id, "fail", error, out)
            return []
        for state in states:
            state.failed_together = True
        return list(states)

    # -- planning -------------------------------------------------------------------------------------

    def _heal_or_plan(self, now_s: float, out: list[Command]) -> None:
        if self._world.is_forming or (self._is_resting and self._world.is_whole):
            return
        if not self._world.waits_to_form:
            self._plan(now_s, out)
        elif not self._ledger:
            self._world.form()
            out.append(ReformWorld())

    def view(self, now_s: float) -> SchedulerView:
        """What the policy sees at `now_s`."""
        return self._views.view(self._requests, self._working_ranks(), self._world.size, now_s)

    def _working_ranks(self) -> tuple[int, ...]:
        """The usable ranks without those in quarantine; the same object as long as nothing changes."""
        usable, quarantined = self._world.usable_ranks, self._drift.quarantined_ranks
        if usable is not self._working_of[0] or quarantined is not self._working_of[1]:
            working = tuple(rank for rank in usable if rank not in quarantined)
            self._working_of, self._working = (usable, quarantined), working or usable
        return self._working

    def _plan(self, now_s: float, out: list[Command]) -> None:
        if not self._requests:
            return
        view = self.view(now_s)
        if not view.requests:
            return
        plan = self._policy.plan(view, now_s)
        out.extend(self._send(assignment, now_s) for assignment in encoded_once(plan.assignments, self._requests))
        if plan.wake_at_s is not None and plan.wake_at_s != self._timer_at_s:
            self._timer_at_s = plan.wake_at_s
            out.append(SetTimer(plan.wake_at_s))

    def _send(self, assignment: Assignment, now_s: float) -> RunSegment:
        states = states_of(assignment, self._requests, self._world)
        slowness = self._drift.slowness(assignment.placement.ranks)
        return self._maker.make(assignment, states, slowness, now_s)
