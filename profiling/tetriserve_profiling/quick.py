"""A latency table in seconds rather than minutes, for a server that has none."""

from collections.abc import Callable, Sequence

from tetriserve_backend.latency_table import LatencyTable
from tetriserve_profiling.bench import ProfiledExecutor
from tetriserve_profiling.conditions import Conditions
from tetriserve_profiling.facts import identity_of, modes_of
from tetriserve_profiling.profiler import Profiler
from tetriserve_profiling.record import Record
from tetriserve_profiling.schedule import list_work
from tetriserve_profiling.settings import ProfileSettings

_REPEATS, _BUDGET_S = 8, 0.7


async def measure_table(
    executor: ProfiledExecutor,
    resolutions: Sequence[tuple[int, int]],
    conditions: Conditions,
    on_progress: Callable[[str], None] | None = None,
    repeats: int = _REPEATS,
) -> LatencyTable:
    """Measure one step at each resolution and degree, an encode, and a decode at each resolution.

    Args:
        executor: started, and idle until this returns.
        resolutions: (height, width) in pixels.
        conditions: those under which the executor runs.
        on_progress: told of each thing measured, in words.
        repeats: samples of each entry; slow ones get fewer, but at least three.

    Raises:
        LatencyTableError: a shape cannot be measured, or the ranks run on different devices.
        ServerError: the executor has given up.
    """
    settings = ProfileSettings(resolutions=tuple(resolutions), repeats=repeats, warmup=2, rounds=1, budget_s=_BUDGET_S)
    work = list_work(settings, modes_of(executor))
    record = Record()
    identity = identity_of(executor, conditions.to_dict())
    tell = on_progress or (lambda _: None)
    profiler = Profiler(executor, settings, record, lambda progress: tell(progress.in_words()))
    try:
        await profiler.measure(work)
    finally:
        profiler.release()
    return LatencyTable.from_dict(record.document(identity, work), origin="measured")
