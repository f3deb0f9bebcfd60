"""`tetriserve simulate`: the server's engine and policies on a trace, in virtual time."""

import json
import sys
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from tetriserve_backend.cli.simulation_input import (
    check_trace,
    load_tables,
    parse_failure,
    parse_label,
    parse_slow_rank,
    read_requests,
    sidecar_labels,
)
from tetriserve_backend.cli.simulation_table import SimulatedRun, show_runs
from tetriserve_backend.domain import ConfigurationError, TetriserveError
from tetriserve_backend.engine.timeline import TimelineFile
from tetriserve_backend.executor.home import tetriserve_home
from tetriserve_backend.latency_table import LatencyTables
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.simulator.bound import Bound, BoundCache, BoundSettings
from tetriserve_backend.simulator.run import SimulationSettings
from tetriserve_backend.simulator.run import simulate as run_simulation
from tetriserve_backend.simulator.virtual_world import RankFailure
from tetriserve_backend.triton_adapter.settings import ServerSettings
from tetriserve_backend.triton_adapter.settings_sources import (
    build_settings,
    merge,
    parse_assignment,
    read_settings_file,
)

_EXIT_WRONG_INPUT = 2


class Output(str, Enum):
    """What goes to standard output: AUTO is a table on a terminal and JSON elsewhere."""

    AUTO = "auto"
    TABLE = "table"
    JSON = "json"


def simulate(
    *,
    trace: Annotated[Path, typer.Option(help="Requests to serve (*.trace.jsonl).")],
    latency_table: Annotated[
        list[str],
        typer.Option(metavar="[NAME=]FILE", help="What work costs (*.latency.json); one for each model of the trace."),
    ],
    policy: Annotated[str | None, typer.Option(help="One or several names, with commas between.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Ranks; default: the latency table's.")] = None,
    timeline: Annotated[Path | None, typer.Option(help="Write a Chrome trace of all work here.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Write the summary here.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings, as for serve.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as engine.lead_s=0.05.")
    ] = None,
    noise_cv: Annotated[float, typer.Option(min=0, help="Coefficient of variation of step times.")] = 0.0,
    noise_seed: Annotated[int, typer.Option(help="Seed of that noise.")] = 0,
    true_latency_table: Annotated[
        Path | None, typer.Option(help="What work really costs, where the other table is stale; default: the same.")
    ] = None,
    slow_rank: Annotated[
        list[str] | None, typer.Option(metavar="RANK=FACTOR", help="On this rank work takes so many times as long.")
    ] = None,
    dispatch_seconds: Annotated[
        float | None, typer.Option(min=0, help="Cost of sending a segment; default: the latency table's.")
    ] = None,
    fail: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RANK@SECONDS[:RESPAWN_S]", help="A rank dies, and is back after RESPAWN_S [5]; inf: never."
        ),
    ] = None,
    bound: Annotated[bool, typer.Option("--bound", help="Also compute what no policy can beat.")] = False,
    bound_without_batching: Annotated[
        bool, typer.Option("--bound-without-batching", help="The bound for policies that never batch.")
    ] = False,
    bound_time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds for the bound.")] = 60.0,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A note for the summary, such as slo_scale=1.2.")
    ] = None,
    output: Annotated[Output, typer.Option(help="What to print.")] = Output.AUTO,
) -> None:
    """Serve a trace in virtual time by the engine and the policies that serve live.

    With several policies, each file is written once per policy, with its name before the ending.

    Exit status: 0 done; 2 wrong options, settings, table or trace.
    """
    try:
        layers = [read_settings_file(config)] if config else []
        settings = build_settings(merge([*layers, *(parse_assignment(text) for text in assignments or [])]))
        tables = load_tables(latency_table, dispatch_seconds)
        true_tables = tables
        if true_latency_table is not None:
            if len(tables.models) > 1:
                raise ConfigurationError("--true-latency-table: allowed: where there is one --latency-table")
            true_tables = load_tables([f"{tables.models[0]}={true_latency_table}"], dispatch_seconds)
        check_trace(trace, (tables, true_tables))
        ranks = gpus or max(table.world_size for table in tables)
        slow_ranks = dict(parse_slow_rank(text, ranks) for text in slow_rank or [])
        failures = tuple(parse_failure(text, ranks) for text in fail or [])
        labels = {**sidecar_labels(trace), **dict(parse_label(text) for text in label or [])}
        limit = None
        if bound or bound_without_batching:
            how = BoundSettings(batching=not bound_without_batching, time_limit_s=bound_time_limit)
            limit = BoundCache(tetriserve_home() / "bounds").bound(
                true_tables, read_requests(trace, (tables, true_tables)), ranks, how
            )
        names = policy.split(",") if policy else [settings.scheduler.policy]
        runs = []
        for name in names:
            world = _world(
                settings=settings,
                policy=name.strip(),
                gpus=ranks,
                noise_cv=noise_cv,
                noise_seed=noise_seed,
                failures=failures,
                slow_ranks=slow_ranks,
            )
            several = len(names) > 1
            run = _run(
                tables=(tables, true_tables),
                trace=trace,
                world=world,
                timeline=_name(timeline, name, several),
                limit=limit,
                labels=labels,
            )
            _write_summary(_name(summary, name, several), run)
            runs.append(run)
    except TetriserveError as error:
        print(f"tetriserve: {error}", file=sys.stderr)
        raise typer.Exit(_EXIT_WRONG_INPUT) from error
    _print(runs, limit, output)


def _world(
    *,
    settings: ServerSettings,
    policy: str,
    gpus: int,
    noise_cv: float,
    noise_seed: int,
    failures: tuple[RankFailure, ...],
    slow_ranks: dict[int, float],
) -> SimulationSettings:
    scheduler = settings.scheduler.model_copy(update={"policy": policy})
    return SimulationSettings(gpus, scheduler, settings.engine, noise_cv, noise_seed, failures, slow_ranks=slow_ranks)


def _run(
    *,
    tables: tuple[LatencyTables, LatencyTables],
    trace: Path,
    world: SimulationSettings,
    timeline: Path | None,
    limit: Bound | None,
    labels: dict[str, Any],
) -> SimulatedRun:
    # The first policy of its kind loads its compiled code, which is no part of what a trace takes.
    make_policy(world.scheduler, tables[0], world.gpus)
    writer = TimelineFile(timeline) if timeline else None
    started_s = time.perf_counter()
    try:
        on_time = limit.on_time if limit else None
        result = run_simulation(
            tables[0],
            read_requests(trace, tables),
            world,
            true_table=tables[1],
            timeline=writer,
            bound_on_time=on_time,
            labels=labels,
        )
    finally:
        if writer is not None:
            writer.close()
    return SimulatedRun(result, time.perf_counter() - started_s)


def _name(path: Path | None, policy: str, several: bool) -> Path | None:
    """`x.policy.summary.json` for `x.summary.json` where several policies would write one file."""
    if path is None or not several:
        return path
    stem, dot, ending = path.name.partition(".")
    return path.with_name(f"{stem}.{policy.strip()}{dot}{ending}")


def _write_summary(path: Path | None, run: SimulatedRun) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run.summary.to_dict(), indent=1) + "\n", encoding="utf-8")


def _print(runs: Sequence[SimulatedRun], limit: Bound | None, output: Output) -> None:
    if output is Output.TABLE or (output is Output.AUTO and sys.stdout.isatty()):
        show_runs(runs, limit)
        return
    documents = [run.summary.to_dict() for run in runs]
    for document in documents:
        del document["latency_cdf_s"]
    print(json.dumps(documents[0] if len(documents) == 1 else documents, indent=1))
