"""The command line of tritonserver; pure."""

from collections.abc import Sequence
from pathlib import Path

from tetriserve_backend.cli.launcher.ports import Endpoints
from tetriserve_backend.domain import ConfigurationError

_STUB_TIMEOUT_S = 120
_OURS = (
    "--model-repository",
    "--model-store",
    "--backend-directory",
    "--http-port",
    "--http-address",
    "--grpc-port",
    "--grpc-address",
    "--metrics-port",
    "--metrics-address",
    "--allow-http",
    "--exit-timeout-secs",
    "--model-control-mode",
    "--load-model",
)


def server_command(
    server: Path,
    *,
    backend_dir: Path,
    repository: Path,
    endpoints: Endpoints,
    shm_prefix: str,
    exit_timeout_s: float,
    explicit_models: Sequence[str] = (),
    extra: Sequence[str] = (),
) -> list[str]:
    """Arguments that start `server`; `extra` comes last, so that what an operator says wins.

    With `explicit_models` only these are loaded at the start, and models can be loaded and unloaded later.
    """
    control = ["--model-control-mode=explicit", *(f"--load-model={name}" for name in explicit_models)]
    return [
        str(server),
        f"--model-repository={repository}",
        f"--backend-directory={backend_dir}",
        # Our configurations are complete; guessing would import every model once more.
        "--disable-auto-complete-config",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--backend-config=python,stub-timeout-seconds={_STUB_TIMEOUT_S}",
        f"--http-address={endpoints.host}",
        f"--http-port={endpoints.http_port}",
        f"--grpc-address={endpoints.host}",
        f"--grpc-port={endpoints.grpc_port}",
        f"--metrics-address={endpoints.host}",
        f"--metrics-port={endpoints.metrics_port}",
        f"--exit-timeout-secs={max(1, round(exit_timeout_s))}",
        *(control if explicit_models else ()),
        *extra,
    ]


def check_extra_arguments(extra: Sequence[str]) -> None:
    """Refuse arguments for tritonserver that the supervisor counts on.

    Raises:
        ConfigurationError: names the argument.
    """
    for argument in extra:
        name = argument.partition("=")[0]
        if name in _OURS:
            raise ConfigurationError(
                f"{name}: set by tetriserve itself (see --http-port, --host, --model-control and "
                "--set supervisor.exit_timeout_s); allowed after --: any other option of tritonserver"
            )
