"""The latency tables of a live benchmark, measured by the executor that serves."""

import asyncio
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from tetriserve_backend.cli.bench.keeping_pace import behind_pace
from tetriserve_backend.domain import ServerError
from tetriserve_backend.executor.model_executor import ModelExecutor
from tetriserve_backend.latency_table import LatencyTable, Work
from tetriserve_backend.triton_adapter.settings import ServerSettings
from tetriserve_profiling.conditions import Conditions
from tetriserve_profiling.facts import identity_of, modes_of
from tetriserve_profiling.hand_over import MoveCost
from tetriserve_profiling.profiler import Profiler
from tetriserve_profiling.record import Record
from tetriserve_profiling.schedule import list_work
from tetriserve_profiling.settings import ProfileSettings

_MOVES = 6
"""Samples of each hand-over: a few milliseconds beside steps of hundreds."""
_TRIES = 3
"""Measurements of a table in all, if the ranks cannot keep their pace or gain nothing together meanwhile."""


def measure(
    server: ServerSettings,
    profile: ProfileSettings,
    tell: Callable[[str], None],
    *,
    choose: Callable[[Sequence[float]], float] = statistics.fmean,
    with_moves: bool = False,
) -> LatencyTable:
    """Start the ranks, measure, and end them.

    Args:
        server: model and executor of the server.
        profile: what to measure.
        tell: called with each thing measured, in words.
        choose: what the table has of the samples of an entry. The mean: requests wait for all of their steps, the slow
            ones too, and where a machine's speed wanders the median step is faster than the mean one.
        with_moves: also measure what it costs to move a latent between placements.

    Raises:
        TetriserveError: a rank could not start, or a measurement failed; nothing is left running.
    """
    record, document = asyncio.run(_measure(server, profile, tell, with_moves=with_moves))
    medians = LatencyTable.from_dict(document, origin="measured")
    return medians.corrected(lambda work: choose(record.samples(work)) / medians.seconds(work))


def measure_fastest(
    server: ServerSettings, profile: ProfileSettings, tell: Callable[[str], None], *, speed_up: float | None
) -> LatencyTable:
    """The fastest moment of everything, measured again where ranks together were never quick meanwhile.

    Args:
        server: as in `measure`.
        profile: what to measure.
        tell: as in `measure`.
        speed_up: of the largest resolution at its fastest degree, over one rank; None takes what comes.

    Raises:
        TetriserveError: as in `measure`.
    """
    return _until_quick(lambda: measure(server, profile, tell, choose=min), speed_up, tell, join=_fastest_of)


def measure_free(
    server: ServerSettings, profile: ProfileSettings, tell: Callable[[str], None], *, speed_up: float | None
) -> LatencyTable:
    """The table of ranks that hold no pace, with moves; measured again where ranks together were not quick meanwhile.

    Of several tables it is the one in which they gained the most.

    Args:
        server: as in `measure`.
        profile: what to measure.
        tell: as in `measure`.
        speed_up: as in `measure_fastest`.

    Raises:
        TetriserveError: as in `measure`.
    """
    return _until_quick(lambda: measure(server, profile, tell, with_moves=True), speed_up, tell, join=_quickest_of)


def _until_quick(
    measure_once: Callable[[], LatencyTable],
    speed_up: float | None,
    tell: Callable[[str], None],
    *,
    join: Callable[[LatencyTable, LatencyTable], LatencyTable],
) -> LatencyTable:
    """Tables joined to one until ranks gain as much together as is expected, if anything is."""
    table = measure_once()
    for _ in range(_TRIES - 1):
        found = _gain(table)
        if speed_up is None or found >= speed_up:
            break
        tell(f"again: ranks together were {found:.2f} times as fast as one, less than the {speed_up:g} expected")
        table = join(table, measure_once())
    return table


def _fastest_of(table: LatencyTable, other: LatencyTable) -> LatencyTable:
    """The faster of both in each entry."""
    return table.corrected(lambda work: min(1.0, other.seconds(work) / table.seconds(work)))


def _quickest_of(table: LatencyTable, other: LatencyTable) -> LatencyTable:
    return max(table, other, key=_gain)


def _gain(table: LatencyTable) -> float:
    """How much faster ranks are together than alone, at the largest resolution."""
    return table.speed_up(*table.resolutions[-1])


def measure_at_pace(
    server: ServerSettings, profile: ProfileSettings, pace: LatencyTable, tell: Callable[[str], None]
) -> LatencyTable:
    """The table of ranks that hold a pace, with moves; measured again if they could not keep to it.

    It has the medians: what comes in between now and then is not theirs.

    Args:
        server: as in `measure`, with `pace` in its settings.
        profile: what to measure.
        pace: how long the ranks should take.
        tell: as in `measure`.

    Raises:
        ServerError: the machine never left the ranks the time that they need.
        TetriserveError: as in `measure`.
    """
    behind: Sequence[str] = ()
    for _ in range(_TRIES):
        table = measure(server, profile, tell, choose=statistics.median, with_moves=True)
        behind = behind_pace(table, pace)
        if not behind:
            return table
        tell(f"again: the ranks could not hold their pace in {len(behind)} entries")
    raise ServerError(
        f"{_TRIES} times the ranks could not hold their pace, last in {'; '.join(behind)}: "
        "end what else runs on this machine, or choose a larger hold_pace"
    )


async def _measure(
    server: ServerSettings, profile: ProfileSettings, tell: Callable[[str], None], *, with_moves: bool
) -> tuple[Record, dict[str, Any]]:
    executor = ModelExecutor.alone(server.model, server.executor)
    await executor.start()
    try:
        conditions = Conditions.of(server.model, server.executor, executor.device, executor.dtype)
        work, record = list_work(profile, modes_of(executor)), Record()
        profiler = Profiler(executor, profile, record, lambda progress: tell(progress.in_words()))
        await profiler.measure(work)
        moves = await _measure_moves(executor, profile, record, work, tell) if with_moves else ()
        return record, record.document(identity_of(executor, conditions.to_dict()), work, moves)
    finally:
        await executor.shutdown()


async def _measure_moves(
    executor: ModelExecutor, profile: ProfileSettings, record: Record, work: Sequence[Work], tell: Callable[[str], None]
) -> list[MoveCost]:
    few = profile.model_copy(update={"repeats": min(_MOVES, profile.repeats)})
    profiler = Profiler(executor, few, record, lambda progress: tell(progress.in_words()))
    return await profiler.measure_moves(work)
