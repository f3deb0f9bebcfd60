"""Directories that a process of its own makes, since nothing else in the caller's needs the libraries."""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tetriserve_backend.domain import ConfigurationError, TetriserveError
from tetriserve_backend.executor.python_process import child_environment, python_command

_TIMEOUT_S: Final = 300.0
_EXIT_TOLD: Final = 2
"""By which the process says that the last line on its standard error is the reason; that of argparse, too."""


def have_made(module: str, name: str, directory: Path, called: str) -> None:
    """Let a process run `module`, whose main calls `make_as_told`.

    Args:
        module: to run.
        name: of what to make.
        directory: to make.
        called: what errors call it.

    Raises:
        ConfigurationError: it could not be made; says why, in one line where the process knew.
    """
    failed = f"{called} could not be made in {directory}"
    try:
        result = subprocess.run(
            [*python_command(module), name, str(directory)],
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"{failed}: {error}") from error
    if result.returncode != 0 or not directory.is_dir():
        told = result.stderr.decode(errors="replace").strip()
        # Libraries may have warned before.
        reason = told.splitlines()[-1] if told and result.returncode == _EXIT_TOLD else told[-2000:]
        raise ConfigurationError(f"{failed}: {reason or f'exit status {result.returncode}'}")


def make_as_told(make: Callable[[str, Path], None]) -> None:
    """The main of such a process: make what is named first at the path given second."""
    parser = argparse.ArgumentParser(description=make_as_told.__doc__)
    parser.add_argument("name")
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    try:
        make(arguments.name, arguments.directory)
    except OSError as error:
        reason = error.strerror or str(error)
        print(f"{reason}; fix: let TETRISERVE_HOME name a folder that can be written and has room", file=sys.stderr)
        sys.exit(_EXIT_TOLD)
    except TetriserveError as error:
        print(error, file=sys.stderr)
        sys.exit(_EXIT_TOLD)


@contextmanager
def complete_or_not_at_all(directory: Path) -> Iterator[Path]:
    """A new folder that becomes `directory` at the end, unless somebody else was faster.

    Raises:
        OSError: it cannot be made.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)
        unfinished.rename(directory)
    except OSError:
        # A rename never replaces a directory with something in it.
        if not directory.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
