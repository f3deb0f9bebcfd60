"""The executor that serves: N ranks with xDiT's sequence parallelism behind the engine's port."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tetriserve_backend.domain import ConfigurationError, ServerError
from tetriserve_backend.engine.commands import RunSegment
from tetriserve_backend.engine.events import WorkerLost, WorkerReady, WorldFormed
from tetriserve_backend.engine.executor_port import ExecutorEvent, StepProgress
from tetriserve_backend.executor import wire
from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.executor.dispatcher import Dispatcher
from tetriserve_backend.executor.flight import Action, KillRanks, SendForget, SendHeal, SendSegment
from tetriserve_backend.executor.host_store import HostStore, as_pixels
from tetriserve_backend.executor.machine import check_pace, decide_dtype, inspect_machine, surely_without_gpu
from tetriserve_backend.executor.memory_budget import check_host_memory
from tetriserve_backend.executor.model_facts import ModelFacts
from tetriserve_backend.executor.model_shelf import ModelShelf
from tetriserve_backend.executor.models.directory import resolve_directory
from tetriserve_backend.executor.rank_pool import RankPool
from tetriserve_backend.executor.rendezvous import forget_timeouts, host_rendezvous
from tetriserve_backend.executor.worker_spec import ModelSpec, RankSpec
from tetriserve_backend.executor.world_forming import WorldForming
from tetriserve_backend.latency_table import LatencyTable

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

_log = logging.getLogger(__name__)
_WATCH_PERIOD_S = 0.5


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that every rank holds, and what they know of it."""

    spec: ModelSpec
    facts: ModelFacts


class XditExecutor:
    """Implements `engine.executor_port.Executor` on real ranks, which hold no model until they are told to.

    Attributes (but for the first known after `start`):
        settings: as given.
        device: `cpu` or `cuda`; `device_names` are the product's names by rank, `device_name` is one of them.
        world_size, software: as a latency table tells them.

    Args:
        executor: see `ExecutorSettings`.
        device: `auto`, `cpu` or `cuda`; all models share it.
    """

    def __init__(self, executor: ExecutorSettings, device: str = "auto") -> None:
        self.settings = executor
        self.world_size = executor.world_size or 0
        self.device = device
        self.device_name = ""
        self.device_names: dict[int, str] = {}
        self.software: dict[str, str] = {}
        self._events: asyncio.Queue[ExecutorEvent | ServerError] = asyncio.Queue()
        self._store = HostStore()
        self._pool = RankPool(self, executor.respawn_timeout_s)
        self._shelf = ModelShelf(self._pool.send, self._on_up, self._on_unfit)
        self._load_times_s: dict[str, float] = {}
        self._dispatcher: Dispatcher | None = None
        self._rendezvous: TCPStore | None = None
        self._watch: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] | None = None
        self._up: set[int] = set()
        self._forming = WorldForming(self._pool.send, executor.form_timeout_s)
        self._actions: deque[Action] = deque()
        self._is_performing = False

    async def start(self) -> None:
        """Start the ranks and form the groups. Does nothing if that has been done.

        Raises:
            ServerError: a rank could not start; nothing is left running.
        """
        if self._watch is not None:
            return
        self._started = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait_for(self._start(self._started), self.settings.start_timeout_s)
        except (TimeoutError, asyncio.TimeoutError) as error:
            await self.shutdown()
            raise ServerError(f"the ranks did not start within {self.settings.start_timeout_s:g} s") from error
        except BaseException:
            await self.shutdown()
            raise
        self._watch = asyncio.create_task(self._watch_over())

    async def find_model(self, name: str, model: ModelSettings) -> ModelSpec:
        """Where a model is, made or fetched where that is allowed, and how the ranks would load it.

        Raises:
            ConfigurationError: there is no such model, it is not for this device, or it does not fit.
            LatencyTableError: the table of its pace cannot be read.
        """
        dtype = decide_dtype(model, self.device)
        check_pace(model, self.device)
        directory = await asyncio.to_thread(resolve_directory, model)
        if self.device == "cpu":
            check_host_memory(directory, model, dtype, self.world_size)
        pace = LatencyTable.load(model.pace_table).to_dict() if model.pace_table is not None else None
        return ModelSpec(name, str(directory), model, dtype, pace)

    async def load_model(self, spec: ModelSpec) -> LoadedModel:
        """Have every rank load a model. Each does it in one go, between two segments: best while nothing else runs.

        Raises:
            ConfigurationError: a rank cannot load it, or one of that name is loaded; the ranks go on with the
                models that they have.
            ServerError: the ranks took too long, or are beyond repair.
        """
        started_s = time.monotonic()
        try:
            facts = await self._shelf.load(spec, range(self.world_size), self.settings.start_timeout_s)
        finally:
            self._load_times_s[spec.name] = time.monotonic() - started_s
            self._tell_pool()
        return LoadedModel(spec, facts)

    async def unload_model(self, name: str) -> None:
        """Have no rank hold a model any more, after all of its segments that were sent; frees its memory."""
        try:
            await self._shelf.unload(name, range(self.world_size), self.settings.start_timeout_s)
        finally:
            self._tell_pool()

    def run_segment(self, command: RunSegment) -> None:
        """Send a segment to its ranks, behind the earlier ones of its ranks and requests.

        Only a segment that waits for late work of its own request may be overtaken.
        """
        self._perform(self._running_dispatcher().submit(command))

    def release(self, request_id: str) -> None:
        """Forget a request's tensors everywhere, once its sent segments are over; unsent ones fail."""
        self._perform(self._running_dispatcher().release(request_id))

    def reform_world(self) -> None:
        """Build all groups anew; answered by `WorldFormed`. Only called with no segment in flight."""
        if self._rendezvous is not None:
            forget_timeouts(self._rendezvous)
        self._forming.begin(range(self.world_size))

    def take_image(self, request_id: str) -> npt.NDArray[np.uint8]:
        """The decoded pixels, shape (height, width, 3), once; valid after its decode finished."""
        return self._store.take_image(request_id)

    async def next_event(self) -> ExecutorEvent:
        """The next thing that happened, in order.

        Raises:
            ServerError: a rank was given up; the world will not be whole again.
        """
        event = await self._events.get()
        if isinstance(event, ServerError):
            raise event
        return event

    async def shutdown(self) -> None:
        """End every rank; nothing of them is left. Idempotent."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        await self._pool.close()
        self._rendezvous = None

    def worker_pids(self) -> dict[int, int]:
        """Process ids of the living ranks, for status and for tests of faults."""
        return self._pool.pids()

    def on_message(self, rank: int, message: wire.Message, tensors: tuple[wire.HostTensor, ...]) -> None:
        """A rank has something to say (called by the pool)."""
        if isinstance(message, wire.PartDone):
            self._perform(self._running_dispatcher().part_done(rank, message, tensors))
        elif isinstance(message, wire.StepDone):
            preview = as_pixels(tensors[0]) if tensors else None
            self._events.put_nowait(StepProgress(message.request_id, message.step_index, preview))
        elif isinstance(message, wire.PartFailed):
            self._perform(self._running_dispatcher().part_failed(rank, message, time.monotonic()))
        elif isinstance(message, wire.GroupHealed):
            self._perform(self._running_dispatcher().group_healed(rank, message.ranks))
        elif isinstance(message, wire.Loaded):
            self.device_name, self.software = message.info.device_name, message.info.software
            self.device_names[rank] = message.info.device_name
            self._shelf.born(rank, message.models)
        elif isinstance(message, wire.ModelLoaded):
            self._shelf.loaded(rank, message.name, message.facts)
        elif isinstance(message, wire.ModelFailed):
            self._shelf.failed(rank, message.name, message.reason)
        elif isinstance(message, wire.ModelUnloaded):
            self._shelf.unloaded(rank, message.name)
        elif isinstance(message, wire.WorldReady):
            self._on_world_ready(rank, message.generation)
        elif isinstance(message, wire.StartFailed):
            self._on_start_failed(rank, message.reason)

    def on_lost(self, rank: int, reason: str) -> None:
        """A rank died (called by the pool, which is already starting another)."""
        if self._is_starting():
            self._on_start_failed(rank, reason)
            return
        self._up.discard(rank)
        self._shelf.lost(rank)
        self._events.put_nowait(WorkerLost(rank, reason))
        self._perform(self._running_dispatcher().rank_lost(rank, reason))
        for other in self._forming.lost(rank):
            self._pool.kill(other)

    def on_given_up(self, rank: int, reason: str) -> None:
        """A rank cannot be had any more (called by the pool): nothing can be promised from here on."""
        if self._is_starting():
            self._on_start_failed(rank, reason)
        else:
            self._events.put_nowait(ServerError(f"rank {rank} is given up: {reason}"))
            self._shelf.fail(f"rank {rank} is given up: {reason}")

    async def _start(self, started: "asyncio.Future[None]") -> None:
        started.add_done_callback(_look_at_result)
        settings = self.settings
        # What the ranks import takes seconds, and so does torch here: at once, where the device is plain.
        early = surely_without_gpu(self.device)
        endpoint = await self._pool.open("cpu", settings.threads_per_rank) if early else None
        machine = await asyncio.to_thread(inspect_machine, self.device, settings)
        if endpoint is None:
            endpoint = await self._pool.open(machine.device, settings.threads_per_rank)
        self._rendezvous = await asyncio.to_thread(host_rendezvous)
        self.device, self.world_size = machine.device, machine.world_size
        heals_in_place = machine.device == "cpu"
        self._dispatcher = Dispatcher(self._store, settings.segment_timeout_s, heals_in_place, settings.slow_pass_s)
        self._pool.start(
            RankSpec(
                rank=0, world_size=machine.world_size, name="", endpoint=endpoint, store_port=self._rendezvous.port,
                device=machine.device, threads=settings.threads_per_rank, group_timeout_s=settings.group_timeout_s,
                start_timeout_s=settings.start_timeout_s, is_pinned=settings.pin_ranks,
                shares_memory=machine.has_core_per_thread,
            )
        )  # fmt: skip
        await started

    def _is_starting(self) -> bool:
        return self._started is not None and not self._started.done()

    def _running_dispatcher(self) -> Dispatcher:
        if self._dispatcher is None:
            raise RuntimeError("the executor has not been started")
        return self._dispatcher

    def _on_up(self, rank: int) -> None:
        self._up.add(rank)
        self._pool.mark_up(rank)
        if not self._is_starting():
            self._events.put_nowait(WorkerReady(rank))
        elif len(self._up) == self.world_size:
            self.reform_world()

    def _on_unfit(self, rank: int, reason: str) -> None:
        self._kill((rank,), reason)

    def _tell_pool(self) -> None:
        """What ranks that are born from now on hold."""
        models = self._shelf.models
        self._pool.set_models(models, sum(self._load_times_s.get(model.name, 0.0) for model in models))

    def _on_world_ready(self, rank: int, generation: int) -> None:
        if not self._forming.done(rank, generation):
            return
        everyone = tuple(range(self.world_size))
        for member in everyone:
            self._pool.mark_good(member)
        self._perform(self._running_dispatcher().world_formed(everyone))
        if self._started is not None and not self._started.done():
            self._started.set_result(None)
        else:
            self._events.put_nowait(WorldFormed(everyone))

    def _on_start_failed(self, rank: int, reason: str) -> None:
        if self._started is not None and not self._started.done():
            self._started.set_exception(ConfigurationError(f"rank {rank} could not start: {reason}"))
        else:
            _log.error("rank %d could not start: %s", rank, reason)

    def _perform(self, actions: list[Action]) -> None:
        """Do these in order, behind those that are being done: an action may lead to others."""
        self._actions.extend(actions)
        if self._is_performing:
            return
        self._is_performing = True
        try:
            while self._actions:
                self._do(self._actions.popleft())
        finally:
            self._is_performing = False

    def _do(self, action: Action) -> None:
        if isinstance(action, SendSegment):
            self._send_segment(action)
        elif isinstance(action, SendHeal):
            for rank in action.ranks:
                self._pool.send(rank, wire.HealGroup(action.ranks, action.number))
        elif isinstance(action, SendForget):
            for rank in range(self.world_size):
                self._pool.send(rank, wire.Forget(action.request_id))
        elif isinstance(action, KillRanks):
            self._kill(action.ranks, action.reason)
        else:
            self._events.put_nowait(action)

    def _send_segment(self, action: SendSegment) -> None:
        segment = action.command.segment
        for rank in segment.placement.ranks:
            tensors = action.tensors.get(rank, ())
            message = wire.Perform(action.command, tuple(t.header for t in tensors))
            try:
                self._pool.send(rank, message, tensors)
            except ValueError as error:
                # What cannot be written for one rank cannot for any: no rank has got it.
                failure = wire.PartFailed(segment.segment_id, f"it cannot be sent: {error}", "work", False)
                self._perform(self._running_dispatcher().part_failed(rank, failure, time.monotonic()))

    def _kill(self, ranks: Iterable[int], reason: str) -> None:
        _log.warning("killing ranks %s: %s", tuple(ranks), reason)
        for rank in ranks:
            self._pool.kill(rank)

    async def _watch_over(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_PERIOD_S)
            self._perform(self._running_dispatcher().overdue(time.monotonic()))
            if late := self._forming.overdue():
                limit_s = self.settings.form_timeout_s
                self._kill(sorted(late), f"their groups were not formed within {limit_s:g} s")


def _look_at_result(future: "asyncio.Future[Any]") -> None:
    """So that asyncio does not complain of a failure that a timeout overtook."""
    if not future.cancelled():
        future.exception()
