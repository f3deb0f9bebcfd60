"""Several images of one request: by every way in, with one deadline, and one end for all."""

import base64
import http.client
import io
import json
import time
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from tritonclient import grpc as triton

from tests.integration.conftest import Server
from tests.integration.server.wire import Background, generate, infer, metadata, stream, tensor

FIELDS: dict[str, Any] = {"prompt": "a herd of foxes", "num_inference_steps": 3, "height": 64, "width": 96, "seed": 40}
LONG: dict[str, Any] = {"prompt": "a slow river", "height": 256, "width": 256, "num_inference_steps": 200}
COUNT = 4


def tensors(**fields: Any) -> list[Any]:
    return [tensor(name, value) for name, value in {**FIELDS, **fields}.items()]


def pixels_of(image: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(image)), dtype=np.int16)


def status(server: Server) -> dict[str, Any]:
    return generate(server.http_url, {"op": "status"}, "denoise").metadata


def outcomes(server: Server, request_id: str) -> dict[str, str]:
    """How each image of a request ended, as the timeline tells."""
    events = json.loads(server.timeline_path.read_text())["traceEvents"]
    ends = {event["args"]["id"]: event["name"] for event in events if event["ph"] == "i" and event["name"] != "arrive"}
    return {name: end for name, end in ends.items() if name.startswith(f"{request_id}#")}


def wait_until_idle(server: Server) -> None:
    give_up_s = time.monotonic() + 30.0
    while (told := status(server))["running"] or told["pending"]:
        assert time.monotonic() < give_up_s, told
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def nothing_is_left_running(server: Server) -> Any:
    yield
    wait_until_idle(server)


def test_stream_brings_each_image_with_its_index_and_seed(server: Server) -> None:
    results, error = stream(server.grpc_url, tensors(num_images=COUNT, base64=False), request_id="herd")
    assert error == ""
    told = [metadata(result) for result in results]
    assert sorted(image["image_index"] for image in told) == list(range(COUNT))
    assert {(image["type"], image["request_id"], image["num_images"]) for image in told} == {("image", "herd", COUNT)}
    assert all(image["seed"] == 40 + image["image_index"] for image in told)
    assert len({image["latency_threshold"] for image in told}) == 1
    # They share a prompt, which is encoded once.
    assert [image["segments"][0]["batch_size"] for image in told] == [COUNT] * COUNT
    assert len({image["segments"][0]["start_s"] for image in told}) == 1
    # The last answer that carries an image is the one that Triton marks as final.
    assert results[-1].get_response().parameters["triton_final_response"].bool_param


def test_each_image_can_be_had_again_on_its_own(server: Server) -> None:
    results, _ = stream(server.grpc_url, tensors(num_images=3, base64=False))
    for result in results:
        alone = generate(server.http_url, {**FIELDS, "seed": metadata(result)["seed"]})
        difference = pixels_of(result.as_numpy("image")[0]) - pixels_of(base64.b64decode(alone.body["image"]))
        # The degrees may differ, which may move a channel by one.
        assert np.abs(difference).max() <= 1


def test_progress_tells_of_which_image_it_is(server: Server) -> None:
    results, error = stream(server.grpc_url, tensors(num_images=2, stream_progress=True))
    assert error == ""
    for index in range(2):
        mine = [told for told in map(metadata, results) if told["image_index"] == index]
        assert [told["type"] for told in mine] == ["progress"] * 3 + ["image"]
        assert [told["step"] for told in mine[:3]] == [1, 2, 3]


def test_one_answer_holds_all_images_in_order(server: Server) -> None:
    by_infer = infer(server.http_url, {**FIELDS, "num_images": COUNT, "preview": True}, request_id="at once")
    outputs = {output["name"]: output["data"] for output in by_infer.body["outputs"]}
    by_generate = generate(server.http_url, {**FIELDS, "num_images": COUNT}, "tetriserve_infer").body
    with triton.InferenceServerClient(server.grpc_url) as client:
        by_grpc = client.infer("tetriserve_infer", tensors(num_images=COUNT, base64=False))
    for index in range(COUNT):
        told = json.loads(outputs["metadata"][index])
        assert (told["image_index"], told["seed"], told["request_id"]) == (index, 40 + index, "at once")
        assert json.loads(by_generate["metadata"][index])["seed"] == 40 + index
        assert json.loads(by_grpc.as_numpy("metadata")[index])["seed"] == 40 + index
        images = (
            base64.b64decode(outputs["image"][index]),
            base64.b64decode(by_generate["image"][index]),
            by_grpc.as_numpy("image")[index],
        )
        assert {pixels_of(image).shape for image in images} == {(64, 96, 3)}
    assert outputs["step"] == by_generate["step"] == by_grpc.as_numpy("step").tolist() == [3] * COUNT


def test_generate_stream_brings_each_image_as_an_event(server: Server) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.http_url).netloc, timeout=60.0)
    body = json.dumps({**FIELDS, "num_images": 2, "stream_progress": True}).encode()
    connection.request("POST", "/v2/models/tetriserve/generate_stream", body, {"Content-Type": "application/json"})
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    events = [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]
    told = [json.loads(event["metadata"]) for event in events]
    assert sorted((fact["type"], fact["image_index"]) for fact in told) == (
        [("image", 0), ("image", 1)] + [("progress", 0)] * 3 + [("progress", 1)] * 3
    )
    assert all(bool(event["image"]) == (fact["type"] == "image") for event, fact in zip(events, told, strict=True))


def test_several_images_do_not_fit_into_generate_of_the_ensemble(server: Server) -> None:
    """No model can tell `generate` from `generate_stream`: Triton counts the responses, and says so."""
    answer = generate(server.http_url, {**FIELDS, "num_images": 2})
    assert "use generate stream" in answer.error


def test_cancellation_stops_all_images(server: Server) -> None:
    long = [tensor(name, value) for name, value in {**LONG, "num_images": 5}.items()]
    call = Background(stream, server.grpc_url, long, request_id="five")
    while not status(server)["running"]:
        time.sleep(0.01)
    # The images have no life of their own.
    assert not generate(server.http_url, {"op": "cancel", "target": "five#0"}, "denoise").metadata["cancelled"]
    assert generate(server.http_url, {"op": "cancel", "target": "five"}, "denoise").metadata["cancelled"]
    _, error = call.result()
    assert "CANCELLED: " in error
    wait_until_idle(server)
    assert outcomes(server, "five") == {f"five#{index}": "cancel" for index in range(5)}
    # The images of a request cannot be taken for another request.
    answer = generate(server.http_url, {**FIELDS, "id": "five#0"})
    assert "INVALID_ARGUMENT: request id: got 'five#0'" in answer.error


def test_client_of_infer_that_goes_away_stops_all_images(server: Server) -> None:
    long = [tensor(name, value) for name, value in {**LONG, "num_images": 3}.items()]
    with triton.InferenceServerClient(server.grpc_url) as client:
        call = client.async_infer("tetriserve_infer", long, lambda result, error: None, request_id="gone")
        while not status(server)["running"]:
            time.sleep(0.01)
        call.cancel()
        wait_until_idle(server)
    assert outcomes(server, "gone") == {f"gone#{index}": "cancel" for index in range(3)}


def test_raw_is_the_pixels_of_the_png(server: Server) -> None:
    results, error = stream(server.grpc_url, tensors(output_format="raw", base64=False))
    assert error == ""
    told = metadata(results[0])
    assert (told["output_format"], told["image_shape"]) == ("raw", [64, 96, 3])
    raw = np.frombuffer(results[0].as_numpy("image")[0], np.uint8).reshape(told["image_shape"])
    png = pixels_of(base64.b64decode(generate(server.http_url, FIELDS).body["image"]))
    assert np.abs(raw.astype(np.int16) - png).max() <= 1
    by_json = generate(server.http_url, {**FIELDS, "output_format": "raw"})
    assert len(base64.b64decode(by_json.body["image"])) == 64 * 96 * 3


def test_model_can_be_named(server: Server) -> None:
    answer = generate(server.http_url, {**FIELDS, "model": "demo-flux", "max_sequence_length": 64})
    assert answer.status == 200, answer.error
    assert answer.metadata["model"] == "demo-flux"
