"""A small process that cleans up after a supervisor that was killed.

Run as `python -m tetriserve_backend.cli.launcher.reaper RUN_ID WORKING_DIR`; it holds the other end of a
pipe of the supervisor in its standard input and acts when that ends, however the supervisor does.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from tetriserve_backend.cli.launcher.processes import RUN_ID_VARIABLE, Run, clean_up

_STOPPED_TIMEOUT_S = 15.0


class Reaper:
    """The supervisor's side: starts the reaper and keeps the pipe."""

    def __init__(self, run: Run, import_path: Sequence[str]) -> None:
        self._run, self._import_path = run, import_path
        self._process: subprocess.Popen[bytes] | None = None

    def ensure(self) -> None:
        """Start the reaper if it is not running."""
        if self._process is not None and self._process.poll() is None:
            return
        environment = {key: value for key, value in os.environ.items() if key != RUN_ID_VARIABLE}
        environment["PYTHONPATH"] = os.pathsep.join(self._import_path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, self._run.run_id, str(self._run.working_dir)],
            stdin=subprocess.PIPE,
            env=environment,
            cwd="/",
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """Let the reaper do its work and wait until it is gone."""
        if self._process is None:
            return
        pipe: IO[bytes] | None = self._process.stdin
        if pipe is not None:
            pipe.close()
        self._process.wait(_STOPPED_TIMEOUT_S)


def main(arguments: Sequence[str]) -> int:
    """Wait for the end of standard input, then clean up."""
    run_id, working_dir = arguments
    # A Ctrl-C or a shutdown of the machine reaches us too; the end of the pipe comes after it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    return 1 if clean_up(Run(run_id, Path(working_dir))) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
