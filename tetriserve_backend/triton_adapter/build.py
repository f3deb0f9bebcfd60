"""Composition root of `denoise`: executor, latency table, policy, engine."""

import logging
from pathlib import Path

from tetriserve_backend.engine.async_engine import AsyncEngine
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.engine.timeline import TimelineFile
from tetriserve_backend.executor.home import tetriserve_home
from tetriserve_backend.executor.placements import usable_degrees
from tetriserve_backend.executor.xdit_executor import XditExecutor
from tetriserve_backend.latency_table import LatencyTable, LatencyTables
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.triton_adapter.serving import Serving
from tetriserve_backend.triton_adapter.settings import ServerSettings, parse_resolution
from tetriserve_backend.triton_adapter.table_source import TableIdentity, resolve_table
from tetriserve_profiling.quick import measure_table
from tetriserve_profiling.warm_up import warm_up

_log = logging.getLogger(__name__)
_CPU_RESOLUTIONS = ((256, 256), (512, 512), (768, 768), (1024, 1024))
_CUDA_RESOLUTIONS = ((256, 256), (512, 512), (1024, 1024), (2048, 2048))


async def build_serving(settings: ServerSettings, assets: Path) -> Serving:
    """Start the ranks, get a latency table and start the engine.

    Raises:
        TetriserveError: the configuration is wrong or a rank could not start; nothing is left running.
    """
    executor = XditExecutor(settings.model, settings.executor)
    _log.info("starting the ranks and loading %s", settings.model.path)
    await executor.start()
    try:
        table = await _table(settings, assets, executor)
        if settings.model.compile:
            await warm_up(executor, table.works, _log.info)
        tables = LatencyTables({executor.model_name: table})
        policy = make_policy(settings.scheduler, tables, executor.world_size)
        core = EngineCore(policy, tables, executor.world_size, settings.engine)
        timeline = TimelineFile(Path(settings.timeline)) if settings.timeline else None
        engine = AsyncEngine(core, executor, timeline)
        await engine.start()
    except BaseException:
        await executor.shutdown()
        raise
    facts: dict[str, object] = {
        "model": executor.model_name,
        "model_directory": str(executor.model_directory),
        "text_tokens": executor.facts.text_tokens,
        "max_sequence_length": executor.facts.max_sequence_length,
        "supports_negative_prompt": executor.facts.supports_negative_prompt,
        "default_guidance_scale": executor.facts.default_guidance_scale,
        "max_side": executor.facts.max_side,
        "device": executor.device_name,
        "dtype": executor.dtype,
        "world_size": executor.world_size,
        "policy": policy.name,
        "resolutions": [f"{height}x{width}" for height, width in table.resolutions],
        # Whole, so that clients elsewhere can choose deadlines that make sense here.
        "latency_table": table.to_dict(),
    }
    _log.info("serving %s on %d ranks with policy %s", executor.model_name, executor.world_size, policy.name)
    return Serving(engine, table.check_resolution, facts)


async def _table(settings: ServerSettings, assets: Path, executor: XditExecutor) -> LatencyTable:
    asked = tuple(parse_resolution(text) for text in settings.quick_resolutions or ())
    resolutions = asked or (_CPU_RESOLUTIONS if executor.device == "cpu" else _CUDA_RESOLUTIONS)
    identity = TableIdentity(
        model=executor.model_name,
        directory=executor.model_directory.name,
        device=executor.device_name,
        world_size=executor.world_size,
        dtype=executor.dtype,
        text_tokens=executor.facts.text_tokens,
        asked=asked,
        measured=resolutions,
        compiled=settings.model.compile,
    )
    table = await resolve_table(
        identity,
        Path(settings.latency_table) if settings.latency_table else None,
        assets,
        tetriserve_home() / "latency_tables",
        lambda: measure_table(executor, resolutions, _log.info),
    )
    # Whatever the table was measured on: a degree that this model cannot run at must not be offered.
    return table.restricted_to(usable_degrees(executor.world_size, *executor.facts.shared_counts.values()))
