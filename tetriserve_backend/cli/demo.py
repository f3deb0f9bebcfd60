"""`tetriserve demo`: a real server, a mixed load, and the schedule as a picture."""

import asyncio
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tetriserve_backend.cli.demo_load import DemoLoad
from tetriserve_backend.cli.drawing import draw_schedule
from tetriserve_backend.cli.report import Outcome, outcome_table
from tetriserve_backend.cli.timeline_view import TimelineView
from tetriserve_backend.cli.workload import LoadShape, plan_workload, write_trace
from tetriserve_backend.domain import LatencyTableError
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_client import ServerFailureError, TetriserveClient
from tetriserve_client.local_server import LocalServer

_MIN_REQUESTS = 12
_EXIT_FAILED, _EXIT_INTERRUPTED = 1, 130


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for images, trace, timeline and picture.")] = Path("demo-output"),
    requests: Annotated[int, typer.Option(min=_MIN_REQUESTS, help="How many images to ask for.")] = _MIN_REQUESTS,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps of each; default: what fits a few seconds, at most 20.")
    ] = None,
    load: Annotated[float, typer.Option(min=0.05, help="Part of the GPUs' time that the load fills.")] = 0.7,
    seed: Annotated[int, typer.Option(help="Seed of arrivals, sizes and deadlines.")] = 0,
    policy: Annotated[str | None, typer.Option(help="Scheduling policy; default: tetris.")] = None,
    world_size: Annotated[int | None, typer.Option(help="Ranks; default 2 on CPU, all GPUs on CUDA.")] = None,
    model: Annotated[str | None, typer.Option(help="demo-flux, a diffusers folder, or a hub id.")] = None,
) -> None:
    """Start a server, send it a mixed load, and show how each request met its deadline.

    Exit status: 0 every image arrived; 1 one did not, or the server failed; 130 interrupted.
    """
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    shape = LoadShape(num_requests=requests, num_steps=steps, utilization=load, seed=seed)
    chosen = {"--policy": policy, "--world-size": world_size, "--model": model}
    options = [text for name, value in chosen.items() if value is not None for text in (name, str(value))]
    try:
        outcomes = run_demo(out, shape, options, console)
    except (ServerFailureError, LatencyTableError) as error:
        console.print(f"error: {error}", markup=False, highlight=False)
        raise typer.Exit(_EXIT_FAILED) from error
    except KeyboardInterrupt:
        console.print("interrupted: the server is stopped")
        raise typer.Exit(_EXIT_INTERRUPTED) from None
    if any(outcome.result is None or outcome.error for outcome in outcomes):
        raise typer.Exit(_EXIT_FAILED)


def run_demo(out: Path, shape: LoadShape, options: list[str], console: Console) -> list[Outcome]:
    """The whole demo; `options` go to `tetriserve serve`.

    Raises:
        ServerFailureError: the server did not start, or did not stop cleanly.
        LatencyTableError: the server's latency table cannot be read.
    """
    timeline_path = out / "demo.timeline.json"
    started_s = time.monotonic()
    with console.status("starting the server") as status:
        server = LocalServer(
            out / "server.log",
            ["--timeline", str(timeline_path), *options],
            on_wait=lambda line: status.update(f"starting the server: [dim]{line[:100]}[/dim]"),
        )
        server.start()
    try:
        facts = TetriserveClient(server.grpc_url).status()
        console.print(
            f"server ready after {time.monotonic() - started_s:.1f} s: {describe_server(facts)}", markup=False
        )
        (model,) = facts["models"].values()
        table = LatencyTable.from_dict(model["latency_table"], origin="the server's status")
        table.save(out / "demo.latency.json")
        planned = plan_workload(table, int(facts["world_size"]), shape)
        write_trace(planned, out / "demo.trace.jsonl")
        outcomes = asyncio.run(DemoLoad(planned, server.grpc_url, server.http_url, out, console).run())
    finally:
        exit_status = server.stop()
    if exit_status != 0:
        raise ServerFailureError(f"the server ended with status {exit_status}; see {out / 'server.log'}")
    picture = out / "demo.schedule.png"
    draw_schedule(TimelineView.load(timeline_path), picture, title=f"{facts['policy']} on {facts['world_size']} ranks")
    console.print(outcome_table(outcomes))
    console.print(
        f"images, trace, timeline and server log are in {out}/; the schedule is drawn in {picture}", markup=False
    )
    return outcomes


def describe_server(facts: dict[str, Any]) -> str:
    """Models, policy and ranks in a few words."""
    return f"{', '.join(facts['models'])}, policy {facts['policy']}, {facts['world_size']} ranks on {facts['device']}"
