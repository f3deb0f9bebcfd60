"""Bad input is the client's error, names the field and what is allowed, and disturbs nobody else."""

import base64
import io
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from tests.integration.conftest import Server
from tests.integration.server.wire import Background, generate, infer, metadata, post, stream, tensor

GOOD: dict[str, Any] = {"prompt": "a red fox", "height": 64, "width": 96, "num_inference_steps": 2, "seed": 7}

NESTED = f"[{','.join(['[]'] * 3_000_000)}]"
"""Short for JSON that takes a second to parse."""


@dataclass(frozen=True)
class BadField:
    """A change of the good request, and what the error must say."""

    name: str
    fields: dict[str, Any]
    expected: tuple[str, ...]
    without: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def request(self) -> dict[str, Any]:
        return {name: value for name, value in {**GOOD, **self.fields}.items() if name not in self.without}


BAD_FIELDS = [
    BadField("empty prompt", {"prompt": ""}, ("prompt", "empty")),
    BadField("blank prompt", {"prompt": " \n\t"}, ("prompt", "empty")),
    BadField("missing prompt", {}, ("prompt", "missing"), without=("prompt",)),
    BadField("endless prompt", {"prompt": "x" * 9000}, ("prompt", "at most 8192 characters")),
    BadField("height no multiple of 16", {"height": 100}, ("height", "got 100", "multiple of 16")),
    BadField("width no multiple of 16", {"width": 65}, ("width", "got 65", "multiple of 16")),
    BadField("negative height", {"height": -64}, ("height", "got -64", "positive multiple of 16")),
    BadField("image too large", {"height": 1024, "width": 1024}, ("height, width", "1024x1024", "pixels")),
    BadField("image too small", {"height": 16, "width": 16}, ("height, width", "16x16", "pixels")),
    BadField("no steps", {"num_inference_steps": 0}, ("num_inference_steps", "got 0", "1 to 200")),
    BadField("too many steps", {"num_inference_steps": 201}, ("num_inference_steps", "got 201", "1 to 200")),
    BadField("no time", {"latency_threshold": 0.0}, ("latency_threshold", "got 0", "more than 0")),
    BadField("negative time", {"latency_threshold": -2.5}, ("latency_threshold", "got -2.5", "more than 0")),
    BadField("time is not a number", {"latency_threshold": math.nan}, ("latency_threshold", "got nan", "more than 0")),
    BadField("endless time", {"latency_threshold": 1e39}, ("latency_threshold", "got inf", "at most")),
    BadField("negative guidance", {"guidance_scale": -1.0}, ("guidance_scale", "got -1", "0 to 100")),
    BadField("negative seed", {"seed": -1}, ("seed", "got -1", "0 to")),
    BadField("unknown format", {"output_format": "gif"}, ("output_format", "gif", "png, jpeg, webp, raw")),
    BadField("unknown model", {"model": "dall-e"}, ("model", "got 'dall-e'", "demo-flux")),
    BadField("negative prompt for FLUX", {"negative_prompt": "blurry"}, ("negative_prompt", "demo-flux", "guidance")),
    BadField("another text length", {"max_sequence_length": 63}, ("max_sequence_length", "got 63", "64")),
    BadField("endless text length", {"max_sequence_length": 513}, ("max_sequence_length", "got 513", "1 to 512")),
    BadField("no image", {"num_images": 0}, ("num_images", "got 0", "1 to 8")),
    BadField("too many images", {"num_images": 9}, ("num_images", "got 9", "1 to 8")),
    BadField("seeds beyond the last", {"num_images": 2, "seed": 2**63 - 1}, ("seed", "2 images", "0 to")),
    BadField("unknown parameter", {}, ("colour", "unknown parameter", "prompt"), parameters={"colour": "red"}),
]


def all_cases(cases: list[BadField]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def good_request_succeeds_afterwards(server: Server) -> Any:
    yield
    answer = generate(server.http_url, GOOD)
    assert answer.status == 200, answer.error
    image = Image.open(io.BytesIO(base64.b64decode(answer.body["image"])))
    assert (image.size, image.format) == ((96, 64), "PNG")


@all_cases(BAD_FIELDS)
def test_bad_field_is_refused_over_http_generate(server: Server, case: BadField) -> None:
    answer = generate(server.http_url, {**case.request, **case.parameters})
    assert answer.status == 400
    assert_tells(answer.error, case.expected)


@all_cases(BAD_FIELDS)
def test_bad_field_is_refused_over_http_infer(server: Server, case: BadField) -> None:
    answer = infer(server.http_url, case.request, parameters=case.parameters)
    assert answer.status == 400
    assert_tells(answer.error, case.expected)


@all_cases(BAD_FIELDS)
def test_bad_field_is_refused_over_grpc_stream(server: Server, case: BadField) -> None:
    with np.errstate(over="ignore"):
        tensors = [tensor(name, value) for name, value in case.request.items()]
    results, error = stream(server.grpc_url, tensors, parameters=case.parameters or None)
    assert results == []
    assert_tells(error, case.expected)


@all_cases(BAD_FIELDS)
def test_bad_field_is_refused_over_unary_grpc_with_its_code(server: Server, case: BadField) -> None:
    with np.errstate(over="ignore"):
        tensors = [tensor(name, value) for name, value in case.request.items()]
    with triton.InferenceServerClient(server.grpc_url) as client, pytest.raises(InferenceServerException) as caught:
        client.infer("tetriserve_infer", tensors, parameters=case.parameters or None)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert caught.value.message().startswith("INVALID_ARGUMENT: ")
    assert_tells(caught.value.message(), case.expected)


def test_prompt_that_is_not_utf8_is_refused_over_http(server: Server) -> None:
    answer = generate(server.http_url, b'{"prompt": "a \xff fox", "height": 64, "width": 64}')
    assert answer.status == 400
    assert_tells(answer.error, ("prompt", "0xff", "UTF-8"))


def test_prompt_that_is_not_utf8_is_refused_over_grpc(server: Server) -> None:
    results, error = stream(server.grpc_url, [tensor("prompt", b"a \xff fox")])
    assert results == []
    assert_tells(error, ("prompt", "0xff", "UTF-8"))


@pytest.mark.parametrize(
    ("name", "value", "datatype"),
    [
        ("height", 64, "INT32"),
        ("num_images", 2.0, "FP32"),
        ("preview", 1, "INT32"),
        ("model", 5, "INT32"),
        ("latency_threshold", "soon", "BYTES"),
        ("prompt", 5, "INT32"),
    ],
)
def test_wrong_type_is_refused(server: Server, name: str, value: Any, datatype: str) -> None:
    tensors = [tensor(key, good) for key, good in GOOD.items() if key != name] + [tensor(name, value, datatype)]
    results, error = stream(server.grpc_url, tensors)
    assert results == []
    assert_tells(error, (f"'{name}'", "data-type", "expects"))

    body = {"inputs": [{"name": name, "shape": [1], "datatype": datatype, "data": [value]}]}
    answer = post(server.http_url, "/v2/models/tetriserve_infer/infer", body)
    assert answer.status == 400
    assert_tells(answer.error, (f"'{name}'", "data-type", "expects"))


@pytest.mark.parametrize("field_name", ["height", "prompt", "model"])
def test_wrong_shape_is_refused(server: Server, field_name: str) -> None:
    good = GOOD.get(field_name, "demo-flux")
    others = [tensor(name, value) for name, value in GOOD.items() if name != field_name]
    results, error = stream(server.grpc_url, [*others, tensor(field_name, good, shape=(2,))])
    assert results == []
    assert_tells(error, (f"'{field_name}'", "Expected [1]"))

    answer = generate(server.http_url, {**GOOD, field_name: [good] * 2})
    assert answer.status == 400
    assert_tells(answer.error, (f"'{field_name}'", "shape"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latency_threshold": "soon"}, "Unable to parse 'data': attempt to access JSON non-number as double"),
        ({"height": "64"}, "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer"),
        ({"height": 64.5}, "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer"),
        ({"seed": 2**63}, "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer"),
        ({"num_images": "2"}, "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer"),
        ({"preview": 1}, "Unable to parse 'data': attempt to access JSON non-boolean as boolean"),
        ({"base64": "yes"}, "Unable to parse 'data': attempt to access JSON non-boolean as boolean"),
        ({"prompt": 5}, "Unable to parse JSON bytes array: attempt to access JSON non-string as string"),
    ],
)
def test_json_of_the_wrong_type_is_refused_by_the_parser_of_triton(
    server: Server, change: dict[str, Any], words: str
) -> None:
    """It turns JSON into tensors of the declared types before any of our code: status and words are its own."""
    answer = generate(server.http_url, {**GOOD, **change})
    assert (answer.status, answer.error) == (500, words)


@pytest.mark.parametrize("name", ["height", "width", "num_inference_steps", "num_images"])
@pytest.mark.parametrize("value", [2**32 + 64, -(2**32) + 64, 2**63 - 1])
def test_large_integer_does_not_wrap_around(server: Server, name: str, value: int) -> None:
    answer = generate(server.http_url, {**GOOD, name: value})
    assert answer.status == 400
    assert_tells(answer.error, ("INVALID_ARGUMENT", f"{name}: got {value}"))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("tetriserve/generate", b'{"prompt": "x", "id": "\xff"}'),
        (
            "tetriserve_infer/infer",
            b'{"id": "\xff", "inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}',
        ),
    ],
)
def test_id_that_is_not_utf8_is_refused(server: Server, path: str, body: bytes) -> None:
    answer = post(server.http_url, f"/v2/models/{path}", body)
    assert answer.status == 400
    assert_tells(answer.error, ("INVALID_ARGUMENT: request id", "0xff", "UTF-8"))


def test_parameter_that_is_not_utf8_is_refused(server: Server) -> None:
    answer = generate(server.http_url, b'{"prompt": "x", "colour": "\xff"}')
    assert answer.status == 400
    assert_tells(answer.error, ("INVALID_ARGUMENT: parameters", "0xff", "UTF-8"))


@pytest.mark.parametrize(
    ("model", "fields", "expected"),
    [
        ("denoise", {"request": NESTED}, "request: 9000001 bytes; allowed: at most 212992 bytes"),
        ("denoise", {"op": NESTED}, "op: 9000001 bytes; allowed: at most 212992 bytes"),
        ("tetriserve", {"prompt": NESTED}, "prompt: 9000001 bytes; allowed: at most 212992 bytes"),
        ("tetriserve", {"prompt": "x", "colour": NESTED}, "allowed: at most 262144 characters"),
        ("tetriserve_infer", {"prompt": "x", "colour": NESTED}, "allowed: at most 262144 characters"),
    ],
)
def test_endless_text_is_refused_unread(server: Server, model: str, fields: dict[str, str], expected: str) -> None:
    answer = generate(server.http_url, fields, model)
    assert answer.status == 400
    assert_tells(answer.error, ("INVALID_ARGUMENT", expected))


@pytest.mark.parametrize(
    ("side", "text", "expected"),
    [
        (1, NESTED, "metadata: 9000001 bytes; allowed: at most 4194304 bytes"),
        (257, '{"type": "progress"}', "pixels: a preview of 198147 bytes; allowed: at most 196608 bytes"),
    ],
    ids=["metadata", "preview"],
)
def test_endless_metadata_and_previews_are_refused(server: Server, side: int, text: str, expected: str) -> None:
    pixels = triton.InferInput("pixels", [side, side, 3], "UINT8")
    pixels.set_data_from_numpy(np.zeros((side, side, 3), np.uint8))
    with triton.InferenceServerClient(server.grpc_url) as client, pytest.raises(InferenceServerException) as caught:
        client.infer("postprocess", [pixels, tensor("step", 1, "INT32"), tensor("metadata", text)])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert_tells(caught.value.message(), (expected,))


def test_progress_does_not_fit_into_plain_generate(server: Server) -> None:
    """No model can tell `generate` from `generate_stream`: Triton counts the responses, and says so."""
    answer = generate(server.http_url, {**GOOD, "stream_progress": True})
    assert "use generate stream" in answer.error


def test_unknown_input_is_refused_over_grpc(server: Server) -> None:
    results, error = stream(server.grpc_url, [tensor("prompt", "a fox"), tensor("colour", "red")])
    assert results == []
    assert_tells(error, ("unexpected inference input 'colour'",))


def test_neighbours_of_a_bad_request_get_their_images(server: Server) -> None:
    good = [tensor(name, value) for name, value in GOOD.items()]
    neighbours = [Background(stream, server.grpc_url, good) for _ in range(3)]
    assert generate(server.http_url, {**GOOD, "height": 7}).status == 400
    for neighbour in neighbours:
        results, error = neighbour.result()
        assert error == ""
        assert metadata(results[-1])["seed"] == 7


def assert_tells(error: str, expected: tuple[str, ...]) -> None:
    for text in expected:
        assert text in error, error
