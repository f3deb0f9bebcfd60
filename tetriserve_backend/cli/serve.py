"""`tetriserve serve`: the server with its supervisor, until somebody stops it."""

import signal
import sys
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from tetriserve_backend.cli.launcher.plan import make_plan
from tetriserve_backend.cli.launcher.ports import claim_endpoints
from tetriserve_backend.cli.launcher.preflight import check_before_start
from tetriserve_backend.cli.launcher.state_file import StateFile
from tetriserve_backend.cli.launcher.supervisor import ExitCode, Supervisor
from tetriserve_backend.cli.options import absolute_folder, read_settings
from tetriserve_backend.domain import ConfigurationError, LatencyTableError
from tetriserve_backend.triton_adapter.settings import ServedModelSettings, ServerSettings


class ModelControl(str, Enum):
    """As Triton's `--model-control-mode`, of which `poll` makes no sense here."""

    NONE = "none"
    EXPLICIT = "explicit"


_MAX_PORT = 65535
_DEFAULT_HTTP_PORT, _DEFAULT_GRPC_PORT, _DEFAULT_METRICS_PORT = 8000, 8001, 8002


def serve(
    context: typer.Context,
    *,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for everybody.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=0, max=_MAX_PORT, help="Port of HTTP; 0 for any.")] = _DEFAULT_HTTP_PORT,
    grpc_port: Annotated[int, typer.Option(min=0, max=_MAX_PORT, help="Port of gRPC; 0 for any.")] = _DEFAULT_GRPC_PORT,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=_MAX_PORT, help="Port of the metrics; 0 for any.")
    ] = _DEFAULT_METRICS_PORT,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="[NAME=]MODEL",
            help="demo-flux, demo-sd3, a diffusers folder, or a hub id; several share the ranks.",
        ),
    ] = None,
    model_control: Annotated[
        ModelControl, typer.Option(help="explicit: models can be loaded and unloaded while the server runs.")
    ] = ModelControl.NONE,
    world_size: Annotated[int | None, typer.Option(help="Ranks; default 2 on CPU, all GPUs on CUDA.")] = None,
    policy: Annotated[
        str | None, typer.Option(help="tetris, tetriserve, rssp, fcfs-optimal-shape, fixed-sp<k>")
    ] = None,
    timeline: Annotated[Path | None, typer.Option(help="Write a Chrome trace of all work here.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as engine.lead_s=0.05.")
    ] = None,
    log_file: Annotated[Path | None, typer.Option(help="Where tritonserver's log goes; default: here.")] = None,
    state_file: Annotated[Path | None, typer.Option(help="Keep a JSON file with addresses and state.")] = None,
) -> None:
    """Serve images by Triton until SIGTERM or Ctrl-C.

    What follows -- goes to tritonserver. A first Ctrl-C lets running requests finish, a second one does not.

    Exit status: 0 stopped when asked to; 1 the server could not start; 2 options, settings or files that are
    wrong whatever the model and the machine; 3 gave up after repeated failures; 130 stopped at once.
    """
    try:
        options: dict[str, object] = {
            **_model_options(models or []),
            "executor.world_size": world_size,
            "scheduler.policy": policy,
            "timeline": str(timeline.absolute()) if timeline else None,
        }
        settings = _settings(config, assignments or [], options)
        check_before_start(settings, {"--log-file": log_file, "--state-file": state_file})
        endpoints = claim_endpoints(host, http_port, grpc_port, metrics_port)
        log_path = log_file.absolute() if log_file else None
        plan = make_plan(
            settings, endpoints, context.args, log_path, is_explicit=model_control is ModelControl.EXPLICIT
        )
    except (ConfigurationError, LatencyTableError) as error:
        say(str(error))
        raise typer.Exit(ExitCode.WRONG_CONFIGURATION) from error
    names = ", ".join(model.name for model in settings.served_models)
    say(f"starting {plan.installation.server} with {names}, policy {settings.scheduler.policy}")
    supervisor = Supervisor(plan, say, StateFile(state_file, plan.run, endpoints))
    _on_stop_signals(supervisor.ask_to_stop)
    raise typer.Exit(supervisor.run())


def say(text: str) -> None:
    """Tell the operator."""
    print(f"tetriserve: {text}", file=sys.stderr, flush=True)


def _on_stop_signals(ask: Callable[[], None]) -> None:
    """Call `ask` at each signal that means stop, but those that whoever started us wants ignored, as nohup does."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: ask())


def _settings(config: Path | None, assignments: Sequence[str], options: dict[str, object]) -> ServerSettings:
    """Paths become absolute, because the server runs in a folder of its own."""
    settings = read_settings(config, assignments, options)
    timeline = _absolute_file(settings.timeline)
    return settings.model_copy(
        update={"timeline": timeline, "models": tuple(_absolute(model) for model in settings.served_models)}
    )


def _absolute(served: ServedModelSettings) -> ServedModelSettings:
    model = served.model.model_copy(
        update={"path": absolute_folder(served.model.path), "pace_table": _absolute_file(served.model.pace_table)}
    )
    return served.model_copy(update={"model": model, "latency_table": _absolute_file(served.latency_table)})


def _absolute_file(name: str | None) -> str | None:
    return str(Path(name).absolute()) if name else None


def _model_options(models: Sequence[str]) -> dict[str, object]:
    """Settings for `--model`: one without a name is the `model` that settings are about anyway."""
    if len(models) == 1 and "=" not in models[0]:
        return {"model.path": models[0]}
    named = [text.partition("=") if "=" in text else ("", "=", text) for text in models]
    return {"models": [{"name": name, "model": {"path": path}} for name, _, path in named] or None}
