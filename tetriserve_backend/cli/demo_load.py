"""Sends a planned load to a server and shows each request's progress."""

import asyncio
import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from tetriserve_backend.cli.report import Outcome
from tetriserve_backend.cli.workload import PlannedRequest, Transport
from tetriserve_client import (
    AsyncTetriserveClient,
    GenerateResult,
    HttpTetriserveClient,
    Size,
    TetriserveClientError,
)
from tetriserve_client import Progress as StepProgress

_GIVE_UP_S = 120.0


def check_png(image: bytes, size: Size) -> str:
    """What is wrong with an image that should be a PNG of `size`; empty if nothing is."""
    try:
        with Image.open(io.BytesIO(image)) as picture:
            picture.load()
            if picture.format != "PNG":
                return f"the image is {picture.format}, not PNG"
            if picture.size != (size.width, size.height):
                return f"the image is {picture.width}x{picture.height}, not {size}"
    except (UnidentifiedImageError, OSError) as error:
        return f"the image does not decode: {error}"
    return ""


class DemoLoad:
    """One run of a load against one server; `run` sends it and returns what became of each request.

    Args:
        planned: what to send, and when.
        out: folder that takes one PNG per request.
    """

    def __init__(
        self, planned: Sequence[PlannedRequest], grpc_url: str, http_url: str, out: Path, console: Console
    ) -> None:
        self._planned, self._out = planned, out
        self._grpc_url, self._http = grpc_url, HttpTetriserveClient(http_url)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            console=console,
        )

    async def run(self) -> list[Outcome]:
        """Send every request at its time and wait for all of them; outcomes in order of arrival."""
        # HTTP blocks: one thread each, so that none waits for a thread.
        threads = ThreadPoolExecutor(max_workers=len(self._planned), thread_name_prefix="http")
        started_s = time.monotonic()
        with self._bars, threads:
            async with AsyncTetriserveClient(self._grpc_url) as grpc_client:
                jobs = [self._send(item, started_s, grpc_client, threads) for item in self._planned]
                return list(await asyncio.gather(*jobs))

    async def _send(
        self, item: PlannedRequest, started_s: float, grpc_client: AsyncTetriserveClient, threads: ThreadPoolExecutor
    ) -> Outcome:
        name = item.request.request_id
        label = f"{name} {item.size!s:>9} {item.transport.value}"
        await asyncio.sleep(max(0.0, started_s + item.arrival_s - time.monotonic()))
        bar = self._bars.add_task(label, total=item.request.steps, state="sent")

        def show(progress: StepProgress) -> None:
            self._bars.update(bar, completed=progress.step, state="denoising")

        try:
            if item.transport is Transport.GRPC_STREAM:
                result = await grpc_client.send(item.request, on_progress=show, timeout_s=_GIVE_UP_S)
            else:
                loop = asyncio.get_running_loop()
                result = await loop.run_in_executor(threads, self._send_over_http, item)
        except TetriserveClientError as error:
            return self._end(item, bar, None, str(error))
        return self._end(item, bar, result, check_png(result.image, item.size))

    def _send_over_http(self, item: PlannedRequest) -> GenerateResult:
        return self._http.send(item.request, timeout_s=_GIVE_UP_S)

    def _end(self, item: PlannedRequest, bar: TaskID, result: GenerateResult | None, error: str) -> Outcome:
        outcome = Outcome(item.request.request_id, item.transport.value, item.request, result, error)
        if result is not None:
            result.save(self._out / f"{outcome.name}.png")
            verdict = "[green]on time[/green]" if outcome.on_time else "[red]late[/red]"
            state = f"{float(result.metadata['total_s']):.2f} s of {item.request.slo_s:.2f} s, {verdict}"
            self._bars.update(bar, completed=item.request.steps, state=state)
        if error:
            self._bars.update(bar, state=f"[red]{Text(error).markup}[/red]")
        return outcome
