"""How to start another Python of the same environment, whatever kind of process we are in."""

import json
import os
import shutil
import sys
from pathlib import Path

# The import path travels as an argument: the environment variable would also reach processes that are not ours.
_BOOT = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
)


def find_python() -> str:
    """The interpreter of this environment.

    `sys.executable` is not asked first: where Python is embedded in another program it may name
    that program, or the interpreter of another environment.

    Raises:
        FileNotFoundError: there is none.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for name in (version, "python3", "python"):
        candidate = Path(sys.prefix) / "bin" / name
        if os.access(candidate, os.X_OK):
            return str(candidate)
    found = sys.executable or shutil.which(version)
    if not found:
        raise FileNotFoundError(f"no Python interpreter below {sys.prefix}")
    return found


def python_command(module: str) -> list[str]:
    """A command line that runs `module` with the import path of this process; arguments may follow."""
    path = [str(Path(entry).absolute()) for entry in sys.path]
    return [find_python(), "-c", _BOOT.format(module=module), json.dumps(path)]


def child_environment(**changes: str) -> dict[str, str]:
    """This process's environment with `changes`."""
    return {**os.environ, **changes}
