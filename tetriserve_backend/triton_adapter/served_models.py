"""The models that share the ranks of one engine: they come and go while the others serve."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tetriserve_backend.domain import TetriserveError
from tetriserve_backend.engine.async_engine import AsyncEngine
from tetriserve_backend.executor.home import tetriserve_home
from tetriserve_backend.executor.model_executor import ModelExecutor
from tetriserve_backend.executor.page_cache import read_ahead
from tetriserve_backend.executor.placements import usable_degrees
from tetriserve_backend.executor.worker_spec import ModelSpec
from tetriserve_backend.executor.xdit_executor import XditExecutor
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.triton_adapter.model_fit import resolution_check
from tetriserve_backend.triton_adapter.serving import ServedModel
from tetriserve_backend.triton_adapter.settings import ServedModelSettings, parse_resolution
from tetriserve_backend.triton_adapter.table_source import TableIdentity, resolve_table
from tetriserve_profiling.conditions import Conditions
from tetriserve_profiling.quick import measure_table
from tetriserve_profiling.settings import default_resolutions
from tetriserve_profiling.warm_up import warm_up

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Held:
    """A model, what was asked for, and who holds it; whoever asked last does."""

    spec: ModelSpec
    settings: ServedModelSettings
    holder: object
    served: ServedModel


class ServedModels(Mapping[str, ServedModel]):
    """Models by name. One is loaded or unloaded at a time, on the engine's loop.

    Loading wants the ranks: they stop between two segments, load, measure a latency table if there is none, and
    go on. What can be done before (finding the model, reading it into memory) is done while they serve.

    Args:
        engine: has been started.
        executor: its ranks.
        assets: folder of the latency tables that came with the server.
        check_table: raises `ServerError` for a table that the policy cannot work with.
        drain_timeout_s: how long requests may take to finish once their model is to be unloaded.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        executor: XditExecutor,
        assets: Path,
        check_table: Callable[[LatencyTable], None],
        drain_timeout_s: float,
    ) -> None:
        self._engine, self._executor, self._assets = engine, executor, assets
        self._check_table, self._drain_timeout_s = check_table, drain_timeout_s
        self._held: dict[str, _Held] = {}
        self._changing = asyncio.Lock()

    def __getitem__(self, name: str) -> ServedModel:
        return self._held[name].served

    def __iter__(self) -> Iterator[str]:
        # Not in the order in which they happened to come.
        return iter(sorted(self._held))

    def __len__(self) -> int:
        return len(self._held)

    async def load(self, settings: ServedModelSettings, holder: object) -> None:
        """Serve a model for `holder`. One that is served already goes over to it; if settings differ, it is replaced.

        Raises:
            TetriserveError: it cannot be loaded, or has no usable latency table; all others go on, also one of
                the same name.
        """
        name = settings.name
        async with self._changing:
            known = self._held.get(name)
            if known is not None and known.settings == settings:
                self._held[name] = replace(known, holder=holder)
                return
            _log.info("loading %s (%s)", name, settings.model.path)
            spec = await self._executor.find_model(name, settings.model)
            if self._held:
                await asyncio.to_thread(read_ahead, Path(spec.directory))
            if known is None:
                await self._add(spec, settings, holder)
                return
            await self._remove(name)
            try:
                await self._add(spec, settings, holder)
            except TetriserveError:
                # Triton keeps the old one too when a new one cannot be loaded.
                await self._add(known.spec, known.settings, known.holder)
                raise

    async def unload(self, name: str, holder: object) -> None:
        """Serve a model no more, once its running requests are done; does nothing if `holder` does not hold it."""
        async with self._changing:
            held = self._held.get(name)
            if held is not None and held.holder is holder:
                await self._remove(name)

    async def _add(self, spec: ModelSpec, settings: ServedModelSettings, holder: object) -> None:
        name = spec.name
        async with self._engine.at_rest() as next_event:
            model = ModelExecutor(self._executor, settings.model, await self._executor.load_model(spec), next_event)
            try:
                table = await self._table(settings, model)
                self._check_table(table)
                if settings.model.compile:
                    await warm_up(model, table.works, _log.info)
            except BaseException:
                await self._executor.unload_model(name)
                raise
            self._engine.add_model(name, table)
        check = resolution_check(table, settings.model.compile)
        self._held[name] = _Held(spec, settings, holder, ServedModel(_facts(name, model, table), check))
        _log.info("serving %s", name)

    async def _remove(self, name: str) -> None:
        _log.info("unloading %s", name)
        await self._engine.remove_model(name, self._drain_timeout_s)
        del self._held[name]
        await self._executor.unload_model(name)

    async def _table(self, settings: ServedModelSettings, model: ModelExecutor) -> LatencyTable:
        asked = tuple(parse_resolution(text) for text in settings.quick_resolutions or ())
        resolutions = asked or default_resolutions(model.device)
        conditions = Conditions.of(settings.model, self._executor.settings, model.device, model.dtype)
        identity = TableIdentity(
            model=model.model_name,
            directory=model.model_directory.name,
            device=model.device_name,
            world_size=model.world_size,
            dtype=model.dtype,
            text_tokens=model.facts.text_tokens,
            asked=asked,
            measured=resolutions,
            conditions=conditions,
        )
        table = await resolve_table(
            identity,
            Path(settings.latency_table) if settings.latency_table else None,
            self._assets,
            tetriserve_home() / "latency_tables",
            lambda: measure_table(model, resolutions, conditions, _log.info),
        )
        # Whatever the table was measured on: a degree that this model cannot run at must not be offered.
        degrees = usable_degrees(model.world_size, *model.facts.shared_counts.values())
        return table.restricted_to(degrees, model.world_size)


def _facts(name: str, model: ModelExecutor, table: LatencyTable) -> dict[str, object]:
    return {
        "model": name,
        "path": model.model_name,
        "model_directory": str(model.model_directory),
        "text_tokens": model.facts.text_tokens,
        "max_sequence_length": model.facts.max_sequence_length,
        "text_multiple": model.facts.text_multiple,
        "supports_negative_prompt": model.facts.supports_negative_prompt,
        "default_guidance_scale": model.facts.default_guidance_scale,
        "max_side": model.facts.max_side,
        "dtype": model.dtype,
        "resolutions": [f"{height}x{width}" for height, width in table.resolutions],
        # Whole, so that clients elsewhere can choose deadlines that make sense here.
        "latency_table": table.to_dict(),
    }
