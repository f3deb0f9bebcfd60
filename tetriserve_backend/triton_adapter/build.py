"""Composition root of `denoise`: executor, policy, engine, and the desk at which models are ordered."""

import logging
from pathlib import Path

from tetriserve_backend.engine.async_engine import AsyncEngine
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.engine.timeline import TimelineFile
from tetriserve_backend.executor.xdit_executor import XditExecutor
from tetriserve_backend.latency_table import LatencyTable, LatencyTables
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.triton_adapter.model_desk import ModelDesk
from tetriserve_backend.triton_adapter.served_models import ServedModels
from tetriserve_backend.triton_adapter.serving import Serving
from tetriserve_backend.triton_adapter.settings import ServerSettings

_log = logging.getLogger(__name__)


async def build_serving(settings: ServerSettings, assets: Path, socket_path: Path) -> Serving:
    """Start the ranks and the engine, which serve nothing until a model is ordered.

    Args:
        settings: of the server.
        assets: folder of the latency tables that came with it.
        socket_path: where models are ordered.

    Raises:
        TetriserveError: the configuration is wrong or a rank could not start; nothing is left running.
    """
    desk = ModelDesk(socket_path)
    executor = XditExecutor(settings.executor, settings.model.device)
    try:
        await desk.open()
        _log.info("starting the ranks")
        await executor.start()
        world_size = executor.world_size
        tables = LatencyTables({})
        policy = make_policy(settings.scheduler, tables, world_size)
        core = EngineCore(policy, tables, world_size, settings.engine)
        timeline = TimelineFile(Path(settings.timeline)) if settings.timeline else None
        engine = AsyncEngine(core, executor, timeline)
        await engine.start()
    except BaseException:
        await desk.close()
        await executor.shutdown()
        raise

    def check_table(table: LatencyTable) -> None:
        make_policy(settings.scheduler, table, world_size)

    models = ServedModels(engine, executor, assets, check_table, settings.engine.drain_timeout_s)
    desk.serve(models)
    facts: dict[str, object] = {"device": executor.device_name, "world_size": world_size, "policy": policy.name}
    _log.info("%d ranks are ready, policy %s", world_size, policy.name)
    return Serving(engine, models, facts, desk.close)
