"""Nothing malformed gets past the checks, though the JSON of a request may come from anybody."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetriserve_backend.domain import InvalidRequestError, Request
from tetriserve_backend.triton_adapter.image_format import ImageFormat
from tetriserve_backend.triton_adapter.model_fit import fitted_to_model
from tetriserve_backend.triton_adapter.request_checks import checked_spec, load_spec, max_text_bytes
from tetriserve_backend.triton_adapter.request_spec import dump_spec
from tetriserve_backend.triton_adapter.settings import RequestDefaults

LIMITS = RequestDefaults()
NOW_S = 200.0
GOOD: dict[str, Any] = {
    "request_id": "r1", "model": "", "prompt": "ein Füchschen ❄", "negative_prompt": "", "height": 512, "width": 256,
    "num_inference_steps": 4, "guidance_scale": 3.5, "max_sequence_length": None, "num_images": 2, "seed": 1,
    "latency_threshold": 5.0, "output_format": "png", "stream_progress": False, "preview": False, "is_base64": True,
    "arrival_s": 100.0,
}  # fmt: skip
FACTS: dict[str, object] = {"model": "m", "max_sequence_length": 64, "supports_negative_prompt": True}
# What JSON can hold, and what Python's reader takes beyond it.
NUMBERS = st.integers() | st.integers(-1, 10) | st.integers(2**63 - 10, 2**63) | st.floats()
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=5)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)


def test_specification_survives_the_way_to_denoise() -> None:
    spec = checked_spec({**GOOD, "latency_threshold": 1.5}, LIMITS, NOW_S)
    assert load_spec(dump_spec(spec), LIMITS, NOW_S) == spec
    assert spec.output_format is ImageFormat.PNG


@pytest.mark.parametrize("char", ["x", "\x01", "\\", "❄", "🦊"])
def test_longest_request_has_room_in_the_longest_text(char: str) -> None:
    texts = dict.fromkeys(("request_id", "model"), char * 256)
    prompts = dict.fromkeys(("prompt", "negative_prompt"), char * LIMITS.max_prompt_chars)
    spec = checked_spec({**GOOD, **texts, **prompts, "seed": 2**62, "arrival_s": 100.0 / 3.0}, LIMITS, NOW_S)
    assert len(dump_spec(spec).encode()) <= max_text_bytes(LIMITS)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "request"), ("[]", "request"), ("5", "request"), ("{}", "request_id"),
        pytest.param("[" * 100_000, "request", id="nested-too-deeply"),
    ],
)  # fmt: skip
def test_what_is_no_specification_is_the_clients_error(text: str, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        load_spec(text, LIMITS, NOW_S)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("request_id", ["a"]), ("request_id", ""), ("request_id", "a#1"), ("model", 5), ("model", "\ud800"),
        ("model", "x" * 257), ("model", None), ("num_images", 0), ("num_images", 9), ("num_images", 2**40),
        ("num_images", 1.0), ("num_images", True), ("num_images", [2]), ("max_sequence_length", 0),
        ("max_sequence_length", 513), ("max_sequence_length", "64"), ("max_sequence_length", False),
        ("preview", 1), ("preview", "yes"), ("seed", 2**63 - 1), ("request_id", "x" * 257), ("request_id", "\ud800"),
        ("prompt", 5), ("prompt", ""), ("prompt", "\ud800 x"), ("negative_prompt", None), ("negative_prompt", "a\0b"),
        ("height", "512"), ("height", 512.0), ("height", True), ("height", 2**32 + 256), ("width", -16), ("width", 8),
        ("num_inference_steps", -3), ("num_inference_steps", 0), ("num_inference_steps", 2.5),
        ("num_inference_steps", 201), ("guidance_scale", "x"), ("guidance_scale", -0.1), ("guidance_scale", 10**400),
        ("seed", -1), ("seed", 2**70), ("seed", 1.0), ("latency_threshold", -5), ("latency_threshold", 0),
        ("latency_threshold", math.nan), ("latency_threshold", math.inf), ("latency_threshold", 1e6),
        ("output_format", "gif"), ("output_format", ["png"]), ("stream_progress", 0), ("is_base64", "true"),
        ("arrival_s", "now"), ("arrival_s", -1.0), ("arrival_s", NOW_S + 1.0), ("arrival_s", math.nan), ("x", 1),
    ],
)  # fmt: skip
def test_wrong_value_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        load_spec(json.dumps({**GOOD, name: value}), LIMITS, NOW_S)
    assert caught.value.field == name.replace("request_id", "request id")


@pytest.mark.parametrize("name", list(GOOD))
def test_missing_field_is_named(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{name}: missing"):
        checked_spec({key: value for key, value in GOOD.items() if key != name}, LIMITS, NOW_S)


@settings(derandomize=True, deadline=None, max_examples=400)
@given(st.dictionaries(st.sampled_from(list(GOOD)), VALUES, min_size=1, max_size=3))
def test_any_json_gives_a_sound_request_or_the_clients_error(changes: dict[str, object]) -> None:
    try:
        spec = load_spec(json.dumps({**GOOD, **changes}), LIMITS, NOW_S)
        fitted = fitted_to_model(
            spec, {"model": "m", "max_sequence_length": 64, "supports_negative_prompt": True}, anything
        )
    except InvalidRequestError:
        return
    requests = fitted.to_requests()
    assert 1 <= len(requests) == len({request.request_id for request in requests}) <= 8
    assert [request.seed - spec.seed for request in requests] == list(range(len(requests)))
    for request in requests:
        assert_sound(request)


def anything(height: int, width: int) -> None:
    """A latency table that knows every resolution."""


def assert_sound(request: Request) -> None:
    assert type(request.request_id) is str and request.request_id.encode()
    assert type(request.model) is str and type(request.preview) is type(request.stream_progress) is bool
    assert type(request.prompt) is type(request.negative_prompt) is str and request.prompt.strip()
    assert type(request.height) is type(request.width) is type(request.num_steps) is type(request.seed) is int
    assert request.height > 0 and request.height % 16 == request.width % 16 == 0 and request.width > 0
    assert 1 <= request.num_steps <= 200 and 0 <= request.seed < 2**63
    assert 0.0 <= request.guidance_scale <= 100.0
    assert 0.0 <= request.arrival_s <= NOW_S and request.arrival_s <= request.deadline_s <= request.arrival_s + 86400.0
