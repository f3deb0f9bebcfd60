"""One tritonserver process and its stubs."""

import resource
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from tetriserve_backend.cli.launcher.processes import stub_processes

_STACK_BYTES = 2**30
"""Triton parses a form-encoded body on the stack of its HTTP thread, two bytes for each of the body's, and one
that does not fit crashes the server. New threads take their stack from this limit (which must not be unlimited:
that means 2 MB to glibc); it costs address space, not memory."""
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
_NEVER_OVERCOMMIT = "2"


class TritonServer:
    """Starts tritonserver in a session of its own, so that a Ctrl-C reaches the supervisor only.

    Args:
        command: program and arguments.
        environment: its whole environment.
        working_dir: its current folder.
        log_path: where its output goes; None leaves it on our own standard output and error.
        mortal: stubs whose command lines hold this may come and go; None if none may.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        working_dir: Path,
        log_path: Path | None,
        mortal: str | None = None,
    ) -> None:
        self._command, self._environment = list(command), dict(environment)
        self._working_dir, self._log_path, self._mortal = working_dir, log_path, mortal
        self._process: subprocess.Popen[bytes] | None = None
        self._stubs: list[psutil.Process] = []

    @property
    def pid(self) -> int | None:
        """Process id, once started."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process; it is not ready yet."""
        soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
        resource.setrlimit(resource.RLIMIT_STACK, (_stack_limit(soft, hard), hard))
        try:
            self._process = self._spawn()
        finally:
            resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))

    def note_stubs(self) -> None:
        """Remember the stubs that are there now, as the ones that must stay."""
        stubs = stub_processes(self.pid) if self.pid is not None else []
        self._stubs = [stub for stub in stubs if not self._may_go(stub)]

    def find_death(self) -> str | None:
        """What of the server is dead; None when all of it lives."""
        status = self.exit_status()
        if status is not None:
            return f"tritonserver ended {describe_exit(status)}"
        for stub in self._stubs:
            if not _is_living(stub):
                return f"stub process {stub.pid} died"
        return None

    def _may_go(self, stub: psutil.Process) -> bool:
        try:
            return self._mortal is not None and any(self._mortal in argument for argument in stub.cmdline())
        except psutil.Error:
            return True

    def exit_status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.poll() if self._process is not None else None

    def terminate(self) -> None:
        """Ask it to end."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended within `timeout_s`."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _spawn(self) -> "subprocess.Popen[bytes]":
        start: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen
        options = {
            "env": self._environment,
            "cwd": self._working_dir,
            "stdin": subprocess.DEVNULL,
            "start_new_session": True,
        }
        if self._log_path is None:
            return start(self._command, **options)
        with self._log_path.open("ab") as log:
            return start(self._command, stdout=log, stderr=subprocess.STDOUT, **options)


def _stack_limit(soft: int, hard: int) -> int:
    """What the server gets: much, unless address space is not to be had for nothing here."""
    is_scarce = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    if is_scarce or (_OVERCOMMIT.exists() and _OVERCOMMIT.read_text().strip() == _NEVER_OVERCOMMIT):
        return soft
    return _STACK_BYTES if hard == resource.RLIM_INFINITY else min(_STACK_BYTES, hard)


def describe_exit(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"with status {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"


def _is_living(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
