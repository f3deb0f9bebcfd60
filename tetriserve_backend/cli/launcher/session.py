"""A `tetriserve serve` as a child process, for the demo, the tools and the tests."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tetriserve_backend.cli.launcher.environment import own_import_path
from tetriserve_backend.domain import UnavailableError

_POLL_S = 0.1


class ServeSession:
    """Starts `tetriserve serve` on free ports and stops it; a context manager.

    Args:
        arguments: options of `tetriserve serve` besides ports, log and state file.
        folder: gets `serve.log` (what the supervisor says), `triton.log` and `state.json`.
    """

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self._arguments, self._folder = list(arguments), folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The supervisor's process."""
        assert self._process is not None, "start() comes first"
        return self._process

    @property
    def log_path(self) -> Path:
        """What the supervisor says."""
        return self._folder / "serve.log"

    @property
    def triton_log_path(self) -> Path:
        """What tritonserver and the models log."""
        return self._folder / "triton.log"

    def state(self) -> dict[str, Any]:
        """What the state file says now; empty before there is one."""
        try:
            document: dict[str, Any] = json.loads((self._folder / "state.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return document

    @property
    def http_url(self) -> str:
        """Base address of HTTP."""
        return str(self.state()["http_url"])

    @property
    def grpc_url(self) -> str:
        """`host:port` of gRPC."""
        return str(self.state()["grpc_url"])

    @property
    def metrics_url(self) -> str:
        """Address of the metrics."""
        return str(self.state()["metrics_url"])

    def start(self) -> None:
        """Start the child; it is not ready yet."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "state.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "tetriserve_backend.cli.app", "serve"]
        command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
        command += ["--state-file", str(self._folder / "state.json"), "--log-file", str(self.triton_log_path)]
        search = os.pathsep.join([*own_import_path(), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *self._arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": search, "PYTHONUNBUFFERED": "1"},
            )

    def wait_ready(self, timeout_s: float, on_line: Callable[[str], None] = lambda line: None) -> None:
        """Wait until the server answers; `on_line` gets what the supervisor says meanwhile.

        Raises:
            UnavailableError: the supervisor ended or took too long; with the end of its log.
        """
        deadline_s = time.monotonic() + timeout_s
        seen = 0
        while True:
            state = self.state().get("state")
            lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
            for line in lines[seen:]:
                on_line(line)
            seen = len(lines)
            if state == "ready":
                return
            ended = self.process.poll() is not None
            if ended or time.monotonic() > deadline_s:
                tail = "\n".join(lines[-40:])
                problem = f"ended with status {self.process.returncode}" if ended else f"not ready in {timeout_s:g} s"
                raise UnavailableError(f"tetriserve serve {problem}:\n{tail}")
            time.sleep(_POLL_S)

    def stop(self, timeout_s: float = 90.0) -> int:
        """Stop it as a Ctrl-C would; its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def __enter__(self) -> "ServeSession":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
