"""What a client may ask of Stable Diffusion 3 beyond what FLUX takes."""

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tests.integration.conftest import Server
from tests.integration.server.wire import generate, metadata, stream, tensor

FIELDS: dict[str, Any] = {"prompt": "a red fox", "num_inference_steps": 3, "height": 64, "width": 96, "seed": 11}


def pixels_of(body: dict[str, Any]) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body["image"]))), dtype=np.int16)


def test_sd3_takes_negative_prompts_and_tells_its_own_limits(own_server: Callable[..., Server]) -> None:
    server = own_server("--model", "demo-sd3")
    plain = generate(server.http_url, FIELDS)
    assert (plain.metadata["model"], plain.metadata["guidance_scale"]) == ("demo-sd3", 7.0)
    for segment in plain.metadata["segments"]:
        assert len(segment["ranks"]) == segment["sp_degree"] * segment["cfg_degree"]
    negative = generate(server.http_url, {**FIELDS, "negative_prompt": "blurry", "model": "demo-sd3"})
    assert np.abs(pixels_of(negative.body) - pixels_of(plain.body)).max() > 1
    # Without guidance there is no second pass that a negative prompt could be in.
    unguided = [
        generate(server.http_url, {**FIELDS, "guidance_scale": 1.0, "negative_prompt": n}) for n in ("", "a cat")
    ]
    assert np.abs(pixels_of(unguided[0].body) - pixels_of(unguided[1].body)).max() <= 1

    status = generate(server.http_url, {"op": "status"}, "denoise").metadata
    length = status["models"]["demo-sd3"]["max_sequence_length"]
    shorter = generate(server.http_url, {**FIELDS, "max_sequence_length": length - 1})
    assert np.abs(pixels_of(shorter.body) - pixels_of(plain.body)).max() > 1
    same = generate(server.http_url, {**FIELDS, "max_sequence_length": length})
    assert np.abs(pixels_of(same.body) - pixels_of(plain.body)).max() <= 1
    for wrong, words in (
        ({"max_sequence_length": length + 1}, f"max_sequence_length: got {length + 1}; allowed: {length}"),
        ({"width": 2048}, "width: got 2048; allowed: at most 1536 pixels with model demo-sd3"),
        ({"model": "demo-flux"}, "model: got 'demo-flux'; allowed: demo-sd3"),
    ):
        assert f"INVALID_ARGUMENT: {words}" in generate(server.http_url, {**FIELDS, **wrong}).error

    fields = {**FIELDS, "num_images": 2, "preview": True, "negative_prompt": "blurry"}
    results, error = stream(server.grpc_url, [tensor(name, value) for name, value in fields.items()])
    assert error == ""
    kinds = [(told["type"], told["image_index"]) for told in map(metadata, results)]
    assert sorted(kinds) == [("image", 0), ("image", 1)] + [("progress", 0)] * 3 + [("progress", 1)] * 3
