"""Reads what a client sent from tensors and parameters, and fills in the defaults; pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tetriserve_backend.domain import InvalidRequestError
from tetriserve_backend.triton_adapter.request_checks import SHOWN_CHARS, checked_spec, max_text_bytes
from tetriserve_backend.triton_adapter.request_spec import RequestSpec
from tetriserve_backend.triton_adapter.settings import RequestDefaults

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
INT: Final = Kind("INT64", "iu")
FLOAT: Final = Kind("FP32", "f")
BOOL: Final = Kind("BOOL", "b")

FIELD_KINDS: Final[Mapping[str, Kind]] = {
    "prompt": TEXT,
    "negative_prompt": TEXT,
    "model": TEXT,
    "height": INT,
    "width": INT,
    "num_inference_steps": INT,
    "guidance_scale": FLOAT,
    "max_sequence_length": INT,
    "num_images": INT,
    "seed": INT,
    "latency_threshold": FLOAT,
    "output_format": TEXT,
    "base64": BOOL,
    "stream_progress": BOOL,
    "preview": BOOL,
}
"""The public inputs, in the order in which they are documented."""


def check_parameters(parameters: Iterable[str], ignored: Iterable[str]) -> None:
    """Refuse request parameters that nobody reads: mostly a misspelt input name in the JSON of `generate`.

    Raises:
        InvalidRequestError: names the parameter and the inputs there are.
    """
    unknown = sorted(set(parameters) - _TRITON_PARAMETERS - set(ignored))
    if unknown:
        raise InvalidRequestError(unknown[0][:SHOWN_CHARS], "unknown parameter", f"the inputs {', '.join(FIELD_KINDS)}")


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
    max_bytes = max_text_bytes(defaults)
    given = {name: _scalar(name, tensor, max_bytes) for name, tensor in tensors.items()}
    if "prompt" not in given:
        raise InvalidRequestError("prompt", "missing", "a text that is not empty")
    values: dict[str, object] = {
        "request_id": request_id,
        "negative_prompt": "",
        "model": defaults.model,
        "height": defaults.height,
        "width": defaults.width,
        "num_inference_steps": defaults.num_inference_steps,
        "guidance_scale": defaults.guidance_scale,
        "max_sequence_length": None,
        "num_images": 1,
        "latency_threshold": defaults.latency_threshold,
        "output_format": defaults.output_format,
        "stream_progress": False,
        "preview": False,
        "is_base64": given.pop("base64", True),
        "arrival_s": arrival_s,
        **given,
    }
    if "seed" not in values:
        values["seed"] = draw_seed()
    return checked_spec(values, defaults, arrival_s)


def decode_text(name: str, value: bytes | str, max_bytes: int) -> str:
    """Text from what Triton holds of a STRING.

    Raises:
        InvalidRequestError: longer than `max_bytes`, or not UTF-8.
    """
    if len(value) > max_bytes:
        raise InvalidRequestError(name, f"{len(value)} bytes", f"at most {max_bytes} bytes")
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 (byte 0x{value[error.start]:02x} at position {error.start})"
        raise InvalidRequestError(name, problem, "text in UTF-8") from error


def _scalar(name: str, tensor: npt.NDArray[Any], max_bytes: int) -> Any:
    kind = FIELD_KINDS[name]
    if tensor.shape != (1,):
        raise InvalidRequestError(name, f"shape {list(tensor.shape)}", "shape [1]")
    if tensor.dtype.kind not in kind.numpy_kinds:
        raise InvalidRequestError(name, f"data type {np.dtype(tensor.dtype).name}", kind.triton_name)
    value = tensor[0]
    if kind is TEXT:
        return decode_text(name, value, max_bytes)
    # By its shortest text, so that 4.2 sent as FP32 is 4.2 in the metadata, not 4.199999809265137.
    return float(str(value)) if kind is FLOAT else value.item()
