"""Simulated runs as tables for the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from tetriserve_backend.simulator.bound import Bound
from tetriserve_backend.simulator.summary import Summary


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """A summary, and the wall-clock seconds that the simulation took."""

    summary: Summary
    wall_s: float


def show_runs(runs: Sequence[SimulatedRun], limit: Bound | None) -> None:
    """Print one row per policy, the attainment of each resolution, and the bound."""
    console = Console()
    first = runs[0].summary
    console.print(_overview(runs, f"{first.requests} requests on {first.gpus} GPUs"))
    console.print(_resolutions(runs))
    if limit is not None:
        exact = "" if limit.optimal else f"; not solved to the end: the best schedule found serves {limit.found}"
        console.print(
            f"no policy serves more than {limit.on_time} of {limit.requests} in time "
            f"(SLO attainment {limit.slo_attainment:.4f}, found in {limit.solve_s:.1f} s{exact})",
            highlight=False,
        )


def _overview(runs: Sequence[SimulatedRun], title: str) -> Table:
    table = Table(title=title)
    table.add_column("policy", no_wrap=True)
    for heading in ("SLO met", "of bound", "mean s", "p50 s", "p99 s", "busy", "plan ms", "run s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in runs:
        summary = run.summary
        table.add_row(
            summary.policy,
            f"{summary.slo_attainment:.4f}",
            "" if not summary.bound else f"{summary.slo_attainment / summary.bound:.3f}",
            *(f"{summary.latency_s[key]:.2f}" for key in ("mean", "p50", "p99")),
            f"{summary.gpu_utilization:.0%}",
            f"{summary.decision_ms['p99']:.2f}",
            f"{run.wall_s:.2f}",
        )
    return table


def _resolutions(runs: Sequence[SimulatedRun]) -> Table:
    shapes = list(runs[0].summary.by_resolution)
    table = Table(title="SLO met, and mean degree of a step, by resolution")
    table.add_column("policy", no_wrap=True)
    for shape in shapes:
        table.add_column(shape, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(run.summary.policy, *(_share(run.summary, shape) for shape in shapes))
    return table


def _share(summary: Summary, shape: str) -> str:
    part = summary.by_resolution.get(shape)
    if part is None:
        return ""
    return f"{part.on_time / max(1, part.requests):.3f} ×{summary.mean_sp.get(shape, 0.0):.1f}"
