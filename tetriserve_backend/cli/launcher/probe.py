"""Asks a running server whether it really answers: Triton says ready even when a stub is dead."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tetriserve_backend.cli.launcher.ports import Endpoints
from tetriserve_backend.triton_adapter.request_fields import PROBE_PARAMETER

_PROBE = {PROBE_PARAMETER: True}
_FRONT_PROBE = {
    "inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["probe"]}],
    "parameters": _PROBE,
}


class ProbeError(Exception):
    """The server did not answer as it should; the message says how."""


@dataclass(frozen=True, slots=True)
class ServerClient:
    """The few HTTP calls that a supervisor needs."""

    endpoints: Endpoints

    def is_ready(self, timeout_s: float = 1.0) -> bool:
        """Whether Triton has loaded every model."""
        try:
            return self._request("GET", "/v2/health/ready", None, timeout_s)[0] == http.client.OK
        except ProbeError:
            return False

    def probe(self, timeout_s: float) -> dict[str, Any]:
        """Pass a request through all models, without making an image; the engine's status.

        Raises:
            ProbeError: no answer within `timeout_s`, an error, or an engine that failed.
        """
        deadline_s = time.monotonic() + timeout_s
        answer = self._post("/v2/models/tetriserve/generate", {"prompt": "probe", "parameters": _PROBE}, timeout_s)
        status: dict[str, Any] = json.loads(answer["metadata"])
        if status.get("state") == "failed":
            raise ProbeError(f"the engine failed: {status.get('failure')}")
        left_s = max(0.1, deadline_s - time.monotonic())
        self._post("/v2/models/tetriserve_infer/infer", _FRONT_PROBE, left_s)
        return status

    def drain(self, control_token: str, timeout_s: float) -> None:
        """Refuse new requests and wait until the running ones are done.

        Raises:
            ProbeError: not drained within `timeout_s`.
        """
        self._post("/v2/models/denoise/generate", {"op": "drain", "target": control_token}, timeout_s)

    def _post(self, path: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        status, payload = self._request("POST", path, json.dumps(body), timeout_s)
        try:
            answer = json.loads(payload)
        except ValueError as error:
            raise ProbeError(f"{path}: {status}, not JSON") from error
        if status != http.client.OK or "error" in answer:
            raise ProbeError(f"{path}: {status} {answer.get('error')}")
        return dict(answer)

    def _request(self, method: str, path: str, body: str | None, timeout_s: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(
            self.endpoints.local_host, self.endpoints.http_port, timeout=max(0.05, timeout_s)
        )
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", "Connection": "close"})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ProbeError(f"{path}: {error or type(error).__name__}") from error
        finally:
            connection.close()


class RankWatch:
    """Tells when no rank has been usable for too long: such a server answers its probes but makes no image.

    Args:
        timeout_s: how long that may last; a lost rank needs some time to load its model anew.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._since_s: float | None = None

    def check(self, status: Mapping[str, Any], now_s: float) -> None:
        """Take note of what `op=status` told.

        Raises:
            ProbeError: no rank has been usable for longer than the timeout.
        """
        if status.get("ranks"):
            self._since_s = None
            return
        self._since_s = now_s if self._since_s is None else self._since_s
        if now_s - self._since_s > self._timeout_s:
            raise ProbeError(f"no rank has been usable for more than {self._timeout_s:g} s")


class ProbeLoop:
    """Probes in a thread of its own, so that a slow answer holds nobody up.

    Args:
        probe: one probe; raises `ProbeError`.
        interval_s: pause between two probes.
        max_failures: failures in a row that make the server unhealthy.
    """

    def __init__(self, probe: Callable[[], object], interval_s: float, max_failures: int) -> None:
        self._probe, self._interval_s, self._max_failures = probe, interval_s, max_failures
        self._is_stopping = threading.Event()
        self._unhealthy: str | None = None
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)

    @property
    def unhealthy(self) -> str | None:
        """Why the server counts as dead; None while it does not."""
        return self._unhealthy

    def start(self) -> None:
        """Begin to probe."""
        self._thread.start()

    def stop(self) -> None:
        """Stop probing; does not wait for a probe in progress."""
        self._is_stopping.set()

    def _run(self) -> None:
        failures = 0
        while not self._is_stopping.wait(self._interval_s):
            try:
                self._probe()
                failures = 0
            except ProbeError as error:
                failures += 1
                if failures >= self._max_failures:
                    self._unhealthy = f"{failures} probes in a row failed, the last with: {error}"
                    return
