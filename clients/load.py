"""Runs locust headless for a short while, against a given server or one of its own (`make load`)."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from tetriserve_client.local_server import LocalServer

_LOCUSTFILE = Path(__file__).parent / "locustfile.py"
_STOP_TIMEOUT_S = 60
_START_AND_END_S = 60


def load(
    *,
    url: Annotated[str | None, typer.Option(help="A server's HTTP endpoint; without it, one is started.")] = None,
    users: Annotated[int, typer.Option(min=1, help="Users that ask at the same time.")] = 3,
    run_time: Annotated[int, typer.Option(min=1, help="Seconds.")] = 20,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of each image.")] = 10,
    min_on_time: Annotated[float, typer.Option(min=0.0, max=1.0, help="Fail if a smaller part came on time.")] = 0.0,
    out: Annotated[Path, typer.Option(help="Folder for locust's CSV files and report.")] = Path("load-output"),
) -> None:
    """Mixed resolutions and deadlines by HTTP `generate`; prints the on-time ratio.

    Exit status: locust's; 1 a request failed, 3 too few were on time.
    """
    out.mkdir(parents=True, exist_ok=True)
    server = LocalServer(out / "server.log") if url is None else None
    with server or nullcontext():
        host = url or (server.http_url if server else "")
        command = [
            *(sys.executable, "-m", "locust", "-f", str(_LOCUSTFILE), "--headless", "--only-summary"),
            *("--host", host, "--users", str(users), "--spawn-rate", str(users), "--run-time", f"{run_time}s"),
            *("--stop-timeout", str(_STOP_TIMEOUT_S), "--steps", str(steps), "--min-on-time", str(min_on_time)),
            *("--csv", str(out / "locust"), "--html", str(out / "locust.html")),
        ]
        limit_s = run_time + _STOP_TIMEOUT_S + _START_AND_END_S
        status = subprocess.run(command, check=False, timeout=limit_s).returncode
    raise typer.Exit(status)


if __name__ == "__main__":
    typer.run(load)
