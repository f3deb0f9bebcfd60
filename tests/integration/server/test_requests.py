"""What a client gets for good requests, by every way in."""

import base64
import io
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from tests.integration.conftest import Server
from tests.integration.server.wire import Background, generate, infer, metadata, stream, tensor

FIELDS: dict[str, Any] = {"prompt": "ein Füchschen im Schnee ❄", "num_inference_steps": 3, "seed": 11}


def open_image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def tensors(**fields: Any) -> list[Any]:
    return [tensor(name, value) for name, value in {**FIELDS, **fields}.items()]


def test_http_generate_answers_a_base64_png_with_complete_metadata(server: Server) -> None:
    answer = generate(server.http_url, {**FIELDS, "id": "mine", "height": 64, "width": 128, "latency_threshold": 25.5})
    assert answer.status == 200, answer.error
    image = open_image(base64.b64decode(answer.body["image"]))
    assert (image.format, image.size, answer.body["step"]) == ("PNG", (128, 64), 3)
    told = answer.metadata
    assert (told["request_id"], told["seed"], told["latency_threshold"]) == ("mine", 11, 25.5)
    assert told["deadline_met"] and told["admitted"]
    assert told["total_s"] >= told["encode_s"] + told["denoise_s"] + told["decode_s"] + told["image_encode_s"]
    kinds = [segment["kind"] for segment in told["segments"]]
    assert (kinds[0], kinds[-1], set(kinds[1:-1])) == ("encode", "decode", {"denoise"})
    assert sum(segment["steps"] for segment in told["segments"]) == 3


def test_grpc_stream_tells_each_step_in_order_before_the_image(server: Server) -> None:
    results, error = stream(server.grpc_url, tensors(stream_progress=True, num_inference_steps=6, base64=False))
    assert error == ""
    *progress, last = results
    assert [int(result.as_numpy("step")[0]) for result in progress] == [1, 2, 3, 4, 5, 6]
    assert all(result.as_numpy("image")[0] == b"" for result in progress)
    assert [metadata(result)["step"] for result in progress] == [1, 2, 3, 4, 5, 6]
    assert int(last.as_numpy("step")[0]) == 6
    assert open_image(last.as_numpy("image")[0]).size == (128, 128)


def test_previews_are_small_images_in_the_format_asked_for_and_come_in_order(server: Server) -> None:
    fields = {"preview": True, "height": 128, "width": 256, "num_inference_steps": 6, "output_format": "webp"}
    results, error = stream(server.grpc_url, tensors(**fields, base64=False))
    assert error == ""
    *progress, last = results
    assert [metadata(result)["step"] for result in progress] == [1, 2, 3, 4, 5, 6]
    for result in progress:
        preview = open_image(result.as_numpy("image")[0])
        rows, columns, _ = metadata(result)["image_shape"]
        assert (preview.format, preview.size) == ("WEBP", (columns, rows))
        assert rows * 2 == columns < 256
    assert open_image(last.as_numpy("image")[0]).size == (256, 128)


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_image_comes_in_the_format_asked_for(server: Server, image_format: str) -> None:
    results, error = stream(server.grpc_url, tensors(output_format=image_format, base64=False))
    assert error == ""
    assert open_image(results[-1].as_numpy("image")[0]).format == image_format.upper()


def test_infer_gives_the_image_that_generate_gives(server: Server) -> None:
    answer = infer(server.http_url, {**FIELDS, "stream_progress": True}, request_id="by infer")
    assert answer.status == 200, answer.error
    outputs = {output["name"]: output["data"][0] for output in answer.body["outputs"]}
    assert json.loads(outputs["metadata"])["request_id"] == "by infer"
    by_infer = np.asarray(open_image(base64.b64decode(outputs["image"])), dtype=np.int16)
    by_generate = generate(server.http_url, FIELDS).body["image"]
    difference = by_infer - np.asarray(open_image(base64.b64decode(by_generate)), dtype=np.int16)
    # The degrees may differ, which may move a channel by one.
    assert np.abs(difference).max() <= 1


def test_seed_is_drawn_and_told_when_none_is_given(server: Server) -> None:
    fields = {name: value for name, value in FIELDS.items() if name != "seed"}
    seeds = {generate(server.http_url, fields).metadata["seed"] for _ in range(2)}
    assert len(seeds) == 2


def test_id_in_use_is_refused_and_its_owner_gets_the_image(server: Server) -> None:
    long = tensors(num_inference_steps=60, height=256, width=256, stream_progress=True)
    owner = Background(stream, server.grpc_url, long, request_id="taken")
    while not generate(server.http_url, {"op": "status"}, "denoise").metadata["running"]:
        pass
    answer = generate(server.http_url, {**FIELDS, "id": "taken"})
    assert answer.status == 400
    assert "ALREADY_EXISTS: request id: 'taken'" in answer.error
    results, error = owner.result()
    assert error == "" and results[-1].as_numpy("image")[0]


def test_unary_grpc_gets_the_image_and_the_code_of_each_error(server: Server) -> None:
    with triton.InferenceServerClient(server.grpc_url) as client:
        answer = client.infer("tetriserve_infer", tensors(base64=False), request_id="unary")
        assert open_image(answer.as_numpy("image")[0]).size == (128, 128)
        assert metadata(answer)["request_id"] == "unary"

        long = tensors(num_inference_steps=200, height=256, width=256)
        owner = Background(client.infer, "tetriserve_infer", long, request_id="unary")
        while not generate(server.http_url, {"op": "status"}, "denoise").metadata["running"]:
            pass
        with pytest.raises(InferenceServerException) as caught:
            client.infer("tetriserve_infer", tensors(), request_id="unary")
        assert caught.value.status() == "StatusCode.ALREADY_EXISTS"
        assert caught.value.message().startswith("ALREADY_EXISTS: request id: 'unary'")
        assert generate(server.http_url, {"op": "cancel", "target": "unary"}, "denoise").metadata["cancelled"]
        error = owner.result()
        assert isinstance(error, InferenceServerException)
        assert error.status() == "StatusCode.CANCELLED"
        assert error.message().startswith("CANCELLED: ")


def test_many_clients_at_once_each_get_their_own_image(server: Server) -> None:
    calls = [Background(infer, server.http_url, {**FIELDS, "seed": seed}, f"r{seed}") for seed in range(12)]
    for seed, call in enumerate(calls):
        answer = call.result()
        told = json.loads({output["name"]: output["data"][0] for output in answer.body["outputs"]}["metadata"])
        assert (told["request_id"], told["seed"]) == (f"r{seed}", seed)


def test_status_tells_what_is_served(server: Server) -> None:
    told = generate(server.http_url, {"op": "status"}, "denoise").metadata
    assert (told["state"], told["world_size"], told["ranks"]) == ("serving", 2, [0, 1])
    assert list(told["models"]) == ["demo-flux"]
    assert told["models"]["demo-flux"]["resolutions"] == ["64x64", "128x128", "256x256"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"op": "explode"}, "op: got 'explode'; allowed: generate, cancel, status, drain"),
        ({"op": "drain", "target": "guess"}, "target: not the control token"),
        ({"op": "generate", "request": "{}"}, "request_id: missing"),
        # Every input of denoise is optional: nothing at all is an empty `generate`.
        ({}, "request: not a request specification"),
    ],
)
def test_wrong_call_of_denoise_is_refused(server: Server, body: dict[str, Any], expected: str) -> None:
    answer = generate(server.http_url, body, "denoise")
    assert answer.status == 400
    assert expected in answer.error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request id", ["a"]),
        ("prompt", 5),
        ("height", "512"),
        ("height", 512.0),
        ("num_inference_steps", -3),
        ("num_inference_steps", 2.5),
        ("num_inference_steps", 201),
        ("seed", 2**70),
        ("latency_threshold", -5),
        ("latency_threshold", math.nan),
        ("arrival_s", 1e300),
        ("num_images", 2**31),
        ("num_images", "2"),
        ("model", None),
        ("model", "dall-e"),
        ("max_sequence_length", 1.5),
        ("preview", "no"),
        ("negative_prompt", "blurry"),
    ],
)
def test_crafted_request_to_denoise_is_refused_by_field_and_harms_nobody(
    server: Server, field: str, value: object
) -> None:
    neighbour = Background(generate, server.http_url, {**FIELDS, "num_inference_steps": 8})
    spec = {
        "request_id": "crafted", "model": "", "prompt": "p", "negative_prompt": "", "height": 128, "width": 128,
        "num_inference_steps": 4, "guidance_scale": 3.5, "max_sequence_length": None, "num_images": 1, "seed": 1,
        "latency_threshold": 5.0, "stream_progress": False, "preview": False, "arrival_s": time.monotonic(),
        "output_format": "png", "is_base64": True,
    }  # fmt: skip
    body = {"op": "generate", "request": json.dumps({**spec, field.replace(" ", "_"): value})}
    answer = generate(server.http_url, body, "denoise")
    assert answer.status == 400
    assert answer.error.startswith(f"INVALID_ARGUMENT: {field}: ")
    assert neighbour.result().status == 200
    told = generate(server.http_url, {"op": "status"}, "denoise").metadata
    assert (told["state"], told["ranks"]) == ("serving", [0, 1])


def test_timeline_can_be_read_while_the_server_runs(server: Server) -> None:
    generate(server.http_url, {**FIELDS, "id": "on the timeline"})
    events = json.loads(server.timeline_path.read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("args", {}).get("id") == "on the timeline"]
    assert names == ["arrive", "finish"]


def test_text_that_no_degree_divides_is_served_on_single_ranks(
    server: Server, own_server: Callable[..., Server]
) -> None:
    """33 text tokens on two ranks: of a given table with degree 2 only what the model can run at is used."""
    told = table_of(server)
    assert {entry["sp"] for entry in told["step"]} == {1, 2}
    path = server.folder / "given.latency.json"
    path.write_text(json.dumps(told))
    other = own_server("--set", "model.max_sequence_length=33", "--set", f"latency_table={path}")
    assert {entry["sp"] for entry in table_of(other)["step"]} == {1}
    calls = [Background(generate, other.http_url, {**FIELDS, "latency_threshold": 0.01}) for _ in range(3)]
    for call in calls:
        assert {segment["sp_degree"] for segment in call.result().metadata["segments"]} == {1}


def table_of(server: Server) -> dict[str, Any]:
    """The latency table that a server plans with."""
    status = generate(server.http_url, {"op": "status"}, "denoise").metadata
    return dict(status["models"]["demo-flux"]["latency_table"])
