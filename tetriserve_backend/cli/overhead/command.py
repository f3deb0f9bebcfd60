"""`tetriserve bench-overhead`: Triton against a bare loop, gaps between segments, time per decision."""

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tetriserve_backend.cli.launcher.repository import find_model_repository
from tetriserve_backend.cli.overhead.bare_diffusers import BareDiffusers
from tetriserve_backend.cli.overhead.decision import decision_seconds, event_seconds
from tetriserve_backend.cli.overhead.gaps import Gap, segment_gaps
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_client import TetriserveClient
from tetriserve_client.local_server import LocalServer

_PROMPT = "a lighthouse above a stormy sea"
_DECIDING = ("tetris", "tetriserve", "rssp", "fixed-sp4")
_DECISION_TABLE = "denoise/latency_tables/flux1-dev-8xh100.latency.json"


def bench_overhead(
    *,
    side: Annotated[int, typer.Option(help="Height and width of the images, pixels.")] = 1024,
    steps: Annotated[int, typer.Option(min=6, help="Denoising steps of each image.")] = 12,
    pairs: Annotated[int, typer.Option(min=1, help="Images per side; the two sides take turns.")] = 6,
    decisions: Annotated[int, typer.Option(min=100, help="Scheduler decisions to time.")] = 2000,
    only_decisions: Annotated[bool, typer.Option("--only-decisions", help="Start no server.")] = False,
    sizes: Annotated[
        str, typer.Option(help="Pending requests, with commas between, each on a quarter as many GPUs (at least 8).")
    ] = "64,256,1024,4096",
) -> None:
    """Measure what serving costs: both sides of each comparison in one run, as ratios."""
    console = Console()
    if not only_decisions:
        served, bare, gaps = _serve_and_compare(side, steps, pairs, console)
        console.print(_latency_table(served, bare, side, steps))
        console.print(_gap_table(gaps))
    table = LatencyTable.load(find_model_repository() / _DECISION_TABLE)
    timed = {name: decision_seconds(name, table, 64, decisions) for name in _DECIDING}
    console.print(_decision_table(timed))
    console.print(_growth_table(table, [int(size) for size in sizes.split(",")], decisions))


def _serve_and_compare(
    side: int, steps: int, pairs: int, console: Console
) -> tuple[list[float], list[float], list[Gap]]:
    served, bare = [], []
    with tempfile.TemporaryDirectory() as folder:
        timeline = Path(folder) / "bench.timeline.json"
        options = ["--world-size", "1", "--policy", "fixed-sp1", "--timeline", str(timeline)]
        with LocalServer(Path(folder) / "server.log", options) as server:
            client = TetriserveClient(server.grpc_url)
            (facts,) = client.status()["models"].values()
            with BareDiffusers(Path(facts["model_directory"]), int(facts["text_tokens"])) as pipe:
                for number in range(pairs + 1):
                    console.print(f"pair {number} of {pairs}" + (" (warm-up, not counted)" if number == 0 else ""))
                    took = {}
                    # Who goes first changes from pair to pair, so that a drift of the machine favours neither.
                    for name in ("served", "bare") if number % 2 else ("bare", "served"):
                        if name == "served":
                            size = f"{side}x{side}"
                            result = client.generate(_PROMPT, size=size, steps=steps, slo_s=600.0, seed=number)
                            took[name] = result.latency_s
                        else:
                            request = {"height": side, "width": side, "num_inference_steps": steps}
                            took[name] = pipe.seconds({**request, "prompt": _PROMPT, "seed": number})
                    if number:
                        served.append(took["served"])
                        bare.append(took["bare"])
        return served, bare, segment_gaps(json.loads(timeline.read_text(encoding="utf-8"))["traceEvents"])


def _latency_table(served: Sequence[float], bare: Sequence[float], side: int, steps: int) -> Table:
    ratios = [a / b for a, b in zip(served, bare, strict=True)]
    table = Table(title=f"end to end, {side}x{side}, {steps} steps, SP=1, one rank (goal: ratio ≤ 1.03)")
    for name in ("", "min", "median", "max"):
        table.add_column(name, justify="right")
    rows = (("through Triton, s", served), ("bare diffusers, s", bare), ("ratio of each pair", ratios))
    for name, values in rows:
        table.add_row(name, *(f"{f(values):.3f}" for f in (min, statistics.median, max)))
    return table


def _gap_table(gaps: Sequence[Gap]) -> Table:
    table = Table(title="between consecutive segments of one request on the same ranks (goal: ≤ 1 % of the segment)")
    for name in ("", "median", "p99", "max", "total"):
        table.add_column(name, justify="right")
    shares = sorted(gap.gap_s / gap.segment_s for gap in gaps)
    seconds = sorted(gap.gap_s for gap in gaps)
    total = sum(seconds) / sum(gap.segment_s for gap in gaps)
    table.add_row("gap, ms", *(f"{1e3 * x:.2f}" for x in _quantiles(seconds)), f"{1e3 * sum(seconds):.1f}")
    table.add_row("share of the segment", *(f"{x:.2%}" for x in _quantiles(shares)), f"{total:.2%}")
    return table


def _decision_table(timed: dict[str, list[float]]) -> Table:
    table = Table(title="one decision, 64 pending requests, 8 GPUs (goal: p99 ≤ 1 ms)")
    for name in ("policy", "median ms", "p99 ms", "max ms"):
        table.add_column(name, justify="right")
    for name, seconds in timed.items():
        table.add_row(name, *(f"{1e3 * x:.3f}" for x in _quantiles(sorted(seconds))))
    return table


def _growth_table(table: LatencyTable, sizes: Sequence[int], decisions: int) -> Table:
    """How a decision of the default policy grows with the server: after one event, and with everything new at once."""
    shown = Table(title="one decision of tetris as the server grows (goal: p99 ≤ 10 ms at 4,096; at most n log n)")
    for name in ("pending", "GPUs", "after an event: median ms", "p99 ms", "all new at once: median ms", "max ms"):
        shown.add_column(name, justify="right")
    for size in sizes:
        world_size = max(8, size // 4)
        after_event = sorted(event_seconds("tetris", table, size, decisions, world_size=world_size))
        all_new = sorted(decision_seconds("tetris", table, size, 20, world_size=world_size))
        figures = (*_quantiles(after_event)[:2], *_quantiles(all_new)[::2])
        shown.add_row(str(size), str(world_size), *(f"{1e3 * x:.3f}" for x in figures))
    return shown


def _quantiles(ordered: Sequence[float]) -> tuple[float, float, float]:
    return ordered[len(ordered) // 2], ordered[int(0.99 * (len(ordered) - 1))], ordered[-1]
