"""Requests by plain HTTP and plain gRPC, as far from our own client library as possible."""

import http.client
import json
import queue
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from tritonclient import grpc as triton

TIMEOUT_S = 60.0
TYPES = {
    "height": "INT64",
    "width": "INT64",
    "num_inference_steps": "INT64",
    "guidance_scale": "FP32",
    "max_sequence_length": "INT64",
    "num_images": "INT64",
    "seed": "INT64",
    "latency_threshold": "FP32",
    "base64": "BOOL",
    "stream_progress": "BOOL",
    "preview": "BOOL",
}
_DTYPES = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "BOOL": np.bool_, "BYTES": np.object_}


@dataclass(frozen=True)
class HttpAnswer:
    status: int
    body: dict[str, Any]

    @property
    def error(self) -> str:
        return str(self.body.get("error", ""))

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(json.loads(self.body["metadata"]))


def post(url: str, path: str, body: dict[str, Any] | bytes, timeout_s: float = TIMEOUT_S) -> HttpAnswer:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout_s)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return HttpAnswer(response.status, json.loads(response.read() or b"{}"))
    finally:
        connection.close()


def generate(
    url: str, body: dict[str, Any] | bytes, model: str = "tetriserve", timeout_s: float = TIMEOUT_S
) -> HttpAnswer:
    return post(url, f"/v2/models/{model}/generate", body, timeout_s)


def infer(
    url: str, fields: dict[str, Any], request_id: str = "", parameters: dict[str, Any] | None = None
) -> HttpAnswer:
    inputs = [
        {"name": name, "shape": [1], "datatype": TYPES.get(name, "BYTES"), "data": [value]}
        for name, value in fields.items()
    ]
    body: dict[str, Any] = {"inputs": inputs}
    if request_id:
        body["id"] = request_id
    if parameters:
        body["parameters"] = parameters
    return post(url, "/v2/models/tetriserve_infer/infer", body)


def tensor(name: str, value: Any, datatype: str | None = None, shape: tuple[int, ...] = (1,)) -> Any:
    """An input tensor filled with `value`, also one that the server must refuse."""
    datatype = datatype or TYPES.get(name, "BYTES")
    if datatype == "BYTES":
        value = value.encode() if isinstance(value, str) else value
    made = triton.InferInput(name, list(shape), datatype)
    made.set_data_from_numpy(np.full(shape, value, dtype=_DTYPES[datatype]))
    return made


def stream(
    url: str,
    tensors: list[Any],
    model: str = "tetriserve",
    request_id: str = "",
    parameters: dict[str, Any] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> tuple[list[Any], str]:
    """All responses of one gRPC stream that carry outputs, and the error that ended it, if any."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    results: list[Any] = []
    with triton.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer(
            model, tensors, request_id=request_id, parameters=parameters, enable_empty_final_response=True
        )
        while True:
            result, error = answers.get(timeout=timeout_s)
            if error is not None:
                return results, str(error)
            response = result.get_response()
            if response.outputs:
                results.append(result)
            if response.parameters["triton_final_response"].bool_param:
                return results, ""


def metadata(result: Any) -> dict[str, Any]:
    return dict(json.loads(result.as_numpy("metadata")[0]))


class Background:
    """Runs a call in a thread; `result()` waits for it and fails if it hangs."""

    def __init__(self, call: Any, *args: Any, **kwargs: Any) -> None:
        self._outcome: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call, args, kwargs), daemon=True)
        self._thread.start()

    def _run(self, call: Any, args: Any, kwargs: Any) -> None:
        try:
            self._outcome = call(*args, **kwargs)
        except BaseException as error:
            self._error = error

    def result(self, timeout_s: float = TIMEOUT_S) -> Any:
        """What the call returned, or the exception that it raised."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "a client hangs"
        return self._error if self._error is not None else self._outcome
