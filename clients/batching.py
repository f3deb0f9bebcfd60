"""FLUX and SD3 mixed on the same ranks, with selective continuous batching and without (`make bench-batching`)."""

import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from tetriserve_backend.cli.timeline_check import find_problems
from tetriserve_client import AsyncTetriserveClient, GenerateResult, ImageRequest, TetriserveClientError
from tetriserve_client.local_server import LocalServer

_MODELS = ("demo-flux", "demo-sd3")
_SIZES = {"64x64": 4, "128x128": 3, "256x256": 1}
"""Of the images, with how often."""

_VARIANTS: dict[str, tuple[str, ...]] = {"with batches": (), "without": ("--set", "scheduler.max_batch=1")}
_RANKS = 2
_TIMEOUT_S = 300.0
_MOST_DIFFERENCE = 1
"""Of 255, by which a channel of a pixel may differ from the image made alone."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and when to send it, in seconds after the trace began."""

    at_s: float
    request: ImageRequest

    @property
    def kind(self) -> tuple[str, str]:
        """Model and size, which decide what it costs."""
        return str(self.request.model), str(self.request.size)


@dataclass(frozen=True, slots=True)
class Score:
    """What one server made of one trace.

    Attributes:
        on_time: requests whose image was there by the deadline.
        latency_s: mean over the images.
        batched: share of the denoising steps that were run in a batch.
        difference: the worst of any pixel from the image made alone, of 255.
        errors: requests that got no image, or another than when alone.
    """

    requests: int
    on_time: int
    latency_s: float
    batched: float
    difference: int
    errors: tuple[str, ...]


def make_requests(seed: int, number: int, steps: int) -> list[ImageRequest]:
    """Images of both models and all sizes."""
    rng = random.Random(seed)
    return [
        ImageRequest(
            f"a red fox, number {index}",
            model=rng.choice(_MODELS),
            size=rng.choices(list(_SIZES), list(_SIZES.values()))[0],
            steps=steps,
            seed=rng.randrange(2**31),
            output_format="raw",
            request_id=f"{seed}-{index}",
        )
        for index in range(number)
    ]


def make_trace(
    requests: Sequence[ImageRequest], alone_s: Mapping[tuple[str, str], float], *, seed: int, load: float, scale: float
) -> list[Arrival]:
    """Poisson arrivals at `load` times the rate that one after the other would need, SLOs of `scale` times alone."""
    rng = random.Random(seed)
    kinds = [Arrival(0.0, request).kind for request in requests]
    rate = load / statistics.fmean(alone_s[kind] for kind in kinds)
    trace, now_s = [], 0.0
    for request, kind in zip(requests, kinds, strict=True):
        now_s += rng.expovariate(rate)
        trace.append(Arrival(now_s, replace(request, slo_s=scale * alone_s[kind])))
    return trace


async def make_alone(url: str, requests: Iterable[ImageRequest]) -> dict[str, GenerateResult]:
    """One request after the other; the results by request id."""
    async with AsyncTetriserveClient(url) as client:
        results = {}
        for request in requests:
            own = replace(request, request_id=f"alone-{request.request_id}")
            results[request.request_id] = await client.send(own, timeout_s=_TIMEOUT_S)
        return results


def typical_s(requests: Sequence[ImageRequest], alone: Mapping[str, GenerateResult]) -> dict[tuple[str, str], float]:
    """Median latency alone, by model and size."""
    by_kind: dict[tuple[str, str], list[float]] = {}
    for request in requests:
        by_kind.setdefault(Arrival(0.0, request).kind, []).append(float(alone[request.request_id].metadata["total_s"]))
    return {kind: statistics.median(seconds) for kind, seconds in by_kind.items()}


async def replay(url: str, trace: Sequence[Arrival]) -> dict[str, GenerateResult | TetriserveClientError]:
    """Send every request at its time; results, or what went wrong, by request id."""
    async with AsyncTetriserveClient(url) as client:
        await client.status()
        start_s = time.monotonic()

        async def send(arrival: Arrival) -> GenerateResult | TetriserveClientError:
            await asyncio.sleep(max(0.0, start_s + arrival.at_s - time.monotonic()))
            try:
                return await client.send(arrival.request, timeout_s=_TIMEOUT_S)
            except TetriserveClientError as error:
                return error

        answers = await asyncio.gather(*(send(arrival) for arrival in trace))
    return {arrival.request.request_id: answer for arrival, answer in zip(trace, answers, strict=True)}


def score(answers: Mapping[str, GenerateResult | TetriserveClientError], alone: Mapping[str, GenerateResult]) -> Score:
    """Compare what came with what came alone."""
    results = {name: answer for name, answer in answers.items() if isinstance(answer, GenerateResult)}
    differences = {name: _difference(result, alone[name]) for name, result in results.items()}
    segments = [part for result in results.values() for part in result.segments if part.kind == "denoise"]
    return Score(
        len(answers),
        sum(result.deadline_met for result in results.values()),
        statistics.fmean(float(result.metadata["total_s"]) for result in results.values()) if results else 0.0,
        sum(part.steps for part in segments if part.batch_size > 1) / max(1, sum(part.steps for part in segments)),
        max(differences.values(), default=0),
        (
            *(f"{name}: {answer}" for name, answer in answers.items() if name not in results),
            *(f"{name}: differs by {worst} of 255" for name, worst in differences.items() if worst > _MOST_DIFFERENCE),
        ),
    )


def _difference(one: GenerateResult, other: GenerateResult) -> int:
    return int(np.abs(one.images[0].pixels.astype(int) - other.images[0].pixels).max())


def measure_tables(out: Path, console: Console) -> dict[str, Path]:
    """A latency table with batches for each model; those that are there are taken.

    Raises:
        subprocess.CalledProcessError: one could not be measured.
    """
    tables = {model: out / f"{model}.latency.json" for model in _MODELS}
    for model, table in tables.items():
        if not table.exists():
            console.print(f"measuring {table}", highlight=False)
            command = [
                sys.executable,
                "-m",
                "tetriserve_backend.cli.app",
                "profile",
                "--model",
                model,
                "-o",
                str(table),
            ]
            command += ["--resolutions", ",".join(_SIZES), "--batches", "1,2,4", "--world-size", str(_RANKS)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return tables


def batching(
    *,
    seeds: Annotated[int, typer.Option(min=1, help="Traces, with seeds from 1 on.")] = 2,
    requests: Annotated[int, typer.Option(min=1, help="Of each trace.")] = 100,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of each image.")] = 16,
    load: Annotated[float, typer.Option(help="Arrivals over what one request after the other would allow.")] = 2.0,
    slo_scale: Annotated[float, typer.Option(help="SLO over the latency alone.")] = 3.0,
    out: Annotated[Path, typer.Option(help="Folder for tables, timelines and logs.")] = Path("batching-output"),
) -> None:
    """The same traces on two servers, one of which batches; compares SLO attainment, images and timelines.

    Exit status: 0 every image was right and every timeline valid; 1 otherwise.
    """
    out.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 120)
    config = out / "server.yaml"
    entries = [
        {"name": model, "model": {"path": model}, "latency_table": str(table.absolute())}
        for model, table in measure_tables(out, console).items()
    ]
    # JSON is YAML.
    config.write_text(json.dumps({"models": entries}), encoding="utf-8")
    timelines = {name: out / f"{name.replace(' ', '-')}.timeline.json" for name in _VARIANTS}
    rows: list[tuple[int, str, Score]] = []
    with ExitStack() as running:
        servers = {}
        for name, options in _VARIANTS.items():
            settings = ["--config", str(config), "--world-size", str(_RANKS), "--timeline", str(timelines[name])]
            servers[name] = LocalServer(timelines[name].with_suffix(".log"), [*settings, *options])
            running.enter_context(servers[name])
        for seed in range(1, seeds + 1):
            images = make_requests(seed, requests, steps)
            alone = asyncio.run(make_alone(servers["without"].grpc_url, images))
            trace = make_trace(images, typical_s(images, alone), seed=seed, load=load, scale=slo_scale)
            # Whoever is second finds a machine of another mood, so they take turns in that too.
            for name, server in list(servers.items())[:: 1 if seed % 2 else -1]:
                rows.append((seed, name, score(asyncio.run(replay(server.grpc_url, trace)), alone)))
    problems = {
        name: find_problems(json.loads(path.read_text())["traceEvents"], _RANKS) for name, path in timelines.items()
    }
    show(rows, problems, console)
    raise typer.Exit(1 if any(found.errors for _, _, found in rows) or any(problems.values()) else 0)


def show(rows: Sequence[tuple[int, str, Score]], problems: Mapping[str, Sequence[str]], console: Console) -> None:
    """Print the scores side by side, the sums, and what is wrong."""
    table = Table(title="FLUX and SD3 on the same ranks")
    for heading in ("seed", "server", "SLO met", "on time", "mean latency s", "steps in batches", "worst pixel /255"):
        table.add_column(heading, justify="left" if heading == "server" else "right")
    for seed, name, found in rows:
        share = f"{found.on_time / found.requests:.1%}"
        numbers = (f"{found.latency_s:.3f}", f"{found.batched:.0%}", str(found.difference))
        table.add_row(str(seed), name, share, f"{found.on_time} of {found.requests}", *numbers)
    console.print(table)
    for name, wrong in problems.items():
        attained = sum(found.on_time for _, own, found in rows if own == name)
        total = sum(found.requests for _, own, found in rows if own == name)
        verdict = "valid" if not wrong else f"{len(wrong)} problems, first: {wrong[0]}"
        console.print(f"{name}: SLO met by {attained / total:.1%} of {total}; timeline {verdict}", highlight=False)
    for _, name, found in rows:
        for error in found.errors:
            print(f"{name}: {error}", file=sys.stderr)


if __name__ == "__main__":
    typer.run(batching)
