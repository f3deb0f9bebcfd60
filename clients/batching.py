"""FLUX and SD3 mixed on the same ranks, with selective continuous batching and without (`make bench-batching`)."""

import asyncio
import functools
import json
import operator
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from batching_score import Answers, Score, score, verdict_of
from tetriserve_backend.cli.timeline_check import find_problems
from tetriserve_client import AsyncTetriserveClient, GenerateResult, ImageRequest, TetriserveClientError
from tetriserve_client.local_server import LocalServer

_MODELS = {"demo-flux": 3, "demo-sd3": 1}
_SIZES = {"64x64": 5, "128x128": 3}
"""Of the images, with how often. Larger ones fill the CPU alone, and so gain nothing from company; SD3's gain less than
FLUX's, since its guidance makes each a batch of two already."""

_TEXT_TOKENS = 16
"""Of T5, for each prompt: the fewer there are, the more of a pass is reading weights, which a batch does once."""

_IMAGES_PER_KIND = 4
_VARIANTS: dict[str, tuple[str, ...]] = {"with batches": (), "without": ("--set", "scheduler.max_batch=1")}
"""Options of the servers."""
_RANKS = 2
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request for one of the images, and when to send it, in seconds after the trace began."""

    at_s: float
    image: str
    request: ImageRequest

    @property
    def request_id(self) -> str:
        """Under which the answer comes."""
        return str(self.request.request_id)

    def renamed(self, request_id: str) -> "Arrival":
        """The same under another id, which no trace before has used."""
        return replace(self, request=replace(self.request, request_id=request_id))


def make_images(seed: int, steps: int) -> dict[str, ImageRequest]:
    """Some images of each model and size, by a name that begins with these."""
    rng = random.Random(seed)
    return {
        f"{model} {size} {number}": ImageRequest(
            f"a red fox, number {number}",
            model=model,
            size=size,
            steps=steps,
            seed=rng.randrange(2**31),
            output_format="raw",
            request_id=f"{seed}-{model}-{size}-{number}",
        )
        for model in _MODELS
        for size in _SIZES
        for number in range(_IMAGES_PER_KIND)
    }


def make_trace(
    images: Mapping[str, ImageRequest],
    alone_s: Mapping[str, float],
    *,
    seed: int,
    requests: int,
    load: float,
    scale: float,
) -> list[Arrival]:
    """Poisson arrivals at `load` times the rate that one after the other would need, SLOs of `scale` times alone."""
    rng = random.Random(seed)
    weights = [_MODELS[str(image.model)] * _SIZES[str(image.size)] for image in images.values()]
    names = rng.choices(list(images), weights, k=requests)
    rate = load / statistics.fmean(alone_s[name] for name in names)
    trace, now_s = [], 0.0
    for name in names:
        now_s += rng.expovariate(rate)
        trace.append(Arrival(now_s, name, replace(images[name], slo_s=scale * alone_s[name])))
    return trace


async def make_alone(url: str, images: Mapping[str, ImageRequest]) -> dict[str, GenerateResult]:
    """One image after the other, by name."""
    async with AsyncTetriserveClient(url) as client:
        return {name: await client.send(image, timeout_s=_TIMEOUT_S) for name, image in images.items()}


async def warm_up(url: str, images: Mapping[str, ImageRequest]) -> None:
    """All images at once, twice over: the first passes of a shape and batch take longer than all later ones."""
    async with AsyncTetriserveClient(url) as client:
        for _ in range(2):
            await asyncio.gather(
                *(client.send(replace(image, request_id=""), timeout_s=_TIMEOUT_S) for image in images.values())
            )


def typical_s(alone: Mapping[str, GenerateResult]) -> dict[str, float]:
    """Latency alone of each image: the median of its model and size."""
    by_kind: dict[str, list[float]] = {}
    for name, result in alone.items():
        by_kind.setdefault(_kind(name), []).append(float(result.metadata["total_s"]))
    return {name: statistics.median(by_kind[_kind(name)]) for name in alone}


def _kind(name: str) -> str:
    return name.rpartition(" ")[0]


async def replay(url: str, trace: Sequence[Arrival]) -> Answers:
    """Send every request at its time; results, or what went wrong."""
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
    return {arrival.request_id: answer for arrival, answer in zip(trace, answers, strict=True)}


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
            command += ["--set", f"model.max_sequence_length={_TEXT_TOKENS}"]
            command += ["--resolutions", ",".join(_SIZES), "--batches", "1,2,4", "--world-size", str(_RANKS)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return tables


def batching(
    *,
    seeds: Annotated[int, typer.Option(min=1, help="Traces, with seeds from 1 on.")] = 4,
    requests: Annotated[int, typer.Option(min=1, help="Of each trace, which each server has twice.")] = 200,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of each image.")] = 16,
    load: Annotated[float, typer.Option(help="Arrivals over what one request after the other would allow.")] = 3.0,
    slo_scale: Annotated[float, typer.Option(help="SLO over the latency alone.")] = 8.0,
    out: Annotated[Path, typer.Option(help="Folder for tables, timelines and logs.")] = Path("batching-output"),
) -> None:
    """The same traces on two servers, one of which batches; compares SLO attainment, images and timelines.

    Both servers make every image alone first, and all at once, so that neither has its first passes in a trace.

    Exit status: 0 every image was right and every timeline valid; 1 otherwise. Whether batching paid is printed.
    """
    out.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 120)
    config = out / "server.yaml"
    entries = [
        {
            "name": model,
            "model": {"path": model, "max_sequence_length": _TEXT_TOKENS},
            "latency_table": str(table.absolute()),
        }
        for model, table in measure_tables(out, console).items()
    ]
    # JSON is YAML.
    config.write_text(json.dumps({"models": entries}), encoding="utf-8")
    timelines = {name: out / f"{name.replace(' ', '-')}.timeline.json" for name in _VARIANTS}
    scores: dict[tuple[int, str], Score] = {}
    with ExitStack() as running:
        servers = {}
        for name, options in _VARIANTS.items():
            settings = ["--config", str(config), "--world-size", str(_RANKS), "--timeline", str(timelines[name])]
            servers[name] = LocalServer(timelines[name].with_suffix(".log"), [*settings, *options])
            running.enter_context(servers[name])
        for seed in range(1, seeds + 1):
            images = make_images(seed, steps)
            alone = {}
            for name, server in servers.items():
                alone[name] = asyncio.run(make_alone(server.grpc_url, images))
                asyncio.run(warm_up(server.grpc_url, images))
            wanted = alone["without"]
            trace = make_trace(images, typical_s(wanted), seed=seed, requests=requests, load=load, scale=slo_scale)
            # A machine has moods, so one server has its turns before the other's and behind them, and then the other.
            names = list(servers)[:: 1 if seed % 2 else -1]
            for turn, name in enumerate([*names, *reversed(names)]):
                mine = [arrival.renamed(f"{seed}-{turn}-{index}") for index, arrival in enumerate(trace)]
                answers = asyncio.run(replay(servers[name].grpc_url, mine))
                found = score(answers, {arrival.request_id: wanted[arrival.image] for arrival in mine})
                scores[seed, name] = scores[seed, name] + found if (seed, name) in scores else found
    problems = {
        name: find_problems(json.loads(path.read_text())["traceEvents"], _RANKS) for name, path in timelines.items()
    }
    show(scores, problems, console)
    raise typer.Exit(1 if any(found.errors for found in scores.values()) or any(problems.values()) else 0)


def show(scores: Mapping[tuple[int, str], Score], problems: Mapping[str, Sequence[str]], console: Console) -> None:
    """Print the scores side by side, the sums, what is wrong, and whether batching paid."""
    table = Table(title="FLUX and SD3 on the same ranks")
    for heading in (
        "seed", "server", "SLO met", "on time", "per busy GPU-s", "mean latency s", "steps shared", "images per pass",
        "worst pixel /255",
    ):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "server" else "right")
    totals = {
        name: functools.reduce(operator.add, (found for (_, own), found in scores.items() if own == name))
        for name in problems
    }
    for (seed, name), found in [
        *((key, found) for key, found in scores.items()),
        *((("all", n), t) for n, t in totals.items()),
    ]:
        table.add_row(
            str(seed),
            name,
            f"{found.attainment:.1%}",
            f"{found.on_time} of {found.requests}",
            f"{found.on_time_per_gpu_second:.2f}",
            f"{found.latency_s:.3f}",
            f"{found.shared_steps / max(1, found.steps):.0%}",
            f"{found.steps / max(1.0, found.passes):.2f}",
            str(found.difference),
        )
    console.print(table)
    for name, wrong in problems.items():
        verdict = "valid" if not wrong else f"{len(wrong)} problems, first: {wrong[0]}"
        console.print(f"{name}: timeline {verdict}", highlight=False)
    console.print(verdict_of(totals["with batches"], totals["without"]), highlight=False)
    for (seed, name), found in scores.items():
        for error in found.errors:
            print(f"seed {seed}, {name}: {error}", file=sys.stderr)


if __name__ == "__main__":
    typer.run(batching)
