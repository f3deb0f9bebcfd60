"""Runs Triton's own perf_analyzer against both fronts: gRPC streaming and plain HTTP `infer` (`make perf`)."""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tetriserve_client import Size
from tetriserve_client.local_server import LocalServer

_LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
"""What perf_analyzer links to, and what nvidia_pytriton's wheel calls it."""

_TRIALS = 3
_START_AND_END_S = 120


@dataclass(frozen=True)
class Front:
    """One way to the server that perf_analyzer measures."""

    model: str
    protocol: str
    url: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """One row of perf_analyzer's report; latencies in milliseconds."""

    front: Front
    images_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float


def find_analyzer() -> Path:
    """The perf_analyzer of tritonclient's wheel, else the one on PATH.

    Raises:
        RuntimeError: there is none.
    """
    beside = Path(sys.executable).parent / "perf_analyzer"
    found = beside if beside.is_file() else shutil.which("perf_analyzer")
    if found is None:
        raise RuntimeError("perf_analyzer is neither in this environment (tritonclient[all]) nor on PATH")
    return Path(found)


def library_path(folder: Path) -> str:
    """An LD_LIBRARY_PATH by which perf_analyzer finds its libraries, through links made in `folder`."""
    package = importlib.util.find_spec("pytriton")
    if package is None or package.origin is None:
        return os.environ.get("LD_LIBRARY_PATH", "")
    shipped = Path(package.origin).parent.parent / "nvidia_pytriton.libs"
    for name, pattern in _LIBRARIES.items():
        for library in sorted(shipped.glob(pattern))[:1]:
            (folder / name).symlink_to(library)
    # The links' own folder last: perf_analyzer should take what the system has first.
    return os.pathsep.join(filter(None, (os.environ.get("LD_LIBRARY_PATH"), str(folder))))


def request_data(size: Size, num_steps: int, slo_s: float) -> dict[str, list[dict[str, list[object]]]]:
    """One request in perf_analyzer's input format; progress stays off, because it measures the first response."""
    request: dict[str, list[object]] = {
        "prompt": ["a red fox in fresh snow"],
        "height": [size.height],
        "width": [size.width],
        "num_inference_steps": [num_steps],
        "latency_threshold": [slo_s],
    }
    return {"data": [request]}


def measure(
    front: Front, data: Path, load: Sequence[str], window_ms: int, environment: Mapping[str, str]
) -> Measurement:
    """Run perf_analyzer once.

    Raises:
        RuntimeError: it failed; the message is the end of its output.
    """
    report = data.with_name(f"{front.model}.csv")
    command = [
        *(str(find_analyzer()), "-m", front.model, "-i", front.protocol, "-u", front.url, *front.options),
        *("--input-data", str(data), *load, "--measurement-interval", str(window_ms)),
        # A request count would give a wrong throughput in this version, so windows; and the mean of all of
        # them, because a short run on a busy machine never is as stable as perf_analyzer would like.
        *("--max-trials", str(_TRIALS), "--stability-percentage", "999", "--percentile", "99", "-f", str(report)),
    ]
    limit_s = _TRIALS * window_ms / 1e3 + _START_AND_END_S
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit_s, check=False)
    if run.returncode != 0 or not report.exists():
        raise RuntimeError(
            f"perf_analyzer on {front.model} ended with {run.returncode}:\n{(run.stdout + run.stderr)[-2000:]}"
        )
    return read_report(front, report)


def read_report(front: Front, report: Path) -> Measurement:
    """The first row of a report; perf_analyzer writes microseconds."""
    with report.open(newline="") as file:
        row = next(csv.DictReader(file))
    latencies = {name: float(row[f"{name} latency"]) / 1e3 for name in ("p50", "p90", "p99")}
    return Measurement(front, float(row["Inferences/Second"]), latencies["p50"], latencies["p90"], latencies["p99"])


def perf(
    *,
    grpc_url: Annotated[str | None, typer.Option(help="gRPC endpoint; without both, a server is started.")] = None,
    http_url: Annotated[str | None, typer.Option(help="HTTP endpoint.")] = None,
    size: Annotated[str, typer.Option(metavar="WIDTHxHEIGHT", help="Size of each image.")] = "256x256",
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of each image.")] = 10,
    slo: Annotated[float, typer.Option(help="Seconds within which an image should be done.")] = 5.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 2,
    rate: Annotated[float | None, typer.Option(help="Poisson arrivals per second instead of `concurrency`.")] = None,
    window_s: Annotated[float, typer.Option(help="One of three measurement windows, in seconds.")] = 5.0,
    out: Annotated[Path, typer.Option(help="Folder for reports.")] = Path("perf-output"),
) -> None:
    """Throughput and latency of `tetriserve` by gRPC streaming and of `tetriserve_infer` by HTTP.

    Exit status: 0 both were measured; 1 perf_analyzer failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    data = out / "request.json"
    data.write_text(json.dumps(request_data(Size.parse(size), steps, slo)))
    if rate is None:
        load = ["--concurrency-range", str(concurrency)]
    else:
        load = ["--request-rate-range", str(rate), "--request-distribution", "poisson"]
    given = grpc_url is not None and http_url is not None
    server = None if given else LocalServer(out / "server.log")
    with server or nullcontext(), tempfile.TemporaryDirectory() as links:
        environment = {**os.environ, "LD_LIBRARY_PATH": library_path(Path(links))}
        fronts = (
            Front("tetriserve", "grpc", server.grpc_url if server else str(grpc_url), ("--streaming",)),
            Front("tetriserve_infer", "http", (server.http_url if server else str(http_url)).removeprefix("http://")),
        )
        try:
            rows = [measure(front, data, load, round(window_s * 1e3), environment) for front in fronts]
        except RuntimeError as error:
            print(error, file=sys.stderr)
            raise typer.Exit(1) from error
    show(rows, f"{size}, {steps} steps, {' '.join(load).removeprefix('--')}")


def show(rows: Sequence[Measurement], title: str) -> None:
    """Print the measurements side by side."""
    table = Table(title=title)
    table.add_column("front")
    for heading in ("images/s", "p50 ms", "p90 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    for row in rows:
        numbers = (f"{row.images_per_s:.2f}", f"{row.p50_ms:.0f}", f"{row.p90_ms:.0f}", f"{row.p99_ms:.0f}")
        table.add_row(f"{row.front.model} ({row.front.protocol})", *numbers)
    Console().print(table)


if __name__ == "__main__":
    typer.run(perf)
