"""A request that nobody wants any more ends at once, wherever it is, and leaves the ranks to others."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from tritonclient import grpc as triton

from tests.integration.conftest import Server
from tests.integration.server.wire import Background, generate, stream, tensor
from tetriserve_client import Progress, RequestCancelledError, TetriserveClient

LONG: dict[str, Any] = {"prompt": "a slow river", "height": 256, "width": 256, "num_inference_steps": 200}
PROMPT_END_S = 20.0
"""By then a cancelled request has ended, however busy the machine is."""


def long_tensors() -> list[Any]:
    return [tensor(name, value) for name, value in LONG.items()]


def status(server: Server) -> dict[str, Any]:
    return generate(server.http_url, {"op": "status"}, "denoise").metadata


def wait_for(server: Server, **expected: int) -> float:
    start_s = time.monotonic()
    while any(status(server)[name] != value for name, value in expected.items()):
        assert time.monotonic() - start_s < 30.0, status(server)
        time.sleep(0.01)
    return time.monotonic() - start_s


def steps_done(server: Server, request_id: str) -> int:
    """How many steps of a request ran, as the timeline tells."""
    events = json.loads(server.timeline_path.read_text())["traceEvents"]
    by_segment = {
        event["args"]["segment"]: part["steps"]
        for event in events
        if event.get("cat") == "denoise"
        for part in event["args"]["requests"]
        if part["id"] == request_id
    }
    return sum(by_segment.values())


def cancel(server: Server, request_id: str) -> bool:
    answer = generate(server.http_url, {"op": "cancel", "target": request_id}, "denoise")
    return bool(answer.metadata["cancelled"])


@pytest.fixture(autouse=True)
def server_is_idle_and_works_afterwards(server: Server) -> Any:
    yield
    wait_for(server, running=0, pending=0)
    assert generate(server.http_url, {"prompt": "still there?"}).status == 200


def test_request_is_cancelled_while_denoising(server: Server) -> None:
    call = Background(stream, server.grpc_url, long_tensors(), request_id="long")
    wait_for(server, running=1)
    time.sleep(0.3)
    assert cancel(server, "long")
    _, error = call.result()
    assert "CANCELLED: " in error
    assert steps_done(server, "long") < LONG["num_inference_steps"]


def test_request_is_cancelled_while_queued(server: Server) -> None:
    ids = [f"r{index}" for index in range(5)]
    calls = {name: Background(stream, server.grpc_url, long_tensors(), request_id=name) for name in ids}
    start_s = time.monotonic()
    while (told := status(server))["running"] + told["pending"] < len(ids) or not told["pending"]:
        assert time.monotonic() - start_s < 30.0
    # Two ranks cannot run five requests: at least one of these never started.
    assert all(cancel(server, name) for name in reversed(ids))
    for call in calls.values():
        _, error = call.result()
        assert "CANCELLED: " in error
    assert time.monotonic() - start_s < PROMPT_END_S


def cancel_after_the_last_step(server: Server, name: str, size: str, delay_s: float) -> tuple[list[bool], bool]:
    """What the canceller was told, and whether the client got an image."""
    answers: list[bool] = []

    def on_progress(progress: Progress) -> None:
        if progress.step == progress.num_steps:
            time.sleep(delay_s)
            answers.append(cancel(server, name))

    with TetriserveClient(server.grpc_url) as client:
        try:
            result = client.generate("a river", size=size, steps=2, request_id=name, on_progress=on_progress)
        except RequestCancelledError:
            return answers, False
        return answers, bool(result.image)


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.04, 0.2])
def test_cancellation_around_the_decode_ends_in_what_it_was_told(server: Server, delay_s: float) -> None:
    """The decode begins with the last step's end; an image that is done can no longer be cancelled."""
    answers, has_image = cancel_after_the_last_step(server, f"around{delay_s}", "256x256", delay_s)
    assert answers == [not has_image]


def test_request_is_cancelled_while_decoding(server: Server, own_server: Callable[..., Server]) -> None:
    large = own_server("--set", "quick_resolutions=[64x64, 768x768]")
    (decode,) = (e for e in status(large)["models"]["demo-flux"]["latency_table"]["decode"] if e["height"] == 768)
    # Early in the decode, which takes long at this size; earlier still if the machine was busier when it was measured.
    for share in (4, 8, 16, 32):
        name = f"decoding{share}"
        told = cancel_after_the_last_step(large, name, "768x768", decode["seconds"] / share)
        if told == ([True], False):
            break
        assert told == ([False], True), "an image that was done already"
    assert told == ([True], False)
    assert generate(large.http_url, {"prompt": "still there?"}).status == 200
    decoded = wait_for_event(large, lambda e: e["name"] == f"decode {name}")
    cancelled = wait_for_event(large, lambda e: e["name"] == "cancel")
    assert decoded["ts"] < cancelled["ts"] < decoded["ts"] + decoded["dur"]


def wait_for_event(server: Server, is_wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first such event of the timeline; a segment is written when it ends, cancelled or not."""
    start_s = time.monotonic()
    while True:
        events = json.loads(server.timeline_path.read_text())["traceEvents"]
        for event in events:
            if is_wanted(event):
                return dict(event)
        assert time.monotonic() - start_s < 10.0, events
        time.sleep(0.05)


def test_grpc_client_of_infer_that_goes_away_is_noticed(server: Server) -> None:
    with triton.InferenceServerClient(server.grpc_url) as client:
        call = client.async_infer("tetriserve_infer", long_tensors(), lambda result, error: None)
        wait_for(server, running=1)
        call.cancel()
        wait_for(server, running=0, pending=0)
    events = json.loads(server.timeline_path.read_text())["traceEvents"]
    assert [event for event in events if event["ph"] == "i"][-1]["name"] == "cancel"


def test_unknown_request_cannot_be_cancelled(server: Server) -> None:
    assert not cancel(server, "nobody")
