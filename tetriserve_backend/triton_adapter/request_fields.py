"""Checks what a client sent, field by field, and fills in the defaults; pure."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from tetriserve_backend.domain import PIXELS_PER_TOKEN_SIDE, InvalidRequestError
from tetriserve_backend.triton_adapter.image_format import ImageFormat
from tetriserve_backend.triton_adapter.request_spec import RequestSpec
from tetriserve_backend.triton_adapter.settings import RequestDefaults

_T = TypeVar("_T")
_INT32_MAX: Final = 2**31 - 1
_SEED_MAX: Final = 2**63 - 1
_MAX_REQUEST_ID_CHARS: Final = 256
_GUIDANCE_MAX: Final = 100.0
_LATENCY_MAX_S: Final = 86400.0

PROBE_PARAMETER: Final = "tetriserve_probe"
"""A request with this parameter asks every model on its way whether it lives, and makes no image."""

# What Triton itself puts among the parameters: `id` from the JSON of `generate`, the rest from clients' options.
_TRITON_PARAMETERS: Final = frozenset(
    {"id", "binary_data_output", "triton_enable_empty_final_response", "sequence_id", "sequence_start", "sequence_end"}
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A tensor's type as Triton names it, and the NumPy kinds that it arrives as."""

    triton_name: str
    numpy_kinds: str


TEXT: Final = Kind("STRING", "OSU")
INT: Final = Kind("INT32 or INT64", "iu")
FLOAT: Final = Kind("FP32", "f")
BOOL: Final = Kind("BOOL", "b")

FIELD_KINDS: Final[Mapping[str, Kind]] = {
    "prompt": TEXT,
    "negative_prompt": TEXT,
    "height": INT,
    "width": INT,
    "num_inference_steps": INT,
    "guidance_scale": FLOAT,
    "seed": INT,
    "latency_threshold": FLOAT,
    "output_format": TEXT,
    "stream_progress": BOOL,
    "base64": BOOL,
}
"""The public inputs, in the order in which they are documented."""


def check_parameters(parameters: Iterable[str], ignored: Iterable[str]) -> None:
    """Refuse request parameters that nobody reads: mostly a misspelt input name in the JSON of `generate`.

    Raises:
        InvalidRequestError: names the parameter and the inputs there are.
    """
    unknown = sorted(set(parameters) - _TRITON_PARAMETERS - set(ignored))
    if unknown:
        raise InvalidRequestError(unknown[0], "unknown parameter", f"the inputs {', '.join(FIELD_KINDS)}")


def build_spec(
    tensors: Mapping[str, npt.NDArray[Any]],
    defaults: RequestDefaults,
    request_id: str,
    arrival_s: float,
    draw_seed: Callable[[], int],
) -> RequestSpec:
    """A complete, valid request from input tensors of shape [1] each.

    Raises:
        InvalidRequestError: the first field that is wrong, its value and what is allowed.
    """
    values = {name: _scalar(name, tensor) for name, tensor in tensors.items()}

    def given(name: str, default: _T, check: Callable[[str, Any], _T]) -> _T:
        return check(name, values[name]) if name in values else default

    def steps(name: str, value: int) -> int:
        return _int_in(name, value, 1, defaults.max_num_inference_steps)

    if "prompt" not in values:
        raise InvalidRequestError("prompt", "missing", "a text that is not empty")
    return RequestSpec(
        request_id=_checked_id(request_id),
        prompt=_checked_prompt(values["prompt"], defaults.max_prompt_chars),
        negative_prompt=given(
            "negative_prompt", "", lambda name, value: _short_text(name, value, defaults.max_prompt_chars)
        ),
        height=given("height", defaults.height, _side),
        width=given("width", defaults.width, _side),
        num_inference_steps=given("num_inference_steps", defaults.num_inference_steps, steps),
        guidance_scale=given("guidance_scale", defaults.guidance_scale, _guidance),
        seed=_int_in("seed", values["seed"], 0, _SEED_MAX) if "seed" in values else draw_seed(),
        latency_threshold=given("latency_threshold", defaults.latency_threshold, _latency),
        output_format=given("output_format", defaults.output_format, _format),
        stream_progress=given("stream_progress", False, lambda _, value: bool(value)),
        is_base64=given("base64", True, lambda _, value: bool(value)),
        arrival_s=arrival_s,
    )


def decode_text(name: str, value: bytes | str) -> str:
    """Text from what Triton holds of a STRING.

    Raises:
        InvalidRequestError: not UTF-8.
    """
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 (byte 0x{value[error.start]:02x} at position {error.start})"
        raise InvalidRequestError(name, problem, "text in UTF-8") from error


def _scalar(name: str, tensor: npt.NDArray[Any]) -> Any:
    kind = FIELD_KINDS[name]
    if tensor.shape != (1,):
        raise InvalidRequestError(name, f"shape {list(tensor.shape)}", "shape [1]")
    if tensor.dtype.kind not in kind.numpy_kinds:
        raise InvalidRequestError(name, f"data type {np.dtype(tensor.dtype).name}", kind.triton_name)
    value = tensor[0]
    if kind is TEXT:
        return decode_text(name, value)
    # By its shortest text, so that 4.2 sent as FP32 is 4.2 in the metadata, not 4.199999809265137.
    return float(str(value)) if kind is FLOAT else value.item()


def _short_text(name: str, text: str, max_chars: int) -> str:
    if len(text) > max_chars:
        raise InvalidRequestError(name, f"{len(text)} characters", f"at most {max_chars} characters")
    if "\0" in text:
        raise InvalidRequestError(name, "contains a NUL character", "text without NUL characters")
    return text


def _checked_prompt(text: str, max_chars: int) -> str:
    if not text.strip():
        raise InvalidRequestError("prompt", "empty", f"1 to {max_chars} characters that are not all blank")
    return _short_text("prompt", text, max_chars)


def _checked_id(request_id: str) -> str:
    if len(request_id) > _MAX_REQUEST_ID_CHARS:
        raise InvalidRequestError("request id", f"{len(request_id)} characters", f"at most {_MAX_REQUEST_ID_CHARS}")
    return request_id


def _int_in(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise InvalidRequestError(name, f"got {value}", f"{low} to {high}")
    return value


def _side(name: str, value: int) -> int:
    if value % PIXELS_PER_TOKEN_SIDE or not 0 < value <= _INT32_MAX:
        raise InvalidRequestError(name, f"got {value}", f"a positive multiple of {PIXELS_PER_TOKEN_SIDE} pixels")
    return value


def _guidance(name: str, value: float) -> float:
    if not (math.isfinite(value) and 0.0 <= value <= _GUIDANCE_MAX):
        raise InvalidRequestError(name, f"got {value}", f"a number from 0 to {_GUIDANCE_MAX:g}")
    return value


def _latency(name: str, value: float) -> float:
    if not (math.isfinite(value) and 0.0 < value <= _LATENCY_MAX_S):
        raise InvalidRequestError(name, f"got {value}", f"seconds, more than 0 and at most {_LATENCY_MAX_S:g}")
    return value


def _format(name: str, text: str) -> ImageFormat:
    try:
        return ImageFormat(text)
    except ValueError as error:
        allowed = ", ".join(image_format.value for image_format in ImageFormat)
        raise InvalidRequestError(name, f"got '{text[:40]}'", allowed) from error
