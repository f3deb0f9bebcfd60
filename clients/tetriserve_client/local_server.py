"""A server of one's own: `tetriserve serve` as a child process, for demonstrations, load runs and tests."""

import ctypes
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tetriserve_client.errors import ServerFailureError, TetriserveClientError
from tetriserve_client.sync import TetriserveClient

SERVE_COMMAND = (sys.executable, "-m", "tetriserve_backend.cli.app", "serve")
"""Started by name: the command line is the contract, nothing of the server is imported."""

_POLL_S = 0.2
_LOG_TAIL_LINES = 15
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class LocalPorts:
    """Three free ports of the loopback interface."""

    http: int
    grpc: int
    metrics: int

    @classmethod
    def free(cls) -> "LocalPorts":
        """Ports that were free a moment ago."""
        holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        ports = [holder.getsockname()[1] for holder in holders]
        for holder in holders:
            holder.close()
        return cls(*ports)


class LocalServer:
    """Starts a server, waits until it serves, and stops it; use with `with`.

    Args:
        log_path: file that takes everything the server prints.
        options: further options of `tetriserve serve`.
        start_timeout_s: how long the start may take; the first one also builds the demo model and measures
            its latency table.
        stop_timeout_s: how long a stop may take before the process is killed.
        on_wait: called several times a second during the start, with the newest line of the log.
    """

    def __init__(
        self,
        log_path: Path,
        options: Sequence[str] = (),
        *,
        start_timeout_s: float = 240.0,
        stop_timeout_s: float = 60.0,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        self._log_path, self._options = log_path, tuple(options)
        self._start_timeout_s, self._stop_timeout_s = start_timeout_s, stop_timeout_s
        self._on_wait = on_wait or (lambda _: None)
        self._process: subprocess.Popen[bytes] | None = None
        self.ports = LocalPorts.free()

    @property
    def grpc_url(self) -> str:
        """Where gRPC clients go."""
        return f"127.0.0.1:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """Where HTTP clients go."""
        return f"http://127.0.0.1:{self.ports.http}"

    def __enter__(self) -> "LocalServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and return when it serves.

        Raises:
            ServerFailureError: it ended or was not ready in time; the message holds the end of its log.
        """
        ports = ("--http-port", str(self.ports.http), "--grpc-port", str(self.ports.grpc))
        command = (*SERVE_COMMAND, *ports, "--metrics-port", str(self.ports.metrics), *self._options)
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the caller, who then stops the server in its own time.
                start_new_session=True,
                preexec_fn=_stop_with_parent,  # noqa: PLW1509 - the child makes one system call
            )
        try:
            self._wait_until_serving(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> int:
        """Ask the server to end, wait for it, and kill it if it does not; its exit status. Idempotent."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(self._stop_timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _wait_until_serving(self, process: "subprocess.Popen[bytes]") -> None:
        give_up_s = time.monotonic() + self._start_timeout_s
        client = TetriserveClient(self.grpc_url)
        while time.monotonic() < give_up_s:
            if process.poll() is not None:
                raise ServerFailureError(f"the server ended with status {process.returncode}:\n{self._log_tail()}")
            try:
                client.status()
            except TetriserveClientError:
                self._on_wait(self._log_tail(1))
                time.sleep(_POLL_S)
            else:
                return
        raise ServerFailureError(f"the server was not ready within {self._start_timeout_s:g} s:\n{self._log_tail()}")

    def _log_tail(self, lines: int = _LOG_TAIL_LINES) -> str:
        text = self._log_path.read_text(encoding="utf-8", errors="replace")
        return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def _stop_with_parent() -> None:
    # However the caller dies, the server is asked to end.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
