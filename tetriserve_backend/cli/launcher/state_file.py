"""A small JSON file by which programs follow a supervisor."""

import json
import os
from pathlib import Path

from tetriserve_backend.cli.launcher.ports import Endpoints
from tetriserve_backend.cli.launcher.processes import Run


class StateFile:
    """Written whole at every change of state, so that a reader never sees a part.

    Args:
        path: where; None writes nothing.
    """

    def __init__(self, path: Path | None, run: Run, endpoints: Endpoints) -> None:
        self._path, self._run, self._endpoints = path, run, endpoints

    def write(self, state: str, server_pid: int | None = None, restarts: int = 0) -> None:
        """`state` is starting, ready, restarting, stopping or stopped."""
        if self._path is None:
            return
        document = {
            "state": state,
            "supervisor_pid": os.getpid(),
            "server_pid": server_pid,
            "restarts": restarts,
            "run_id": self._run.run_id,
            "shm_prefix": self._run.shm_prefix,
            "working_dir": str(self._run.working_dir),
            "http_url": self._endpoints.http_url,
            "grpc_url": self._endpoints.grpc_url,
            "metrics_url": self._endpoints.metrics_url,
        }
        scratch = self._path.with_name(f"{self._path.name}.tmp")
        scratch.write_text(json.dumps(document) + "\n", encoding="utf-8")
        scratch.replace(self._path)
