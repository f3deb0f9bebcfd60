"""The live shell of the engine: feeds events of clients and ranks to the core and performs its commands."""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

from tetriserve_backend.domain import (
    DuplicateRequestError,
    Request,
    ServerError,
    TetriserveError,
    UnavailableError,
)
from tetriserve_backend.engine import events as ev
from tetriserve_backend.engine.chronicle import Chronicle
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
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.engine.executor_port import Executor, ExecutorEvent, StepProgress
from tetriserve_backend.engine.metrics import Metric, drift_metrics, drift_status
from tetriserve_backend.engine.request_listener import Answer, RequestListener
from tetriserve_backend.engine.timeline import TimelineWriter
from tetriserve_backend.latency_table import LatencyTable

_log = logging.getLogger(__name__)
_DECISIONS_KEPT = 2000


class AsyncEngine:
    """Joins `EngineCore` to an executor that has been started. All methods belong to one asyncio loop.

    Every submitted request gets exactly one `on_finish` or `on_error`, also when the executor or the core
    breaks: then the engine fails everything, refuses new requests and says `failed` in `status`.
    """

    def __init__(self, core: EngineCore, executor: Executor, timeline: TimelineWriter | None = None) -> None:
        self._core, self._executor = core, executor
        self._chronicle = Chronicle(timeline)
        self._listeners: dict[str, tuple[Request, RequestListener]] = {}
        self._decisions_s: deque[float] = deque(maxlen=_DECISIONS_KEPT)
        self._timer: asyncio.TimerHandle | None = None
        self._pump: asyncio.Task[None] | None = None
        self._progressed = asyncio.Event()
        self._resting = asyncio.Lock()
        self._is_shut_down = False
        self._failure: str | None = None

    # -- life -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to serve."""
        self._chronicle.begin(self._core.world_size)
        self._pump = asyncio.create_task(self._pump_events(), name="engine")

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, wait up to `timeout_s` for the running ones, fail the rest."""
        self._handle(ev.DrainRequested())
        await self._wait_until(lambda: self._core.is_idle, timeout_s)
        if self._listeners:
            self._handle(ev.AbortRequested("the server stopped before this request was done"))

    async def shutdown(self) -> None:
        """Stop serving; whoever still waits gets an error. Shuts the executor down too. Idempotent."""
        self._is_shut_down = True
        if self._pump is not None:
            await _cancel(self._pump)
            self._pump = None
        if self._timer is not None:
            self._timer.cancel()
        self._fail_listeners(UnavailableError("the server stopped before this request was done"))
        await self._executor.shutdown()
        self._chronicle.close()

    # -- models ---------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def at_rest(self) -> AsyncIterator[Callable[[], Awaitable[ExecutorEvent]]]:
        """Have the ranks to oneself: nothing runs on them, new requests wait, and events come from what this gives.

        A rank that is being replaced is waited for, while the others go on.

        Raises:
            UnavailableError: the engine has failed or is shut down.
        """
        async with self._resting:
            guest = _Guest(self._executor)
            self._handle(ev.RestBegun())
            try:
                await self._wait_until(lambda: self._core.is_quiet)
                if self._pump is None or self._failure is not None:
                    raise UnavailableError(f"the engine failed: {self._failure or 'it is shut down'}")
                await _cancel(self._pump)
                try:
                    yield guest.next_event
                finally:
                    self._take_back(guest)
            finally:
                self._handle(ev.RestEnded(tuple(guest.world_events)))

    def add_model(self, model: str, table: LatencyTable) -> None:
        """Serve requests for a model that the ranks hold."""
        self._handle(ev.ModelAdded(model, table))

    async def remove_model(self, model: str, timeout_s: float) -> None:
        """Refuse new requests for a model, wait up to `timeout_s` for the running ones, fail the rest."""
        self._handle(ev.ModelClosing(model))
        await self._wait_until(lambda: not self._core.serves_any(model), timeout_s)
        self._handle(ev.ModelRemoved(model, f"model '{model}' was unloaded before this request was done"))

    # -- clients --------------------------------------------------------------------------------------

    def submit(self, request: Request, listener: RequestListener, *siblings: Request) -> None:
        """Take a validated request, and the others of its `prompt_group` if it has one; answers go to `listener`.

        Where the id of one is in use, only that one is answered, and none is taken.
        """
        requests = (request, *siblings)
        if self._failure is not None:
            for each in requests:
                listener.on_error(each, UnavailableError(f"the engine failed: {self._failure}"))
            return
        for each in requests:
            if each.request_id in self._listeners or self._core.knows(each.request_id):
                listener.on_error(each, DuplicateRequestError(each.request_id))
                return
        for each in requests:
            self._chronicle.arrived(each)
            self._listeners[each.request_id] = (each, listener)
        self._handle(ev.RequestArrived(request, siblings))

    def cancel(self, request_id: str) -> bool:
        """Stop a request at its next segment boundary; false if it is not (or no longer) being served."""
        if request_id not in self._listeners:
            return False
        self._handle(ev.RequestCancelled(request_id))
        return True

    def status(self) -> dict[str, object]:
        """What an operator or a probe wants to know, ready for JSON."""
        state = "draining" if self._core.is_draining else "serving"
        decisions = sorted(self._decisions_s)
        running = self._core.num_running
        return {
            "state": "failed" if self._failure is not None else state,
            "failure": self._failure,
            "ranks": list(self._core.usable_ranks),
            "running": running,
            "pending": self._core.num_requests - running,
            "drift": drift_status(self._core.drift()),
            "decision_ms": {
                name: round(1e3 * decisions[int(q * (len(decisions) - 1))], 3) if decisions else None
                for name, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
            },
        }

    def metrics(self) -> tuple[Metric, ...]:
        """Figures for monitoring, as they are now."""
        return drift_metrics(self._core.drift())

    # -- events in, commands out ----------------------------------------------------------------------

    async def _pump_events(self) -> None:
        try:
            while True:
                event = await self._executor.next_event()
                if isinstance(event, StepProgress):
                    self._report_progress(event)
                else:
                    self._chronicle.happened(event)
                    self._handle(event)
        except asyncio.CancelledError:
            raise
        except ServerError as error:
            self._fail(str(error))
        except Exception as error:
            _log.exception("the engine failed")
            self._fail(repr(error))

    def _take_back(self, guest: "_Guest") -> None:
        """Note what happened to the ranks meanwhile, and listen to them again."""
        for event in guest.world_events:
            self._chronicle.happened(event)
        if guest.failure is not None:
            self._fail(str(guest.failure))
        elif not self._is_shut_down:
            self._pump = asyncio.create_task(self._pump_events(), name="engine")

    async def _wait_until(self, is_so: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Return when it is so, the time is over, or the engine has failed."""
        deadline_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while not is_so() and self._failure is None and (left_s := deadline_s - time.monotonic()) > 0:
            self._progressed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._progressed.wait(), None if timeout_s is None else left_s)

    def _handle(self, event: ev.Event) -> None:
        if self._failure is not None:
            return
        now_s = time.monotonic()
        try:
            commands = self._core.handle(event, now_s)
            self._decisions_s.append(time.monotonic() - now_s)
            for command in commands:
                self._perform(command)
        except Exception as error:
            # A bug of ours must not leave clients waiting for ever.
            _log.exception("the engine failed on %s", event)
            self._fail(repr(error))
        self._progressed.set()

    def _perform(self, command: Command) -> None:
        match command:
            case RunSegment():
                self._chronicle.sent(command.segment)
                self._executor.run_segment(command)
            case ReleaseRequest(request_id):
                self._executor.release(request_id)
            case FinishRequest():
                self._finish(command)
            case EndRequest(request, outcome, error):
                self._chronicle.ended(request, outcome, time.monotonic())
                _, listener = self._listeners.pop(request.request_id)
                listener.on_error(request, error)
            case ReformWorld():
                self._executor.reform_world()
            case WarnOperator(text):
                _log.warning("%s", text)
            case SetTimer(at_s):
                if self._timer is not None:
                    self._timer.cancel()
                delay_s = max(0.0, at_s - time.monotonic())
                self._timer = asyncio.get_running_loop().call_later(delay_s, self._handle, ev.TimerFired())

    def _finish(self, command: FinishRequest) -> None:
        request = command.request
        self._chronicle.ended(request, "finish", command.finish_s)
        pixels = self._executor.take_image(request.request_id)
        _, listener = self._listeners.pop(request.request_id)
        listener.on_finish(Answer(request, pixels, command.finish_s, command.predicted_finish_s, command.segments))

    def _report_progress(self, event: StepProgress) -> None:
        entry = self._listeners.get(event.request_id)
        if entry is not None:
            request, listener = entry
            listener.on_progress(request, event.step_index, event.preview)

    # -- failing --------------------------------------------------------------------------------------

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._fail_listeners(UnavailableError(f"the engine failed: {reason}"))
        self._progressed.set()

    def _fail_listeners(self, error: TetriserveError) -> None:
        waiting = list(self._listeners.values())
        self._listeners.clear()
        for request, listener in waiting:
            try:
                listener.on_error(request, error)
            except Exception:
                # The others must hear of it all the same.
                _log.exception("request %s could not be told: %s", request.request_id, error)
            self._chronicle.ended(request, "fail", time.monotonic())


class _Guest:
    """Reads the executor's events in the engine's place and keeps those that the engine must know of."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.world_events: list[ev.WorkerLost | ev.WorkerReady | ev.WorldFormed] = []
        self.failure: ServerError | None = None

    async def next_event(self) -> ExecutorEvent:
        """As `Executor.next_event`."""
        try:
            event = await self._executor.next_event()
        except ServerError as error:
            self.failure = error
            raise
        if isinstance(event, ev.WorkerLost | ev.WorkerReady | ev.WorldFormed):
            self.world_events.append(event)
        return event


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
