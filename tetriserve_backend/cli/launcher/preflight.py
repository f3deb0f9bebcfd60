"""What can be known to be wrong before anything is started."""

from collections.abc import Mapping
from pathlib import Path

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.scheduler.registry import check_policy_name
from tetriserve_backend.triton_adapter.settings import ServerSettings


def check_before_start(settings: ServerSettings, files: Mapping[str, Path | None]) -> None:
    """Refuse a policy that does not exist, latency tables that cannot be read, and files that cannot be written.

    Args:
        settings: of the server.
        files: those that will be written, by the option that names them.

    Raises:
        ConfigurationError: names the setting or the option.
        LatencyTableError: a latency table that the settings name is missing or broken.
    """
    check_policy_name(settings.scheduler.policy, settings.executor.world_size)
    for model in settings.served_models:
        for table in (model.latency_table, model.model.pace_table):
            if table is not None:
                LatencyTable.load(table)
    timeline = Path(settings.timeline) if settings.timeline else None
    for option, path in {**files, "timeline": timeline}.items():
        if path is not None:
            _check_writable(option, path)


def _check_writable(option: str, path: Path) -> None:
    existed = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        raise ConfigurationError(f"{option} {path}: {error.strerror}; allowed: a file that can be written") from error
