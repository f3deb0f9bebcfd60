"""`tetriserve generate`: images from a running server, with a progress bar by step."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from tetriserve_backend.cli.report import describe_degrees
from tetriserve_client import (
    GenerateResult,
    HttpTetriserveClient,
    ImageRequest,
    ImageResult,
    RequestTimeoutError,
    ServerUnavailableError,
    Size,
    TetriserveClient,
    TetriserveClientError,
)
from tetriserve_client import Progress as StepProgress

EXIT_REQUEST_FAILED = 1
EXIT_NO_SERVER = 3
EXIT_TIMEOUT = 4
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""


class OutputFormat(str, Enum):
    """Image formats that the server writes."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    RAW = "raw"


_FORMAT_OF_SUFFIX = {".jpg": OutputFormat.JPEG, **{f".{known.value}": known for known in OutputFormat}}
_DEFAULT_STEM = "image"


def _parse_size(text: str) -> Size:
    try:
        return Size.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    *,
    size: Annotated[
        Size | None,
        typer.Option(parser=_parse_size, metavar="WIDTHxHEIGHT", help="Pixels, width first, multiples of 16."),
    ] = None,
    slo: Annotated[float | None, typer.Option(help="Seconds within which the image should be done.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write, image.png by default; several get -0, -1, … added."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed; the server draws one if you give none.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompt.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to keep away from (not with FLUX).")] = None,
    num_images: Annotated[int | None, typer.Option(help="How many images, with seeds in a row.")] = None,
    model: Annotated[str | None, typer.Option(help="Which served model; needed where there are several.")] = None,
    image_format: Annotated[
        OutputFormat | None,
        typer.Option("--output-format", "--format", help="By default the output file's suffix says; raw is RGB bytes."),
    ] = None,
    url: Annotated[
        str, typer.Option(help="Server's gRPC endpoint, or its HTTP one as http://HOST:PORT (no progress then).")
    ] = "localhost:8001",
    timeout: Annotated[float | None, typer.Option(help="Give up after so many seconds and cancel.")] = None,
) -> None:
    """Ask a running server for one image or several.

    What you leave out is the server's default. Exit status: 0 the images are written, 1 the server refused or
    failed, 2 wrong usage, 3 no server there, 4 timeout, 130 interrupted (the request is cancelled then).
    """
    console = Console(stderr=True)
    by_suffix = _FORMAT_OF_SUFFIX.get(output.suffix.lower()) if output else None
    wanted = image_format or by_suffix or OutputFormat.PNG
    request = ImageRequest(
        prompt,
        size,
        steps,
        slo,
        seed,
        guidance,
        negative_prompt,
        output_format=wanted.value,
        model=model,
        num_images=num_images,
    )
    try:
        result = (
            _over_http(url, request, timeout, console) if _is_http(url) else _by_stream(url, request, timeout, console)
        )
        paths = result.save(output or Path(f"{_DEFAULT_STEM}.{wanted.value}"))
    except KeyboardInterrupt:
        console.print("interrupted: the request has been cancelled")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (TetriserveClientError, OSError) as error:
        console.print("[red]error:[/red]", Text(str(error)), highlight=False)
        raise typer.Exit(_exit_status(error)) from error
    for image, path in zip(result.images, paths, strict=True):
        _report(image, path)


def _is_http(url: str) -> bool:
    return url.startswith("http://")


def _grpc_address(url: str) -> str:
    """`HOST:PORT`, which is all that gRPC takes."""
    return url.removeprefix("grpc://").rstrip("/")


def _over_http(url: str, request: ImageRequest, timeout_s: float | None, console: Console) -> GenerateResult:
    with console.status("waiting for the image"):
        return HttpTetriserveClient(url).send(request, timeout_s=timeout_s)


def _by_stream(url: str, request: ImageRequest, timeout_s: float | None, console: Console) -> GenerateResult:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar, TetriserveClient(_grpc_address(url)) as client:
        task = bar.add_task("waiting", total=request.steps)
        done: dict[int, int] = {}

        def show(progress: StepProgress) -> None:
            done[progress.image_index] = progress.step
            total = progress.num_steps * (request.num_images or 1)
            bar.update(task, description="denoising", completed=sum(done.values()), total=total)

        return client.send(request, on_progress=show, timeout_s=timeout_s)


def _exit_status(error: Exception) -> int:
    if isinstance(error, ServerUnavailableError):
        return EXIT_NO_SERVER
    return EXIT_TIMEOUT if isinstance(error, RequestTimeoutError) else EXIT_REQUEST_FAILED


def _report(image: ImageResult, path: Path) -> None:
    console = Console(highlight=False)
    metadata = image.metadata
    slo_s = float(metadata["latency_threshold"])
    verdict = "[green]deadline met[/green]" if image.deadline_met else "[red]deadline missed[/red]"
    console.print(f"{path}: {metadata['width']}x{metadata['height']}, seed {image.seed}")
    console.print(
        f"{verdict}: {float(metadata['total_s']):.2f} s of {slo_s:g} s ({image.latency_s:.2f} s as seen from here)"
    )
    console.print(f"degree of each denoise segment: {describe_degrees(image.segments)}")
