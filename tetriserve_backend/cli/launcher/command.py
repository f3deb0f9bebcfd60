"""The command line of tritonserver; pure."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from tetriserve_backend.cli.launcher.ports import Endpoints
from tetriserve_backend.domain import ConfigurationError

_STUB_TIMEOUT_S = 120
_RESTRICTING_OPTIONS = ("--http-restricted-api", "--grpc-restricted-protocol")
_SECRET_HEADER = "supervisor.open_apis"
"""Triton tells a refused client the header that it misses, so the name tells how an API is opened."""
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
    closed_apis: Sequence[str],
    secret: str,
    explicit_models: Sequence[str] = (),
    extra: Sequence[str] = (),
) -> list[str]:
    """Arguments that start `server`; `extra` comes last, so that what an operator says wins.

    With `explicit_models` only these are loaded at the start, and models can be loaded and unloaded later.
    `closed_apis` answer only those who know `secret`.
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
        *_restrictions(closed_apis, secret, extra),
        *extra,
    ]


def _restrictions(closed_apis: Iterable[str], secret: str, extra: Sequence[str]) -> list[str]:
    """Options that close APIs on both endpoints; Triton wants each named once, so an operator's own words win."""
    options = []
    for option in _RESTRICTING_OPTIONS:
        taken = _apis_of(option, extra)
        names = [name for name in closed_apis if name not in taken]
        if names:
            options.append(f"{option}={','.join(names)}:{_SECRET_HEADER}={secret}")
    return options


def _apis_of(option: str, arguments: Sequence[str]) -> set[str]:
    """The APIs that `arguments` restrict by `option`, whether its value is part of it or the next argument."""
    values = [argument.removeprefix(f"{option}=") for argument in arguments if argument.startswith(f"{option}=")]
    values += [value for name, value in pairwise(arguments) if name == option]
    return {name.strip() for value in values for name in value.partition(":")[0].split(",")}


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
