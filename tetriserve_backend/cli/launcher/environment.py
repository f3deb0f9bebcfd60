"""The environment that tritonserver and its stubs run in; pure."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tetriserve_backend.cli.launcher.processes import RUN_ID_VARIABLE
from tetriserve_backend.triton_adapter.environment_names import CONTROL_TOKEN_VARIABLE, IMPORT_PATH_VARIABLE

_ARENAS = "2"


def server_environment(
    base: Mapping[str, str],
    *,
    library_dirs: Sequence[Path],
    python_bin: Path,
    import_path: Sequence[str],
    run_id: str,
    control_token: str,
    temporary_dir: Path,
) -> dict[str, str]:
    """`base` with what the stubs need.

    The stub ignores PYTHONPATH and VIRTUAL_ENV: the first `python3` on PATH decides which site-packages
    it sees, and LD_LIBRARY_PATH which libpython it loads.
    """
    environment = dict(base)
    environment["PATH"] = _joined([str(python_bin)], base.get("PATH"))
    environment["LD_LIBRARY_PATH"] = _joined([str(folder) for folder in library_dirs], base.get("LD_LIBRARY_PATH"))
    environment["PYTHONPATH"] = _joined(import_path, base.get("PYTHONPATH"))
    environment[IMPORT_PATH_VARIABLE] = os.pathsep.join(import_path)
    # What a killed process leaves there goes with the working folder.
    environment["TMPDIR"] = str(temporary_dir)
    # By default glibc keeps an arena for each of tritonserver's threads, and each grows to the most that it ever held.
    environment.setdefault("MALLOC_ARENA_MAX", _ARENAS)
    environment[RUN_ID_VARIABLE] = run_id
    environment[CONTROL_TOKEN_VARIABLE] = control_token
    return environment


def own_import_path() -> list[str]:
    """Folders that this process imports our packages from, where they are not in site-packages."""
    packages = ("tetriserve_backend", "tetriserve_profiling")
    return [entry for entry in sys.path if entry and any((Path(entry) / name).is_dir() for name in packages)]


def _joined(first: Sequence[str], rest: str | None) -> str:
    return os.pathsep.join([*first, *([rest] if rest else [])])
