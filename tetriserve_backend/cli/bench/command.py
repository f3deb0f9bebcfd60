"""`tetriserve bench`: every policy on the same traces, live or simulated, and one table that compares them."""

import contextlib
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.status import Status

from tetriserve_backend.cli.bench.compare import live_sheets
from tetriserve_backend.cli.bench.evaluate import evaluate, read_served
from tetriserve_backend.cli.bench.live import LiveBench
from tetriserve_backend.cli.bench.measuring import measure_at_pace, measure_fastest, measure_free
from tetriserve_backend.cli.bench.results import BenchRun, ResultFolder, runs_of, write_whole
from tetriserve_backend.cli.bench.simulated import simulate_grid, simulated_sheets, write_traces_and_timelines
from tetriserve_backend.cli.bench.spec import BenchSpec, Where, read_spec
from tetriserve_backend.cli.bench.verdict import failures_of
from tetriserve_backend.cli.reporting.page import write_page
from tetriserve_backend.cli.reporting.pictures import best_first, summary_pictures, timeline_pictures
from tetriserve_backend.cli.timeline_view import TimelineView
from tetriserve_backend.domain import ConfigurationError, LatencyTableError, TetriserveError
from tetriserve_backend.executor.home import tetriserve_home
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.simulator.sweep import SweepSpec
from tetriserve_backend.simulator.trace import write_trace
from tetriserve_backend.simulator.workload import generate
from tetriserve_client import TetriserveClientError
from tetriserve_profiling.told import first_of

_EXIT_FAILED, _EXIT_WRONG_INPUT, _EXIT_INTERRUPTED = 1, 2, 130
_MOST_FAILURES = 5
_FAILURES = (TetriserveError, TetriserveClientError, BrokenProcessPool, OSError)
"""What may end a run of servers or simulations early."""


def bench(
    config: Annotated[Path, typer.Argument(help="YAML file: where, grid, server, …; see profiling/benchmarks.")],
    *,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for results; default: bench-output/NAME.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as grid.seeds=[1,2].")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away what an earlier run has done.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="Simulations to run at a time.")] = 2,
) -> None:
    """Run a benchmark, or go on with one that was interrupted, and compare its policies.

    Exit status: 0 done; 1 a server failed, or there is a live run without any image or with a timeline that is wrong;
    2 wrong options or files; 130 interrupted. What is done is compared in any case.
    """
    console = Console(width=None if sys.stdout.isatty() else 180)
    try:
        spec = read_spec(config, assignments or [])
        path = out or Path("bench-output") / config.stem
        folder = ResultFolder(path, table_is_given=spec.latency_table is not None)
        # What is wrong with it shows before a folder is made, or emptied.
        given = _given_table(spec)
        folder.claim(spec, fresh=fresh)
        if given is not None:
            given.save(folder.table)
        table = _measured_table(spec, folder, console) if given is None else given
        benchmark = _Benchmark(spec, spec.concrete(table), table, folder, console)
        benchmark.check_what_is_done()
        try:
            status = benchmark.run(processes)
        except _FAILURES:
            benchmark.report()
            raise
        failures = benchmark.report()
    except (ConfigurationError, LatencyTableError) as error:
        print(f"tetriserve: {error}", file=sys.stderr)
        raise typer.Exit(_EXIT_WRONG_INPUT) from error
    except _FAILURES as error:
        print(f"tetriserve: {error}", file=sys.stderr)
        raise typer.Exit(_EXIT_FAILED) from error
    except KeyboardInterrupt:
        raise typer.Exit(_EXIT_INTERRUPTED) from None
    for failure in first_of(failures, _MOST_FAILURES):
        print(f"tetriserve: {failure}", file=sys.stderr)
    raise typer.Exit(status or (_EXIT_FAILED if failures else 0))


def _given_table(spec: BenchSpec) -> LatencyTable | None:
    """The table that the benchmark names, if it names one; errors about it call it by that name."""
    if spec.latency_table is None:
        return None
    table = LatencyTable.load(spec.latency_table)
    spec.grid.check_table(table)
    return table


def _measured_table(spec: BenchSpec, folder: ResultFolder, console: Console) -> LatencyTable:
    """The table that was measured before, or is measured now."""
    if (factor := spec.hold_pace) is not None and not folder.pace_table.exists():
        with console.status("measuring the fastest moments") as line:
            tell = _teller(line, "measuring the fastest moments")
            fastest = measure_fastest(spec.unpaced_server(), spec.profile, tell, speed_up=spec.expect_speed_up)
        fastest.corrected(lambda work: factor).save(folder.pace_table)
    if not folder.table.exists():
        with console.status("measuring the latency table") as line:
            _measure(spec, folder, _teller(line, "measuring the latency table")).save(folder.table)
    return LatencyTable.load(folder.table)


def _measure(spec: BenchSpec, folder: ResultFolder, tell: Callable[[str], None]) -> LatencyTable:
    """The table that the servers plan with."""
    if spec.hold_pace is None:
        return measure_free(spec.unpaced_server(), spec.profile, tell, speed_up=spec.expect_speed_up)
    pace = LatencyTable.load(folder.pace_table)
    return measure_at_pace(spec.paced_server(folder.pace_table), spec.profile, pace, tell)


def _teller(line: Status, what: str) -> Callable[[str], None]:
    return lambda text: line.update(f"{what}: {text}")


@dataclass(frozen=True, slots=True)
class _Benchmark:
    """One benchmark with all that it needs; `grid` is concrete."""

    spec: BenchSpec
    grid: SweepSpec
    table: LatencyTable
    folder: ResultFolder
    console: Console

    def check_what_is_done(self) -> None:
        """Read what earlier runs left, so that a broken file is told before the others are run.

        Raises:
            ConfigurationError: names the file and the way out.
        """
        for run in runs_of(self.grid):
            if self.folder.is_done(run):
                self.folder.read_summary(run)
                if self.spec.where is Where.LIVE:
                    read_served(run, self.folder)

    def run(self, processes: int) -> int:
        """Do what is missing; the exit status."""
        runs = list(runs_of(self.grid))
        missing = [run for run in runs if not self.folder.is_done(run)]
        with _progress(self.console) as bar:
            task = bar.add_task("", total=len(runs), completed=len(runs) - len(missing))
            done: Generator[BenchRun, None, None]
            if self.spec.where is Where.LIVE:
                for run in missing:
                    write_trace(self.folder.trace(run), generate(run.workload))
                done = LiveBench(self.spec, self.folder, lambda text: bar.update(task, description=text)).serve(runs)
            else:
                bounds = tetriserve_home() / "bounds"
                done = simulate_grid(
                    self.grid, self.table, self.folder, missing, processes=processes, bound_cache=bounds
                )
            try:
                with contextlib.closing(done):
                    for _ in done:
                        bar.advance(task)
            except KeyboardInterrupt:
                self.console.print("interrupted: what is done stays, and the same command goes on from there")
                return _EXIT_INTERRUPTED
        return 0

    def report(self) -> Sequence[str]:
        """Compare what is done, in the terminal and in files; why runs are worth nothing, in words."""
        done = [run for run in runs_of(self.grid) if self.folder.is_done(run)]
        failures: Sequence[str] = ()
        if not done:
            return failures
        shown = [run for run in done if run.cell == done[-1].cell]
        if self.spec.where is Where.LIVE:
            results = evaluate(done, self.folder, self.table, self.grid.engine)
            sheets = live_sheets(results, self.table, self.spec.expect_speed_up)
            failures = tuple(failures_of(results))
            title = "Live serving"
        else:
            sheets = simulated_sheets(self.grid, self.folder)
            write_traces_and_timelines(self.grid, self.table, self.folder, shown)
            title = "Simulated serving"
        for sheet in sheets:
            self.console.print(sheet.to_rich())
            for note in sheet.notes:
                self.console.print(note, markup=False, highlight=False)
        write_whole(self.folder.path / "comparison.md", "\n".join(sheet.to_markdown() for sheet in sheets))
        for number, sheet in enumerate(sheets, 1):
            write_whole(self.folder.path / f"comparison.{number}.csv", sheet.to_csv())
        summaries = best_first([self.folder.read_summary(run) for run in done])
        views = {run.name: TimelineView.load(self.folder.timeline(run)) for run in shown}
        pictures = [*summary_pictures(summaries, self.folder.path), *timeline_pictures(views, self.folder.path)]
        write_page(self.folder.path / "report.html", summaries, pictures, title=title, tables=sheets)
        self.console.print(
            f"{self.folder.path}: summaries, traces, timelines, comparison.md, report.html",
            markup=False,
            highlight=False,
        )
        return failures


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        # The machine is the ranks'.
        refresh_per_second=1,
    )
