"""What each field of a request may be: the one place that knows, whatever way the request took; pure."""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from tetriserve_backend.domain import PIXELS_PER_TOKEN_SIDE, InvalidRequestError
from tetriserve_backend.triton_adapter.image_format import ImageFormat
from tetriserve_backend.triton_adapter.request_spec import UNIT_MARK, RequestSpec
from tetriserve_backend.triton_adapter.settings import GUIDANCE_MAX, LATENCY_MAX_S, RequestDefaults

_SIDE_MAX: Final = 2**31 - 1
_SEED_MAX: Final = 2**63 - 1
_MAX_REQUEST_ID_CHARS: Final = 256
_MAX_MODEL_CHARS: Final = 256
_MAX_TEXT_TOKENS: Final = 512
_UNIT_ID: Final = re.compile(rf"{UNIT_MARK}\d+\Z")
SHOWN_CHARS: Final = 40
"""So much of a text that a client sent stands in an error."""
_ESCAPED_CHAR_BYTES: Final = 12
_OTHER_FIELDS_BYTES: Final = 16 * 1024

Check = Callable[[str, object, RequestDefaults], Any]
"""Gives the value of a field as `RequestSpec` holds it, or raises `InvalidRequestError`."""


def checked_spec(values: Mapping[str, object], limits: RequestDefaults, now_s: float) -> RequestSpec:
    """A valid request from one value for each field of `RequestSpec`, as JSON or NumPy's `item()` give them.

    Args:
        values: the fields by name.
        limits: those that the settings choose.
        now_s: the present on CLOCK_MONOTONIC; no request arrives after it.

    Raises:
        InvalidRequestError: the first field that is missing, unknown, of the wrong type or out of range.
    """
    unknown = sorted(set(values) - set(_CHECKS))
    if unknown:
        raise InvalidRequestError(unknown[0][:SHOWN_CHARS], "unknown field", ", ".join(_CHECKS))
    checked: dict[str, Any] = {}
    for name, check in _CHECKS.items():
        if name not in values:
            raise InvalidRequestError(name, "missing", "every field that preprocess writes")
        checked[name] = check(name, values[name], limits)
    spec = RequestSpec(**checked)
    last_seed = _SEED_MAX - spec.num_images + 1
    if spec.seed > last_seed:
        raise InvalidRequestError("seed", f"got {spec.seed} for {spec.num_images} images", f"0 to {last_seed}")
    if spec.arrival_s > now_s:
        raise InvalidRequestError("arrival_s", f"got {spec.arrival_s}", f"at most {now_s}, the present")
    return spec


def max_text_bytes(limits: RequestDefaults) -> int:
    """The most bytes that any text of a client can need.

    That is the specification of a request with two prompts of which JSON escapes every character, twice those beyond
    16 bits. Longer ones are refused unread, because reading them would hold up all other requests.
    """
    return 2 * _ESCAPED_CHAR_BYTES * limits.max_prompt_chars + _OTHER_FIELDS_BYTES


def load_spec(text: str, limits: RequestDefaults, now_s: float) -> RequestSpec:
    """A spec from the JSON that `dump_spec` makes, checked anew: any client can call `denoise` itself.

    The caller sees to it that `text` has no more than `max_text_bytes`.

    Raises:
        InvalidRequestError: not the JSON of a valid spec; names the field.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = f"not a request specification ({error})"
        raise InvalidRequestError("request", problem, "what preprocess makes") from error
    if not isinstance(values, dict):
        problem = f"not a request specification (a JSON {type(values).__name__})"
        raise InvalidRequestError("request", problem, "what preprocess makes")
    return checked_spec(values, limits, now_s)


def _shown(value: object) -> str:
    text = f"'{value}'" if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


def _text(name: str, value: object, max_chars: int) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(name, f"got {_shown(value)}", "a text")
    if len(value) > max_chars:
        raise InvalidRequestError(name, f"{len(value)} characters", f"at most {max_chars} characters")
    if "\0" in value:
        raise InvalidRequestError(name, "contains a NUL character", "text without NUL characters")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair, which no UTF-8 can.
        problem = f"not UTF-8 (character {error.start} is half of a surrogate pair)"
        raise InvalidRequestError(name, problem, "text in UTF-8") from error
    return value


def _integer(name: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidRequestError(name, f"got {_shown(value)}", f"{low} to {high}")
    return value


def _number(name: str, value: object, allowed: str, is_allowed: Callable[[float], bool]) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number) and is_allowed(number):
                return number
    except OverflowError:
        pass
    raise InvalidRequestError(name, f"got {_shown(value)}", allowed)


def _request_id(name: str, value: object, limits: RequestDefaults) -> str:
    request_id = _text("request id", value, _MAX_REQUEST_ID_CHARS)
    if not request_id:
        raise InvalidRequestError("request id", "empty", f"1 to {_MAX_REQUEST_ID_CHARS} characters")
    if _UNIT_ID.search(request_id):
        allowed = f"an id that does not end in {UNIT_MARK} and a number, as the images of one request do"
        raise InvalidRequestError("request id", f"got {_shown(request_id)}", allowed)
    return request_id


def _model(name: str, value: object, limits: RequestDefaults) -> str:
    return _text(name, value, _MAX_MODEL_CHARS)


def _prompt(name: str, value: object, limits: RequestDefaults) -> str:
    text = _text(name, value, limits.max_prompt_chars)
    if not text.strip():
        raise InvalidRequestError(name, "empty", f"1 to {limits.max_prompt_chars} characters that are not all blank")
    return text


def _negative_prompt(name: str, value: object, limits: RequestDefaults) -> str:
    return _text(name, value, limits.max_prompt_chars)


def _side(name: str, value: object, limits: RequestDefaults) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequestError(name, f"got {_shown(value)}", _ALLOWED_SIDE)
    if value % PIXELS_PER_TOKEN_SIDE or not 0 < value <= _SIDE_MAX:
        raise InvalidRequestError(name, f"got {_shown(value)}", _ALLOWED_SIDE)
    return value


def _steps(name: str, value: object, limits: RequestDefaults) -> int:
    return _integer(name, value, 1, limits.max_num_inference_steps)


def _guidance(name: str, value: object, limits: RequestDefaults) -> float | None:
    if value is None:
        return None
    return _number(name, value, f"a number from 0 to {GUIDANCE_MAX:g}", lambda number: 0.0 <= number <= GUIDANCE_MAX)


def _text_tokens(name: str, value: object, limits: RequestDefaults) -> int | None:
    return None if value is None else _integer(name, value, 1, _MAX_TEXT_TOKENS)


def _num_images(name: str, value: object, limits: RequestDefaults) -> int:
    return _integer(name, value, 1, limits.max_num_images)


def _seed(name: str, value: object, limits: RequestDefaults) -> int:
    return _integer(name, value, 0, _SEED_MAX)


def _latency(name: str, value: object, limits: RequestDefaults) -> float:
    allowed = f"seconds, more than 0 and at most {LATENCY_MAX_S:g}"
    return _number(name, value, allowed, lambda number: 0.0 < number <= LATENCY_MAX_S)


def _format(name: str, value: object, limits: RequestDefaults) -> ImageFormat:
    try:
        return ImageFormat(value)
    except ValueError as error:
        allowed = ", ".join(image_format.value for image_format in ImageFormat)
        raise InvalidRequestError(name, f"got {_shown(value)}", allowed) from error


def _flag(name: str, value: object, limits: RequestDefaults) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequestError(name, f"got {_shown(value)}", "true or false")
    return value


def _arrival(name: str, value: object, limits: RequestDefaults) -> float:
    return _number(name, value, "seconds on CLOCK_MONOTONIC, 0 or more", lambda number: number >= 0.0)


_ALLOWED_SIDE: Final = f"a positive multiple of {PIXELS_PER_TOKEN_SIDE} pixels"

_CHECKS: Final[Mapping[str, Check]] = {
    "request_id": _request_id,
    "model": _model,
    "prompt": _prompt,
    "negative_prompt": _negative_prompt,
    "height": _side,
    "width": _side,
    "num_inference_steps": _steps,
    "guidance_scale": _guidance,
    "max_sequence_length": _text_tokens,
    "num_images": _num_images,
    "seed": _seed,
    "latency_threshold": _latency,
    "output_format": _format,
    "stream_progress": _flag,
    "preview": _flag,
    "is_base64": _flag,
    "arrival_s": _arrival,
}
