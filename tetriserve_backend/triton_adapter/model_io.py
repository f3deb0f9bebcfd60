"""What all four models do with Triton's objects: read inputs, make outputs, read settings, write the log."""

import json
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tetriserve_backend.domain import InvalidRequestError
from tetriserve_backend.triton_adapter.request_fields import decode_text
from tetriserve_backend.triton_adapter.safe_sender import SafeSender
from tetriserve_backend.triton_adapter.settings import ServerSettings
from tetriserve_backend.triton_adapter.settings_sources import from_parameters
from tetriserve_backend.triton_adapter.stub import pb_utils

_MAX_PARAMETERS_CHARS = 256 * 1024


def read_parameters(args: Mapping[str, str]) -> dict[str, str]:
    """The `parameters` of the model's `config.pbtxt`, as `initialize` is given them."""
    parameters = json.loads(args["model_config"]).get("parameters", {})
    return {name: value["string_value"] for name, value in parameters.items()}


def read_settings(args: Mapping[str, str]) -> ServerSettings:
    """Settings from the `parameters` of the model's `config.pbtxt`, as `initialize` is given them.

    Raises:
        ConfigurationError: a parameter is unknown or wrong.
    """
    return from_parameters(read_parameters(args))


def begin_each(requests: Iterable[Any], begin: Callable[[Any, SafeSender], None]) -> None:
    """Begin each request, whose answers go through its sender; one that cannot begin is answered the error."""
    for request in requests:
        sender = SafeSender(pb_utils, request.get_response_sender())
        try:
            begin(request, sender)
        except Exception as error:
            sender.send_error(error)


def request_id_of(request: Any) -> str:
    """The id that the client gave the request, or a new one.

    Raises:
        InvalidRequestError: it is not UTF-8.
    """
    try:
        return str(request.request_id()) or uuid.uuid4().hex
    except UnicodeDecodeError as error:
        raise _not_utf8("request id", error) from error


def input_tensors(request: Any) -> dict[str, npt.NDArray[Any]]:
    """The inputs that the request has, by name."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def request_parameters(request: Any) -> dict[str, Any]:
    """The request's parameters, by name; the id that `generate` was given is among them.

    Raises:
        InvalidRequestError: a name or a value is not UTF-8, or they are too long to be read.
    """
    try:
        text = request.parameters() or "{}"
    except UnicodeDecodeError as error:
        raise _not_utf8("parameters", error) from error
    if len(text) > _MAX_PARAMETERS_CHARS:
        problem = f"{len(text)} characters as JSON"
        raise InvalidRequestError("parameters", problem, f"at most {_MAX_PARAMETERS_CHARS} characters")
    parameters = json.loads(text)
    return parameters if isinstance(parameters, dict) else {}


def text_input(tensors: Mapping[str, npt.NDArray[Any]], name: str, max_bytes: int, default: str = "") -> str:
    """The text in a STRING input of shape [1], or `default` where there is none.

    Raises:
        InvalidRequestError: another shape, longer than `max_bytes`, or not UTF-8.
    """
    tensor = tensors.get(name)
    if tensor is None:
        return default
    if tensor.shape != (1,):
        raise InvalidRequestError(name, f"shape {list(tensor.shape)}", "shape [1]")
    return decode_text(name, tensor[0], max_bytes)


def text_tensor(name: str, value: str | bytes) -> Any:
    """A STRING tensor of shape [1]."""
    data = value.encode() if isinstance(value, str) else value
    return pb_utils.Tensor(name, np.array([data], dtype=np.object_))


def int_tensor(name: str, value: int) -> Any:
    """An INT32 tensor of shape [1]."""
    return pb_utils.Tensor(name, np.array([value], dtype=np.int32))


def _not_utf8(field: str, error: UnicodeDecodeError) -> InvalidRequestError:
    return InvalidRequestError(field, f"not UTF-8 (byte 0x{error.object[error.start]:02x})", "text in UTF-8")


class TritonLogHandler(logging.Handler):
    """Sends Python's log records to the server's log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        text = f"tetriserve: {self.format(record)}"
        if record.levelno >= logging.ERROR:
            pb_utils.Logger.log_error(text)
        elif record.levelno >= logging.WARNING:
            pb_utils.Logger.log_warn(text)
        else:
            pb_utils.Logger.log_info(text)


def log_to_triton() -> None:
    """Let our packages' log records (from INFO on) appear in the server's log."""
    for name in ("tetriserve_backend", "tetriserve_profiling"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.handlers[:] = [TritonLogHandler()]
