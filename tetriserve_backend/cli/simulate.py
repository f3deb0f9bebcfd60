"""`tetriserve simulate`: the server's engine and policies on a trace, in virtual time."""

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from tetriserve_backend.cli.simulation_table import SimulatedRun, show_runs
from tetriserve_backend.domain import ConfigurationError, Request, TetriserveError
from tetriserve_backend.engine.timeline import TimelineFile
from tetriserve_backend.executor.home import tetriserve_home
from tetriserve_backend.latency_table import LatencyTable, LatencyTables
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.simulator.bound import Bound, BoundCache, BoundSettings
from tetriserve_backend.simulator.run import SimulationSettings
from tetriserve_backend.simulator.run import simulate as run_simulation
from tetriserve_backend.simulator.sweep import table_with_dispatch
from tetriserve_backend.simulator.trace import read_trace
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
        ranks = gpus or max(table.world_size for table in tables)
        slow_ranks = dict(parse_slow_rank(text, ranks) for text in slow_rank or [])
        failures = tuple(parse_failure(text, ranks) for text in fail or [])
        labels = {**_sidecar_labels(trace), **dict(_parse_label(text) for text in label or [])}
        limit = None
        if bound or bound_without_batching:
            how = BoundSettings(batching=not bound_without_batching, time_limit_s=bound_time_limit)
            limit = BoundCache(tetriserve_home() / "bounds").bound(true_tables, _requests(trace), ranks, how)
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


def load_tables(given: Sequence[str], dispatch_s: float | None) -> LatencyTables:
    """The tables of `[NAME=]FILE` options; without a name it is that of the only model.

    Args:
        given: the options.
        dispatch_s: cost of sending a segment, instead of the tables'; None leaves it.

    Raises:
        ConfigurationError: several without a name, or one name twice.
        LatencyTableError: a file is missing or broken.
    """
    tables: dict[str, LatencyTable] = {}
    for text in given:
        name, separator, path = text.partition("=")
        name, path = (name, path) if separator and not Path(text).exists() else ("", text)
        if name in tables or (not name and len(given) > 1):
            raise ConfigurationError(
                f"--latency-table {text}: allowed: NAME=FILE, each name once, where there are several"
            )
        table = LatencyTable.load(path)
        tables[name] = table if dispatch_s is None else table_with_dispatch(table, dispatch_s)
    return LatencyTables(tables)


def parse_failure(text: str, gpus: int) -> RankFailure:
    """A `RANK@SECONDS[:RESPAWN_S]`.

    Raises:
        ConfigurationError: not of that form, or no such rank.
    """
    rank, _, times = text.partition("@")
    at, _, respawn = times.partition(":")
    try:
        failure = RankFailure(int(rank), float(at), float(respawn)) if respawn else RankFailure(int(rank), float(at))
    except ValueError:
        raise ConfigurationError(f"--fail {text}: allowed: RANK@SECONDS[:RESPAWN_S], such as 3@10.5:20") from None
    if not 0 <= failure.rank < gpus or failure.at_s < 0 or failure.respawn_s < 0:
        raise ConfigurationError(f"--fail {text}: allowed: ranks 0 to {gpus - 1}, seconds of at least 0")
    return failure


def parse_slow_rank(text: str, gpus: int) -> tuple[int, float]:
    """A `RANK=FACTOR`.

    Raises:
        ConfigurationError: not of that form, no such rank, or a factor that is not more than 0.
    """
    rank_text, _, factor_text = text.partition("=")
    try:
        rank, factor = int(rank_text), float(factor_text)
    except ValueError:
        raise ConfigurationError(f"--slow-rank {text}: allowed: RANK=FACTOR, such as 3=1.3") from None
    if not 0 <= rank < gpus or not 0.0 < factor < math.inf:
        raise ConfigurationError(f"--slow-rank {text}: allowed: ranks 0 to {gpus - 1}, factors of more than 0")
    return rank, factor


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
            _requests(trace),
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


def _requests(trace: Path) -> Iterator[Request]:
    return (line.to_request() for line in read_trace(trace))


def _name(path: Path | None, policy: str, several: bool) -> Path | None:
    """`x.policy.summary.json` for `x.summary.json` where several policies would write one file."""
    if path is None or not several:
        return path
    stem, dot, ending = path.name.partition(".")
    return path.with_name(f"{stem}.{policy.strip()}{dot}{ending}")


def _sidecar_labels(trace: Path) -> dict[str, Any]:
    """What `tetriserve workload` noted about the trace that it made."""
    sidecar = trace.with_name(trace.name.removesuffix(".jsonl").removesuffix(".trace") + ".workload.json")
    try:
        labels = json.loads(sidecar.read_text(encoding="utf-8"))["labels"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return labels if isinstance(labels, dict) else {}


def _parse_label(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigurationError(f"--label {text}: allowed: KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


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
