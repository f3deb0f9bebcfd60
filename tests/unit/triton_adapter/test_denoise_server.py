"""The operations of denoise on an engine that does what the test says."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from tests.unit.triton_adapter.fakes import FakeEngine, FakeSender, pb_utils
from tetriserve_backend.domain import LatencyTableError
from tetriserve_backend.triton_adapter.denoise_server import Call, DenoiseServer
from tetriserve_backend.triton_adapter.image_format import ImageFormat
from tetriserve_backend.triton_adapter.request_spec import RENDERING_KEY, RequestSpec, dump_spec
from tetriserve_backend.triton_adapter.safe_sender import SafeSender
from tetriserve_backend.triton_adapter.serving import ServedModel, Serving
from tetriserve_backend.triton_adapter.settings import RequestDefaults


class Inline:
    """An executor that does its work at once."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(work(*args, **kwargs))
        return future


def check_resolution(height: int, width: int) -> None:
    if height > 512:
        raise LatencyTableError(f"latency table t: {height}x{width} is large; fix: profile it", "up to 512x512")


def make_spec(request_id: str = "r1", height: int = 64, num_images: int = 1) -> str:
    spec = RequestSpec(
        request_id=request_id, model="", prompt="p", negative_prompt="", height=height, width=32,
        num_inference_steps=4, guidance_scale=1.0, max_sequence_length=None, num_images=num_images, seed=5,
        latency_threshold=3.0, stream_progress=True, preview=False, arrival_s=1.0, output_format=ImageFormat.PNG,
        is_base64=True,
    )  # fmt: skip
    return dump_spec(spec)


class Bench:
    """A server on a fake engine."""

    def __init__(self, token: str = "secret", make_response: Callable[..., Any] | None = None) -> None:
        self.engine = FakeEngine()
        model = ServedModel({"model": "m", "max_sequence_length": 64}, check_resolution)
        serving = Serving(self.engine, {"m": model}, {"policy": "tetris"})
        self.server = DenoiseServer(
            serving,
            make_response or (lambda pixels, step, text: (pixels.shape, step, json.loads(text))),
            Inline(),
            control_token=token,
            drain_timeout_s=7.0,
            limits=RequestDefaults(max_num_inference_steps=20),
        )

    def call(self, op: str, request: str = "", target: str = "") -> FakeSender:
        sender = FakeSender()
        self.server.perform(Call(op, request, target, SafeSender(pb_utils, sender)))
        return sender

    def generate(self, request_id: str = "r1", height: int = 64, num_images: int = 1) -> FakeSender:
        return self.call("generate", make_spec(request_id, height, num_images))


def test_image_comes_after_the_progress_with_times_from_the_arrival() -> None:
    bench = Bench()
    sender = bench.generate()
    bench.engine.progress("r1", 0)
    bench.engine.finish("r1")
    (progress, _), (image, _) = sender.sent
    which = {"request_id": "r1", "image_index": 0, "num_images": 1}
    assert progress == ((0, 0, 3), 1, {"type": "progress", **which, "step": 1, "num_inference_steps": 4})
    shape, step, told = image
    assert (shape, step, told["queue_s"], told["seed"]) == ((64, 32, 3), 4, 0.5, 5)
    assert told.items() >= {"type": "image", **which, "model": "m"}.items()
    assert told["segments"][0].items() >= {"sp_degree": 2, "cfg_degree": 2, "batch_size": 3}.items()
    assert told[RENDERING_KEY] == {"output_format": "png", "is_base64": True, "arrival_s": 1.0, "deadline_s": 4.0}
    assert sender.is_final


def test_shape_outside_the_table_is_the_clients_error() -> None:
    assert Bench().generate(height=1024).errors == [
        "INVALID_ARGUMENT: height, width: got 1024x32; allowed: up to 512x512"
    ]


@pytest.mark.parametrize(
    ("field", "value"), [("num_inference_steps", -3), ("num_inference_steps", 2.5), ("num_inference_steps", 21),
                         ("height", "512"), ("latency_threshold", -5), ("prompt", 5), ("num_images", 9),
                         ("model", "n"), ("max_sequence_length", 32), ("preview", 1)],
)  # fmt: skip
def test_crafted_request_is_refused_by_field_and_never_reaches_the_engine(field: str, value: object) -> None:
    bench = Bench()
    sender = bench.call("generate", json.dumps({**json.loads(make_spec()), field: value}))
    assert sender.errors[0].startswith(f"INVALID_ARGUMENT: {field}: got ")
    assert bench.engine.waiting == {}


def test_cancelled_request_gets_an_error_and_the_canceller_the_truth() -> None:
    bench = Bench()
    sender = bench.generate()
    assert bench.call("cancel", target="r1").sent[0][0][2] == {"cancelled": True}
    assert sender.errors == ["CANCELLED: cancelled"]
    assert bench.call("cancel", target="r1").sent[0][0][2] == {"cancelled": False}


def test_duplicate_id_does_not_take_over_the_first_client() -> None:
    bench = Bench()
    first, second = bench.generate(), bench.generate()
    assert "ALREADY_EXISTS" in second.errors[0]
    first.gone = True
    assert bench.server.find_gone_clients() == ["r1"]
    bench.server.cancel("r1")
    assert bench.server.find_gone_clients() == []
    assert first.is_final


def test_status_joins_facts_and_state() -> None:
    assert Bench().call("status").sent[0][0][2] == {
        "policy": "tetris",
        "models": {"m": {"model": "m", "max_sequence_length": 64}},
        "state": "serving",
    }


def test_drain_needs_the_token_and_answers_when_done() -> None:
    async def scenario() -> None:
        bench = Bench()
        assert "not the control token" in bench.call("drain", target="guess").errors[0]
        waiting = [bench.call("drain", target="secret") for _ in range(2)]
        assert not any(sender.sent for sender in waiting)
        await asyncio.sleep(0.05)
        assert [sender.sent[0][0][2] for sender in waiting] == [{"drained": True}] * 2
        assert bench.engine.drained_with == [7.0]

    run(scenario())


def test_nobody_can_drain_a_server_that_has_no_token() -> None:
    assert "not the control token" in Bench(token="").call("drain", target="").errors[0]


def test_unknown_operation_is_refused() -> None:
    assert Bench().call("explode").errors == [
        "INVALID_ARGUMENT: op: got 'explode'; allowed: generate, cancel, status, drain"
    ]


def test_response_that_cannot_be_made_becomes_an_error() -> None:
    def fail(pixels: np.ndarray[Any, Any], step: int, text: str) -> Any:
        raise MemoryError("no room")

    bench = Bench(make_response=fail)
    sender = bench.generate()
    bench.engine.finish("r1")
    assert sender.errors == ["INTERNAL: MemoryError: no room"]


def run(scenario: Awaitable[None]) -> None:
    asyncio.run(scenario)  # type: ignore[arg-type]
