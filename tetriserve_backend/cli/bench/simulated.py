"""The simulator alone: for GPUs that are not there."""

from collections.abc import Generator, Sequence
from pathlib import Path

from tetriserve_backend.cli.bench.results import BenchRun, ResultFolder, runs_of
from tetriserve_backend.cli.reporting.sheet import Sheet
from tetriserve_backend.cli.sweep import cell_sheet, mean_sheet
from tetriserve_backend.engine.timeline import TimelineFile
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.simulator.run import simulate
from tetriserve_backend.simulator.sweep import CellResult, SweepSpec, run_sweep, table_with_dispatch
from tetriserve_backend.simulator.trace import read_trace, write_trace
from tetriserve_backend.simulator.workload import generate


def simulate_grid(
    grid: SweepSpec,
    table: LatencyTable,
    folder: ResultFolder,
    missing: Sequence[BenchRun],
    *,
    processes: int,
    bound_cache: Path,
) -> Generator[BenchRun, None, None]:
    """Do the cells of these runs, and yield each run when its summary is written.

    Args:
        grid: concrete.
        table: what work costs.
        folder: where the summaries go.
        missing: what is to be done.
        processes: how many cells to run at a time.
        bound_cache: folder that keeps bounds between runs.
    """
    numbers = sorted({run.cell for run in missing})
    cells = grid.cells()
    results = run_sweep(
        grid, table, processes=processes, bound_cache=bound_cache, cells=[cells[number] for number in numbers]
    )
    for number, result in zip(numbers, results, strict=True):
        for variant, summary in zip(grid.variants, result.summaries, strict=True):
            run = BenchRun(number, result.workload, variant)
            is_new = not folder.is_done(run)
            folder.write_summary(run, summary)
            if is_new:
                yield run


def simulated_sheets(grid: SweepSpec, folder: ResultFolder) -> list[Sheet]:
    """SLO attainment of every cell that is done by all policies, and the means."""
    by_cell: dict[int, list[BenchRun]] = {}
    for run in runs_of(grid):
        if folder.is_done(run):
            by_cell.setdefault(run.cell, []).append(run)
    whole = [
        CellResult(runs[0].workload, tuple(folder.read_summary(run) for run in runs))
        for _, runs in sorted(by_cell.items())
        if len(runs) == len(grid.variants)
    ]
    return [cell_sheet(whole), mean_sheet(whole)] if whole else []


def write_traces_and_timelines(
    grid: SweepSpec, table: LatencyTable, folder: ResultFolder, runs: Sequence[BenchRun]
) -> None:
    """The traces of these runs and the timelines, simulated once more; those of a whole grid would fill disks."""
    if grid.dispatch_seconds is not None:
        table = table_with_dispatch(table, grid.dispatch_seconds)
    for run in runs:
        write_trace(folder.trace(run), generate(run.workload))
        settings = grid.simulation(run.variant, run.workload, table)
        timeline = TimelineFile(folder.timeline(run))
        try:
            requests = (line.to_request() for line in read_trace(folder.trace(run)))
            simulate(table, requests, settings, timeline=timeline)
        finally:
            timeline.close()
