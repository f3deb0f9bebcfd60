"""Every field of a request is checked, and what is not given has its default."""

import math
from typing import Any

import numpy as np
import pytest

from tetriserve_backend.domain import InvalidRequestError
from tetriserve_backend.triton_adapter.image_format import ImageFormat
from tetriserve_backend.triton_adapter.request_fields import build_spec, check_parameters, decode_text
from tetriserve_backend.triton_adapter.request_spec import RequestSpec
from tetriserve_backend.triton_adapter.settings import RequestDefaults

DTYPES = {"height": np.int64, "width": np.int64, "num_inference_steps": np.int64, "seed": np.int64}
DTYPES |= {"num_images": np.int64, "max_sequence_length": np.int64}
DTYPES |= {"guidance_scale": np.float32, "latency_threshold": np.float32}


def tensors(**fields: Any) -> dict[str, Any]:
    def one(name: str, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value
        if isinstance(value, str | bytes):
            return np.array([value.encode() if isinstance(value, str) else value], dtype=np.object_)
        return np.array([value], dtype=DTYPES.get(name, np.bool_))

    return {name: one(name, value) for name, value in fields.items()}


def build(**fields: Any) -> RequestSpec:
    return build_spec(tensors(**fields), RequestDefaults(), "r1", arrival_s=10.0, draw_seed=lambda: 42)


def test_prompt_alone_gets_all_defaults() -> None:
    spec = build(prompt="a fox")
    assert (spec.height, spec.width, spec.num_inference_steps, spec.seed) == (512, 512, 20, 42)
    assert (spec.output_format, spec.is_base64, spec.stream_progress, spec.preview) == (
        ImageFormat.PNG, True, False, False,
    )  # fmt: skip
    assert (spec.num_images, spec.latency_threshold) == (1, 30.0)
    # For the model to say.
    assert (spec.model, spec.guidance_scale, spec.max_sequence_length) == ("", None, None)


def test_given_fields_win_over_defaults() -> None:
    spec = build(
        prompt="ein Füchschen", negative_prompt="blurry", height=64, width=96, num_inference_steps=200, seed=0,
        guidance_scale=0.0, latency_threshold=4.2, output_format="webp", stream_progress=True, base64=False,
        model="sd3", num_images=8, max_sequence_length=77, preview=True,
    )  # fmt: skip
    assert (spec.height, spec.width, spec.num_inference_steps, spec.seed) == (64, 96, 200, 0)
    assert (spec.model, spec.num_images, spec.max_sequence_length, spec.preview) == ("sd3", 8, 77, True)
    # As the client wrote it, not as FP32 holds it.
    assert spec.latency_threshold == 4.2
    assert (spec.output_format, spec.is_base64, spec.stream_progress) == (ImageFormat.WEBP, False, True)


@pytest.mark.parametrize(
    ("fields", "field", "allowed"),
    [
        ({}, "prompt", "not empty"),
        ({"prompt": ""}, "prompt", "1 to 8192 characters"),
        ({"prompt": "\n "}, "prompt", "1 to 8192 characters"),
        ({"prompt": "x" * 8193}, "prompt", "at most 8192 characters"),
        ({"prompt": "a\0b"}, "prompt", "without NUL"),
        ({"prompt": b"a\xff"}, "prompt", "UTF-8"),
        ({"prompt": "a", "negative_prompt": b"\xfe"}, "negative_prompt", "UTF-8"),
        ({"prompt": "a", "height": 0}, "height", "positive multiple of 16"),
        ({"prompt": "a", "width": 24}, "width", "positive multiple of 16"),
        ({"prompt": "a", "width": -16}, "width", "positive multiple of 16"),
        ({"prompt": "a", "height": 2**32 + 64}, "height", "positive multiple of 16"),
        ({"prompt": "a", "num_inference_steps": 2**32 + 1}, "num_inference_steps", "1 to 200"),
        ({"prompt": "a", "num_inference_steps": 0}, "num_inference_steps", "1 to 200"),
        ({"prompt": "a", "num_inference_steps": 201}, "num_inference_steps", "1 to 200"),
        ({"prompt": "a", "seed": -1}, "seed", "0 to 9223372036854775807"),
        ({"prompt": "a", "guidance_scale": math.nan}, "guidance_scale", "0 to 100"),
        ({"prompt": "a", "guidance_scale": 101.0}, "guidance_scale", "0 to 100"),
        ({"prompt": "a", "latency_threshold": 0.0}, "latency_threshold", "more than 0"),
        ({"prompt": "a", "latency_threshold": -1.0}, "latency_threshold", "more than 0"),
        ({"prompt": "a", "latency_threshold": math.nan}, "latency_threshold", "more than 0"),
        ({"prompt": "a", "latency_threshold": math.inf}, "latency_threshold", "more than 0"),
        ({"prompt": "a", "output_format": "gif"}, "output_format", "png, jpeg, webp, raw"),
        ({"prompt": "a", "output_format": "PNG"}, "output_format", "png, jpeg, webp, raw"),
        ({"prompt": "a", "model": b"\xff"}, "model", "UTF-8"),
        ({"prompt": "a", "model": "x" * 257}, "model", "at most 256 characters"),
        ({"prompt": "a", "num_images": 0}, "num_images", "1 to 8"),
        ({"prompt": "a", "num_images": 9}, "num_images", "1 to 8"),
        ({"prompt": "a", "num_images": 2, "seed": 2**63 - 1}, "seed", "0 to 9223372036854775806"),
        ({"prompt": "a", "max_sequence_length": 0}, "max_sequence_length", "1 to 512"),
        ({"prompt": "a", "preview": np.array([1], np.int32)}, "preview", "BOOL"),
        ({"prompt": "a", "height": np.array([64, 64], np.int32)}, "height", "shape [1]"),
        ({"prompt": "a", "height": np.array([64.0], np.float32)}, "height", "INT64"),
        ({"prompt": "a", "base64": np.array([1], np.int32)}, "base64", "BOOL"),
        ({"prompt": np.array([5], np.int32)}, "prompt", "STRING"),
    ],
)
def test_wrong_field_is_named_with_what_is_allowed(fields: dict[str, Any], field: str, allowed: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        build(**fields)
    assert caught.value.field == field
    assert allowed in caught.value.allowed


def test_unknown_parameter_is_refused_unless_configured() -> None:
    check_parameters({"id": "r1", "triton_enable_empty_final_response": True}, ())
    check_parameters({"traceparent": "x"}, ("traceparent",))
    with pytest.raises(InvalidRequestError, match=r"promt: unknown parameter; allowed: the inputs prompt"):
        check_parameters({"promt": "a fox"}, ())


def test_name_of_an_unknown_parameter_is_cut_short() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_parameters({"x" * 100_000: 1}, ())
    assert caught.value.field == "x" * 40


def test_text_that_is_too_long_is_refused_before_it_is_read() -> None:
    # Were it decoded first, the first error would be another.
    with pytest.raises(InvalidRequestError, match=r"^prompt: 212993 bytes; allowed: at most 212992 bytes"):
        build(prompt=b"\xff" * 212_993)
    with pytest.raises(InvalidRequestError, match=r"^request: 3 bytes; allowed: at most 2 bytes"):
        decode_text("request", b"abc", 2)
    assert decode_text("request", "é".encode(), 2) == "é"
