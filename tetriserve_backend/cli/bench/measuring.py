"""The latency tables of a live benchmark, measured by the executor that serves."""

import asyncio
from collections.abc import Callable

from tetriserve_backend.executor.model_executor import ModelExecutor
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.triton_adapter.settings import ServerSettings
from tetriserve_profiling.facts import identity_of, modes_of
from tetriserve_profiling.profiler import Profiler
from tetriserve_profiling.record import Record
from tetriserve_profiling.schedule import list_work
from tetriserve_profiling.settings import ProfileSettings


def measure(server: ServerSettings, profile: ProfileSettings, tell: Callable[[str], None]) -> LatencyTable:
    """Start the ranks, measure, and end them.

    The table has means for its seconds: requests wait for all of their steps, the slow ones too, and where a machine's
    speed wanders the median step is faster than the mean one.

    Args:
        server: model and executor of the server.
        profile: what to measure.
        tell: called with each thing measured, in words.

    Raises:
        TetriserveError: a rank could not start, or a measurement failed; nothing is left running.
    """
    return asyncio.run(_measure(server, profile, tell))


async def _measure(server: ServerSettings, profile: ProfileSettings, tell: Callable[[str], None]) -> LatencyTable:
    executor = ModelExecutor.alone(server.model, server.executor)
    await executor.start()
    try:
        work, record = list_work(profile, modes_of(executor)), Record()
        profiler = Profiler(executor, profile, record, lambda progress: tell(progress.in_words()))
        await profiler.measure(work)
        document = record.document(identity_of(executor, {}), work)
        for entry in (*document["step"], *document["encode"], *document["decode"]):
            entry["seconds"] = entry["mean_seconds"]
        return LatencyTable.from_dict(document, origin="measured")
    finally:
        await executor.shutdown()
