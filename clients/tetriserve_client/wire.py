"""How requests and answers look as tensors of plain tritonclient."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException

from tetriserve_client.errors import (
    InvalidRequestError,
    ServerFailureError,
    ServerUnavailableError,
    TetriserveClientError,
    error_from_message,
)

FieldValue: TypeAlias = str | int | float | bool

EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"
_FINAL_RESPONSE = "triton_final_response"
_FLOAT_FIELDS = frozenset({"guidance_scale", "latency_threshold"})
_INT64 = np.iinfo(np.int64)


@dataclass(frozen=True, slots=True)
class Reply:
    """One response of a stream.

    `metadata` is None in a response that only says that the stream is over. `image` is a preview in progress
    responses, or empty.
    """

    image: bytes
    step: int
    metadata: Mapping[str, Any] | None
    final: bool


def tensors(fields: Mapping[str, FieldValue]) -> list[Any]:
    """One tensor of shape [1] per field, of the type that the server declares for it.

    Raises:
        InvalidRequestError: a number does not fit its tensor.
    """
    return [_tensor(name, value) for name, value in fields.items()]


def _tensor(name: str, value: FieldValue) -> Any:
    if isinstance(value, str):
        datatype, array = "BYTES", np.array([value.encode()], dtype=np.object_)
    elif isinstance(value, bool):
        datatype, array = "BOOL", np.array([value])
    elif name in _FLOAT_FIELDS:
        datatype, array = "FP32", np.array([value], dtype=np.float32)
    else:
        # numpy 1 would wrap it around without a word.
        if not _INT64.min <= value <= _INT64.max:
            raise InvalidRequestError(f"{name}: got {value}; allowed: what fits INT64")
        datatype, array = "INT64", np.array([value], dtype=np.int64)
    tensor = InferInput(name, [1], datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def read_reply(result: Any) -> Reply:
    """What one response says. Outputs that it lacks read as empty."""
    parameters = result.get_response().parameters
    final = _FINAL_RESPONSE in parameters and bool(parameters[_FINAL_RESPONSE].bool_param)
    text = _first(result, "metadata")
    return Reply(
        image=_first(result, "image") or b"",
        step=int(_first(result, "step") or 0),
        metadata=read_metadata(text) if text else None,
        final=final,
    )


def read_metadata(text: str | bytes) -> dict[str, Any]:
    """The JSON object that `metadata` holds.

    Raises:
        ServerFailureError: it holds something else.
    """
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise ServerFailureError(f"the server's metadata is not JSON: {text[:200]!r}") from error
    if not isinstance(metadata, dict):
        raise ServerFailureError(f"the server's metadata is not a JSON object: {text[:200]!r}")
    return metadata


def _first(result: Any, name: str) -> Any:
    array = result.as_numpy(name)
    return None if array is None or array.size == 0 else array.flat[0]


def error_of(failure: InferenceServerException, url: str) -> TetriserveClientError:
    """The client's error for an exception of tritonclient."""
    error = error_from_message(str(failure.message()), failure.status())
    if isinstance(error, ServerUnavailableError) and failure.status() == "StatusCode.UNAVAILABLE":
        return ServerUnavailableError(f"no TetriServe server answers at {url} ({failure.message()})")
    return error
