"""Requests on the wire: sizes, names, types, and nothing that the caller did not say."""

import numpy as np
import pytest

from tetriserve_client import ImageRequest, InvalidRequestError, Size
from tetriserve_client.request import make_request
from tetriserve_client.wire import tensors


def test_size_is_width_first() -> None:
    assert Size.parse("1024x512") == Size(width=1024, height=512)
    assert Size.parse(" 64×128 ") == Size(width=64, height=128)
    assert str(Size(1024, 512)) == "1024x512"


@pytest.mark.parametrize("text", ["", "1024", "ax5", "-16x16", "16x16x16"])
def test_text_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        Size.parse(text)


def test_what_is_not_said_is_left_to_the_server() -> None:
    assert ImageRequest("a fox").fields() == {"prompt": "a fox"}


def test_fields_have_the_public_names() -> None:
    request = ImageRequest("p", "32x16", 5, 2.5, 7, 3.0, "n", "webp", "sd3", 4, 77, True)
    assert request.fields() == {
        "prompt": "p",
        "negative_prompt": "n",
        "height": 16,
        "width": 32,
        "num_inference_steps": 5,
        "guidance_scale": 3.0,
        "seed": 7,
        "latency_threshold": 2.5,
        "output_format": "webp",
        "model": "sd3",
        "num_images": 4,
        "max_sequence_length": 77,
        "preview": True,
    }


def test_each_request_has_an_id_of_its_own() -> None:
    assert ImageRequest("p").request_id != ImageRequest("p").request_id


def test_request_of_generate_has_the_fields_given_and_an_id() -> None:
    request = make_request("p", {"size": "32x16", "steps": 5, "seed": None, "request_id": None})
    assert (request.fields(), len(request.request_id)) == (ImageRequest("p", "32x16", 5).fields(), 32)
    assert make_request("p", {"request_id": "mine"}).request_id == "mine"
    with pytest.raises(TypeError, match="step_count"):
        make_request("p", {"step_count": 5})  # type: ignore[typeddict-unknown-key]


def test_tensors_have_the_declared_types() -> None:
    made = tensors({"prompt": "ü", "height": 16, "seed": 2**40, "latency_threshold": 2, "base64": False})
    assert [(t.name(), t.datatype(), t.shape()) for t in made] == [
        ("prompt", "BYTES", [1]),
        ("height", "INT64", [1]),
        ("seed", "INT64", [1]),
        ("latency_threshold", "FP32", [1]),
        ("base64", "BOOL", [1]),
    ]
    assert np.frombuffer(made[2]._get_content(), dtype=np.int64)[0] == 2**40


def test_number_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="height"):
        tensors({"height": 2**63})
