"""`tetriserve sweep`: a grid of workloads, each served by several policies beside the bound."""

import json
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated

import typer
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.progress import track

from tetriserve_backend.cli.output_file import refuse_unwritable_folder
from tetriserve_backend.cli.reporting.sheet import Sheet
from tetriserve_backend.cli.summary_files import BENCHMARK_NOTE
from tetriserve_backend.domain import ConfigurationError, TetriserveError
from tetriserve_backend.domain.validation import explained
from tetriserve_backend.executor.home import tetriserve_home
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.simulator.bound import BoundError
from tetriserve_backend.simulator.summary import Summary
from tetriserve_backend.simulator.sweep import CellResult, SweepSpec, run_sweep

_EXIT_WRONG_INPUT, _EXIT_FAILED, _EXIT_INTERRUPTED = 2, 3, 130


def sweep(
    *,
    config: Annotated[Path, typer.Option(help="YAML file: policies, mixes, slo_scales, rates_per_minute, seeds, …")],
    latency_table: Annotated[Path, typer.Option(help="What work costs (*.latency.json).")],
    policy: Annotated[str | None, typer.Option(help="Names, with commas between, instead of the file's.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Numbers, with commas between, instead of the file's.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Cells to run at a time.")] = 2,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for the summaries.")] = None,
) -> None:
    """Run a grid and print the SLO attainment of every cell beside the bound.

    Whatever ends it early, the cells that are done are shown; their summaries have been written.

    Exit status: 0 done; 2 wrong options or files; 3 a process that ran cells died, or the bound's solver failed;
    130 interrupted.
    """
    try:
        spec, table = _read(config, policy, seeds), LatencyTable.load(latency_table)
        if out is not None:
            refuse_unwritable_folder(out, f"--out {out}")
            _refuse_benchmark(out)
        results, status = _run(spec, table, processes, out)
    except TetriserveError as error:
        print(f"tetriserve: {error}", file=sys.stderr)
        raise typer.Exit(_EXIT_WRONG_INPUT) from error
    if results:
        show(results, Console(width=None if sys.stdout.isatty() else 160))
    if status:
        print(f"tetriserve: {len(results)} of {len(spec.cells())} cells are done", file=sys.stderr)
        raise typer.Exit(status)


def _refuse_benchmark(folder: Path) -> None:
    """The summaries of a sweep are named as those of a benchmark, which would take them for its own."""
    if (folder / BENCHMARK_NOTE).exists():
        raise ConfigurationError(
            f"--out {folder}: holds the results of a benchmark ({BENCHMARK_NOTE}), which those of a sweep would mix"
            " with; use another folder"
        )


def _run(spec: SweepSpec, table: LatencyTable, processes: int, out: Path | None) -> tuple[list[CellResult], int]:
    """The cells that were done, each written as it ended, and the exit status."""
    results: list[CellResult] = []
    run = run_sweep(spec, table, processes=processes, bound_cache=tetriserve_home() / "bounds")
    console = Console(stderr=True)
    try:
        for result in track(run, total=len(spec.cells()), description="cells", console=console, transient=True):
            if out is not None:
                write_summaries(len(results), result, out)
            results.append(result)
    except KeyboardInterrupt:
        print("tetriserve: interrupted", file=sys.stderr)
        return results, _EXIT_INTERRUPTED
    except (BrokenProcessPool, BoundError) as error:
        print(f"tetriserve: {error}", file=sys.stderr)
        return results, _EXIT_FAILED
    except OSError as error:
        print(f"tetriserve: {error}", file=sys.stderr)
        return results, _EXIT_WRONG_INPUT
    return results, 0


def write_summaries(number: int, result: CellResult, folder: Path) -> None:
    """The summaries of a cell, one per policy."""
    folder.mkdir(parents=True, exist_ok=True)
    for summary in result.summaries:
        text = json.dumps(summary.to_dict(), indent=1) + "\n"
        (folder / f"c{number:03d}.{summary.policy}.summary.json").write_text(text, encoding="utf-8")


def show(results: Sequence[CellResult], console: Console) -> None:
    """Print every cell, and the means."""
    console.print(cell_sheet(results).to_rich())
    console.print(mean_sheet(results).to_rich())


def cell_sheet(results: Sequence[CellResult]) -> Sheet:
    """A row per workload, its seeds averaged; a column per policy."""
    rows: dict[tuple[str, str, str], list[CellResult]] = {}
    for result in results:
        labels = result.workload.labels()
        scales = "/".join(f"{scale:g}" for scale in result.workload.slo_scales)
        key = (str(labels["mix"]), scales, f"{labels['rate_per_minute']:g}")
        rows.setdefault(key, []).append(result)
    seeds = len({result.workload.seed for result in results})
    body = tuple((*key, *_figures(group)) for key, group in rows.items())
    keys = ("mix", "SLO scale", "per minute")
    return Sheet(f"SLO attainment, mean of {seeds} seed(s)", _headings(keys, results), body)


def mean_sheet(results: Sequence[CellResult]) -> Sheet:
    """Means over the grid: per rate, over all cells, as a share of the mean bound, and per busy GPU-second."""
    rows: list[tuple[str, ...]] = []
    for rate in sorted({result.workload.rate_per_minute for result in results}):
        rows.append((f"{rate:g}", *_figures([r for r in results if r.workload.rate_per_minute == rate])))
    rows.append(("all", *_figures(results)))
    bound = _mean_bound(results)
    if bound:
        columns = zip(*(result.summaries for result in results), strict=True)
        rows.append(("of bound", "", *(f"{_mean(column) / bound:.3f}" for column in columns)))
    columns = zip(*(result.summaries for result in results), strict=True)
    rows.append(("on time per GPU-second", "", *(f"{_on_time_per_gpu_second(column):.4f}" for column in columns)))
    return Sheet("means over the grid", _headings(("per minute",), results), tuple(rows))


def _headings(keys: Sequence[str], results: Sequence[CellResult]) -> tuple[str, ...]:
    return (*keys, "bound", *(summary.policy for summary in results[0].summaries))


def _figures(results: Sequence[CellResult]) -> list[str]:
    bound = _mean_bound(results)
    columns = list(zip(*(result.summaries for result in results), strict=True))
    return ["" if bound is None else f"{bound:.3f}", *(f"{_mean(column):.3f}" for column in columns)]


def _mean(summaries: Sequence[Summary]) -> float:
    return sum(summary.slo_attainment for summary in summaries) / len(summaries)


def _on_time_per_gpu_second(summaries: Sequence[Summary]) -> float:
    busy_gpu_s = sum(summary.gpu_utilization * summary.gpus * summary.makespan_s for summary in summaries)
    return sum(summary.on_time for summary in summaries) / busy_gpu_s if busy_gpu_s else 0.0


def _mean_bound(results: Sequence[CellResult]) -> float | None:
    bounds = [result.summaries[0].bound for result in results]
    known = [bound for bound in bounds if bound is not None]
    return sum(known) / len(known) if len(known) == len(bounds) else None


def _read(config: Path, policy: str | None, seeds: str | None) -> SweepSpec:
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
        if policy is not None:
            values["policies"] = policy.split(",")
        if seeds is not None:
            values["seeds"] = [int(seed) for seed in seeds.split(",")]
        return SweepSpec.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(f"{config}: {explained(error.errors(include_url=False)[0])}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{config}: expected a mapping of a sweep's settings: {error}") from error
