"""One model of the ranks as if there were no other: what profiling and benchmarks work with."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tetriserve_backend.engine.commands import RunSegment
from tetriserve_backend.engine.executor_port import ExecutorEvent
from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.executor.model_facts import ModelFacts
from tetriserve_backend.executor.xdit_executor import LoadedModel, XditExecutor


class ModelExecutor:
    """Implements `engine.executor_port.Executor` for segments of one model, whatever name they carry.

    Attributes (but for the first two known once the model is loaded):
        ranks: they may hold other models too.
        model_name: the model as the settings name it; `model_directory` is where it was found.
        dtype, facts: of the loaded model.
        device, device_name, device_names, world_size, software: see `XditExecutor`.

    Args:
        ranks: started, if they hold the model already.
        model: as the settings tell it.
        loaded: the model, if the ranks hold it already.
        next_event: where events come from, if not from the ranks directly.
    """

    def __init__(
        self,
        ranks: XditExecutor,
        model: ModelSettings,
        loaded: LoadedModel | None = None,
        next_event: Callable[[], Awaitable[ExecutorEvent]] | None = None,
    ) -> None:
        self.ranks, self._model = ranks, model
        self._next_event = next_event or ranks.next_event
        self._name = ""
        self.model_name, self.model_directory = model.path, Path()
        self.device, self.device_name, self.dtype = "", "", ""
        self.device_names: dict[int, str] = {}
        self.software: dict[str, str] = {}
        self.world_size = 0
        self.facts = ModelFacts(0, 0, {}, supports_negative_prompt=False, default_guidance_scale=0.0)
        if loaded is not None:
            self._learn(loaded)

    @classmethod
    def alone(cls, model: ModelSettings, settings: ExecutorSettings) -> "ModelExecutor":
        """An executor of its own for one model; `start` starts the ranks and loads it."""
        return cls(XditExecutor(settings, model.device), model)

    async def start(self) -> None:
        """Start the ranks and load the model, unless that has been done.

        Raises:
            ServerError: a rank could not start or load it; nothing is left running.
        """
        await self.ranks.start()
        if not self._name:
            try:
                self._learn(await self.ranks.load_model(await self.ranks.find_model(self.model_name, self._model)))
            except BaseException:
                await self.ranks.shutdown()
                raise

    def run_segment(self, command: RunSegment) -> None:
        """Send a segment to its ranks; see `XditExecutor`."""
        self.ranks.run_segment(replace(command, segment=replace(command.segment, model=self._name)))

    def release(self, request_id: str) -> None:
        """Forget a request's tensors everywhere, once its sent segments are over; unsent ones fail."""
        self.ranks.release(request_id)

    def reform_world(self) -> None:
        """Build all groups anew; answered by `WorldFormed`. Only called with no segment in flight."""
        self.ranks.reform_world()

    def take_image(self, request_id: str) -> npt.NDArray[np.uint8]:
        """The decoded pixels, shape (height, width, 3), once; valid after its decode finished."""
        return self.ranks.take_image(request_id)

    async def next_event(self) -> ExecutorEvent:
        """The next thing that happened, in order; see `XditExecutor`."""
        return await self._next_event()

    async def shutdown(self) -> None:
        """End every rank; nothing of them is left. Idempotent."""
        await self.ranks.shutdown()

    def worker_pids(self) -> dict[int, int]:
        """Process ids of the living ranks."""
        return self.ranks.worker_pids()

    def _learn(self, loaded: LoadedModel) -> None:
        ranks = self.ranks
        self._name, self.model_directory = loaded.spec.name, Path(loaded.spec.directory)
        self.dtype, self.facts = loaded.spec.dtype, loaded.facts
        self.device, self.device_name, self.device_names = ranks.device, ranks.device_name, ranks.device_names
        self.world_size, self.software = ranks.world_size, ranks.software
