"""Everything that is decided before a server starts: the working folder, the commands, the environment."""

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tetriserve_backend.cli.launcher.command import check_extra_arguments, server_command
from tetriserve_backend.cli.launcher.environment import own_import_path, server_environment
from tetriserve_backend.cli.launcher.installation import TritonInstallation, find_installation, find_libpython_dir
from tetriserve_backend.cli.launcher.ports import Endpoints
from tetriserve_backend.cli.launcher.processes import Run
from tetriserve_backend.cli.launcher.repository import (
    MODELS,
    SERVED_PREFIX,
    find_model_repository,
    render_repository,
    triton_name,
)
from tetriserve_backend.cli.launcher.server_process import TritonServer
from tetriserve_backend.triton_adapter.settings import CLOSABLE_APIS, ServerSettings


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """How to start the server, any number of times.

    Attributes:
        run: what belongs to this `tetriserve serve`.
        control_token: the secret of `op=drain`.
        is_explicit: whether models can be loaded and unloaded while the server runs.
        import_path: folders to import our packages from.
        log_path: where the server's output goes; None leaves it on the terminal.
    """

    run: Run
    installation: TritonInstallation
    settings: ServerSettings
    endpoints: Endpoints
    environment: dict[str, str]
    control_token: str
    is_explicit: bool
    import_path: tuple[str, ...]
    extra_arguments: tuple[str, ...]
    log_path: Path | None

    def make_server(self, start_index: int) -> TritonServer:
        """A server that has not been started; each start has shared memory and a secret of its own."""
        command = server_command(
            self.installation.server,
            backend_dir=self.run.working_dir / "backends",
            repository=self.run.working_dir / "model_repository",
            endpoints=self.endpoints,
            shm_prefix=f"{self.run.shm_prefix}{start_index}-",
            exit_timeout_s=self.settings.supervisor.exit_timeout_s,
            closed_apis=self._closed_apis(),
            # Nobody needs to know it.
            secret=secrets.token_hex(16),
            explicit_models=self._models() if self.is_explicit else (),
            extra=self.extra_arguments,
        )
        # A model that is unloaded takes its stub along, and that is nobody's death.
        mortal = f"/{SERVED_PREFIX}" if self.is_explicit else None
        return TritonServer(command, self.environment, self.run.working_dir, self.log_path, mortal)

    def _closed_apis(self) -> list[str]:
        is_open = set[str](self.settings.supervisor.open_apis)
        if self.endpoints.is_loopback or not self.is_explicit:
            is_open.add("model-repository")
        return [name for name in CLOSABLE_APIS if name not in is_open]

    def _models(self) -> tuple[str, ...]:
        return (*MODELS, *(triton_name(model.name) for model in self.settings.served_models))


def make_plan(
    settings: ServerSettings,
    endpoints: Endpoints,
    extra_arguments: Sequence[str] = (),
    log_path: Path | None = None,
    *,
    is_explicit: bool = False,
) -> LaunchPlan:
    """Find a tritonserver and prepare the working folder, which belongs to the caller then.

    Raises:
        ConfigurationError: no usable tritonserver or Python, a broken model repository, or an argument
            for tritonserver that is ours to set.
    """
    check_extra_arguments(extra_arguments)
    installation = find_installation()
    libpython_dir = find_libpython_dir()
    repository = find_model_repository()
    run_id = f"tetriserve-{secrets.token_hex(4)}"
    # A short name: the ranks' sockets lie below it, and the path of a socket may have 107 characters.
    run = Run(run_id, Path(tempfile.mkdtemp(prefix=f"{run_id}-")))
    temporary_dir = run.working_dir / "tmp"
    try:
        temporary_dir.mkdir()
        _assemble_backend(installation, run.working_dir / "backends" / "python")
        render_repository(repository, run.working_dir / "model_repository", settings)
    except BaseException:
        shutil.rmtree(run.working_dir, ignore_errors=True)
        raise
    import_path = own_import_path()
    control_token = secrets.token_hex(16)
    environment = server_environment(
        os.environ,
        library_dirs=(libpython_dir, *installation.library_dirs),
        python_bin=Path(sys.executable).parent,
        import_path=import_path,
        run_id=run_id,
        control_token=control_token,
        temporary_dir=temporary_dir,
    )
    return LaunchPlan(
        run=run,
        installation=installation,
        settings=settings,
        endpoints=endpoints,
        environment=environment,
        control_token=control_token,
        is_explicit=is_explicit,
        import_path=tuple(import_path),
        extra_arguments=tuple(extra_arguments),
        log_path=log_path,
    )


def _assemble_backend(installation: TritonInstallation, folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in installation.backend_files:
        (folder / file.name).symlink_to(file)
