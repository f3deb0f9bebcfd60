"""Many mixed requests to a server of its own with both embedded models, and what its processes hold (`make soak`)."""

import asyncio
import csv
import json
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tetriserve_client import (
    AsyncTetriserveClient,
    GenerateResult,
    HttpTetriserveClient,
    ImageRequest,
    InvalidRequestError,
    Progress,
    ServerFailureError,
    TetriserveClientError,
)
from tetriserve_client.local_server import LocalServer
from tetriserve_client.server_memory import MemoryRecord, growth_mb_per_100, shared_segments

_MODELS = ("demo-flux", "demo-sd3")
_SIZES = ("128x128", "128x128", "128x128", "256x128", "128x256", "256x256")
_PROMPTS = ("a red fox in fresh snow", "a lighthouse at dusk", "a bicycle made of glass", "two herons and a storm")
_FORMATS = ("png", "jpeg", "webp", "raw")
_WAYS = {"whole": 8, "progress": 3, "http": 3, "cancelled": 2, "refused": 1}
"""How requests are sent, with how often."""

_TIMEOUT_S = 120.0
_MAX_GROWTH_MB = 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """One request and the way it is sent: one of `_WAYS`."""

    way: str
    request: ImageRequest


def mixed_work(seed: int, number: int) -> list[Work]:
    """Requests of every kind that clients send, the same for the same seed."""
    rng = random.Random(seed)
    return [_some_work(rng, f"soak-{seed}-{index}") for index in range(number)]


def _some_work(rng: random.Random, request_id: str) -> Work:
    way = rng.choices(list(_WAYS), list(_WAYS.values()))[0]
    model = rng.choice(_MODELS)
    fields: dict[str, Any] = {
        "model": model,
        "size": rng.choice(_SIZES),
        "steps": rng.randint(2, 4),
        "seed": rng.randrange(2**31),
        "slo_s": rng.choice((0.5, 2.0, 10.0)),
        "num_images": rng.choices((1, 2, 4), (8, 2, 1))[0],
        "output_format": rng.choice(_FORMATS),
        "guidance": rng.choice((None, 1.0, 4.5)),
        "preview": way == "progress" and rng.random() < 0.5,
    }
    if model == "demo-sd3" and rng.random() < 0.5:
        fields["negative_prompt"] = "blurry"
    if way == "cancelled":
        fields |= {"steps": 50, "num_images": 1}
    if way == "refused":
        fields |= {"size": "100x128"}
    return Work(way, ImageRequest(rng.choice(_PROMPTS), request_id=request_id, **fields))


class Load:
    """Sends work in the way that it names; a call returns when the server is done with it.

    Args:
        client: for gRPC streams.
        http: for `tetriserve_infer` over HTTP.
    """

    def __init__(self, client: AsyncTetriserveClient, http: HttpTetriserveClient) -> None:
        self._client, self._http = client, http
        self._ways: dict[str, Callable[[ImageRequest], Awaitable[None]]] = {
            "whole": self._whole,
            "progress": self._progress,
            "http": self._by_http,
            "cancelled": self._cancelled,
            "refused": self._refused,
        }

    async def send(self, work: Work) -> str | None:
        """What went wrong, or None."""
        try:
            await self._ways[work.way](work.request)
        except (TetriserveClientError, ValueError) as error:
            return f"{work.request.request_id} ({work.way}): {type(error).__name__}: {error}"
        return None

    async def _whole(self, request: ImageRequest) -> None:
        _expect_all(request, await self._client.send(request, timeout_s=_TIMEOUT_S))

    async def _progress(self, request: ImageRequest) -> None:
        told: list[Progress] = []
        result = await self._client.send(request, on_progress=told.append, timeout_s=_TIMEOUT_S)
        _expect_all(request, result)
        wanted = (request.steps or 0) * (request.num_images or 1)
        if len(told) != wanted:
            raise ValueError(f"{len(told)} progress messages instead of {wanted}")

    async def _by_http(self, request: ImageRequest) -> None:
        result = await asyncio.to_thread(self._http.send, request, timeout_s=_TIMEOUT_S)
        _expect_all(request, result)

    async def _cancelled(self, request: ImageRequest) -> None:
        async with aclosing(self._client.stream(request, timeout_s=_TIMEOUT_S)) as events:
            async for _ in events:
                break

    async def _refused(self, request: ImageRequest) -> None:
        try:
            await self._client.send(request, timeout_s=_TIMEOUT_S)
        except InvalidRequestError:
            return
        raise ValueError(f"size {request.size} was not refused")


def _expect_all(request: ImageRequest, result: GenerateResult) -> None:
    if len(result.images) != (request.num_images or 1) or not all(image.image for image in result.images):
        raise ValueError(f"not all of {request.num_images} images came")


@dataclass(frozen=True, slots=True)
class SoakResult:
    """What a run came to: errors, in words, and the growth of each process in MB per 100 requests."""

    errors: tuple[str, ...]
    record: MemoryRecord
    growth: dict[str, float]

    @property
    def grown(self) -> list[str]:
        """The processes that grew by more than is allowed."""
        return [name for name, mb in self.growth.items() if mb > _MAX_GROWTH_MB]


async def run_load(
    server: LocalServer,
    record: MemoryRecord,
    work: Sequence[Work],
    *,
    every: int,
    at_a_time: int,
    tell: Callable[[str], None],
) -> list[str]:
    """Send all work, and sample memory each time that `every` requests are done and none is running; the errors."""
    errors: list[str] = []
    async with AsyncTetriserveClient(server.grpc_url) as client:
        load = Load(client, HttpTetriserveClient(server.http_url))
        places = asyncio.Semaphore(at_a_time)
        record.take(0)

        async def send(one: Work) -> str | None:
            async with places:
                return await load.send(one)

        for start in range(0, len(work), every):
            block = work[start : start + every]
            failed = [error for error in await asyncio.gather(*(send(one) for one in block)) if error]
            for error in failed:
                tell(error)
            errors += failed
            done = start + len(block)
            total_mb = record.take(done)
            tell(f"{done}/{len(work)} requests, {total_mb:.1f} MB in all processes, {len(errors)} errors")
    return errors


def soak(
    *,
    requests: Annotated[int, typer.Option(min=1, help="How many are judged.")] = 1000,
    warm_up: Annotated[int, typer.Option(min=0, help="Requests before those, in which memory may grow.")] = 500,
    at_a_time: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 4,
    every: Annotated[int, typer.Option(min=1, help="Requests between two samples of memory.")] = 25,
    seed: Annotated[int, typer.Option(help="Of the mix of requests.")] = 1,
    judge: Annotated[bool, typer.Option(help="Fail if memory grows; short runs tell nothing of that.")] = True,
    out: Annotated[Path, typer.Option(help="Folder for samples, timeline and log.")] = Path("soak-output"),
) -> None:
    """Mixed requests in a row; prints by how much each process of the server grew.

    Exit status: 0 all is well; 1 a request went wrong, a process died or grew by more than 1 MB per 100 requests, or
    shared memory was left behind.
    """
    if requests < 2 * every:
        raise typer.BadParameter(f"--requests: got {requests}; allowed: at least {2 * every}, which is 2 × --every")
    out.mkdir(parents=True, exist_ok=True)
    state_file = out / "state.json"
    options = [part for model in _MODELS for part in ("--model", model)]
    options += ["--set", "quick_resolutions=[128x128, 256x256]"]
    options += ["--world-size", "2", "--timeline", str(out / "live.timeline.json"), "--state-file", str(state_file)]
    server = LocalServer(out / "server.log", options)
    work = mixed_work(seed, warm_up + requests)
    with server:
        state = json.loads(state_file.read_text(encoding="utf-8"))
        record = MemoryRecord(state["supervisor_pid"])
        try:
            errors = asyncio.run(
                run_load(
                    server, record, work, every=every, at_a_time=at_a_time, tell=lambda line: print(line, flush=True)
                )
            )
        except (RuntimeError, ServerFailureError) as error:
            print(error, file=sys.stderr)
            raise typer.Exit(1) from error
        finally:
            write_samples(record, out / "memory.csv")
    status = server.stop()
    errors += [f"the server ended with status {status}"] if status else []
    errors += [f"shared memory was left behind: {name}" for name in shared_segments(state["shm_prefix"])]
    growth = {
        name: growth_mb_per_100(record.requests, series, warm_up=warm_up) for name, series in record.series.items()
    }
    result = SoakResult(tuple(errors), record, growth)
    show(result, Counter(one.way for one in work))
    for line in result.errors:
        print(line, file=sys.stderr)
    raise typer.Exit(1 if result.errors or (judge and result.grown) else 0)


def write_samples(record: MemoryRecord, path: Path) -> None:
    """MB by process and number of requests, as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("requests", *record.series))
        for number, *row in zip(record.requests, *record.series.values(), strict=True):
            writer.writerow((number, *(f"{mb:.3f}" for mb in row)))


def show(result: SoakResult, ways: Counter[str]) -> None:
    """Print growth by process, and what went wrong."""
    table = Table(title=", ".join(f"{number} {way}" for way, number in ways.most_common()))
    table.add_column("process")
    for heading in ("first MB", "last MB", "MB per 100 requests"):
        table.add_column(heading, justify="right")
    for name, series in result.record.series.items():
        table.add_row(name, f"{series[0]:.1f}", f"{series[-1]:.1f}", f"{result.growth[name]:+.3f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    for name in result.grown:
        print(
            f"{name} grows by {result.growth[name]:.2f} MB per 100 requests; allowed: {_MAX_GROWTH_MB:g}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    typer.run(soak)
