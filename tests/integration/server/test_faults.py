"""Nothing hangs and nothing is left, whatever dies."""

import base64
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.integration.conftest import Server, start_server
from tests.integration.server.wire import Background, HttpAnswer, generate, infer, stream, tensor
from tetriserve_backend.cli.launcher.processes import marked_processes

LONG: dict[str, Any] = {"prompt": "a slow river", "height": 256, "width": 256, "num_inference_steps": 150, "seed": 3}
RESTART_LIMIT_S = 90.0
"""Not how long a restart takes, but when the test gives up."""


@pytest.fixture(scope="module")
def fragile(tetriserve_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The last test of it stops it."""
    running = start_server(tmp_path_factory.mktemp("fragile"), "--set", "engine.drain_timeout_s=2")
    yield running
    assert running.local.stop() == 0, running.log
    running.check_timeline()


@pytest.fixture(scope="module")
def impatient(tetriserve_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One rank, which must not be gone for more than a second. The last test of it kills its supervisor."""
    patience = ("--set", "supervisor.no_rank_timeout_s=1", "--set", "supervisor.probe_interval_s=0.3")
    running = start_server(tmp_path_factory.mktemp("impatient"), "--world-size", "1", *patience)
    yield running
    running.stop_and_check()


def in_three_ways(server: Server, fields: dict[str, Any]) -> list[Background]:
    tensors = [tensor(name, value) for name, value in fields.items()]
    return [
        Background(generate, server.http_url, fields),
        Background(infer, server.http_url, fields),
        Background(stream, server.grpc_url, tensors),
    ]


def wait_until_running(server: Server, count: int) -> None:
    start_s = time.monotonic()
    while True:
        told = generate(server.http_url, {"op": "status"}, "denoise").metadata
        if told["running"] + told["pending"] >= count and told["running"]:
            return
        assert time.monotonic() - start_s < 30.0
        time.sleep(0.01)


def is_image_or_error(outcome: Any) -> bool:
    if isinstance(outcome, HttpAnswer):
        return bool(outcome.error) or "image" in outcome.body or "outputs" in outcome.body
    if isinstance(outcome, tuple):
        results, error = outcome
        return bool(error) or bool(results and results[-1].as_numpy("image")[0])
    return isinstance(outcome, OSError | EOFError) or "HTTPException" in [c.__name__ for c in type(outcome).__mro__]


def assert_nothing_is_left(state: dict[str, Any], timeout_s: float) -> None:
    """Within that time no process, no shared memory and no folder of the server must be left."""
    start_s = time.monotonic()
    while True:
        left = [
            *(str(process) for process in marked_processes(state["run_id"])),
            *(str(path) for path in Path("/dev/shm").glob(f"{state['shm_prefix']}*")),
            *([state["working_dir"]] if Path(state["working_dir"]).exists() else []),
        ]
        if not left:
            return
        assert time.monotonic() - start_s < timeout_s, left
        time.sleep(0.05)


def pixels(answer: HttpAnswer) -> np.ndarray[Any, Any]:
    assert answer.status == 200, answer.error
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.body["image"]))), dtype=np.int16)


def test_killed_rank_costs_no_request_its_image(fragile: Server) -> None:
    fields = {**LONG, "num_inference_steps": 60}
    undisturbed = pixels(generate(fragile.http_url, fields))
    calls = [Background(generate, fragile.http_url, fields) for _ in range(2)]
    wait_until_running(fragile, 2)
    time.sleep(0.4)
    fragile.ranks()[0].kill()
    for call in calls:
        assert np.abs(pixels(call.result()) - undisturbed).max() <= 1
    assert fragile.state()["restarts"] == 0
    fragile.check_timeline()


@pytest.mark.parametrize("model", ["denoise", "postprocess"])
def test_killed_stub_ends_the_waiting_requests_and_the_server_comes_back(fragile: Server, model: str) -> None:
    restarts = fragile.state()["restarts"]
    calls = in_three_ways(fragile, LONG)
    wait_until_running(fragile, 3)
    fragile.stub(model).kill()
    for call in calls:
        assert is_image_or_error(call.result(RESTART_LIMIT_S))
    fragile.wait_for_state("ready", restarts + 1, RESTART_LIMIT_S)
    assert generate(fragile.http_url, {"prompt": "back again"}).status == 200
    assert "starting the server anew" in fragile.log


def test_server_whose_ranks_never_come_back_is_started_anew(impatient: Server) -> None:
    server = impatient
    (rank,) = server.ranks()
    call = Background(generate, server.http_url, {**LONG, "num_inference_steps": 200})
    wait_until_running(server, 1)
    parent = rank.parent()
    assert parent is not None
    rank.kill()
    # The successor stands still before it has loaded the model.
    while not (successors := [child for child in parent.children() if child.pid != rank.pid]):
        pass
    for successor in successors:
        successor.suspend()
    assert is_image_or_error(call.result(RESTART_LIMIT_S))
    server.wait_for_state("ready", 1, RESTART_LIMIT_S)
    assert "no rank has been usable for more than 1 s" in server.log
    assert generate(server.http_url, {"prompt": "back again"}).status == 200


def test_server_stopped_in_the_middle_answers_everybody_and_leaves_nothing(fragile: Server) -> None:
    server = fragile
    state = server.state()
    short = in_three_ways(server, {**LONG, "num_inference_steps": 4})
    wait_until_running(server, 1)
    long = in_three_ways(server, {**LONG, "num_inference_steps": 200})
    time.sleep(0.3)
    assert server.local.stop() == 0, server.log
    for call in [*short, *long]:
        assert is_image_or_error(call.result(30.0)), call.result()
    assert_nothing_is_left(state, 5.0)
    server.check_timeline()
    events = json.loads(server.timeline_path.read_text())["traceEvents"]
    assert sum(event["name"] == "arrive" for event in events) >= 4


def test_killed_supervisor_leaves_nothing(impatient: Server) -> None:
    server = impatient
    state = server.state()
    calls = in_three_ways(server, LONG)
    wait_until_running(server, 3)
    os.kill(state["supervisor_pid"], signal.SIGKILL)
    assert_nothing_is_left(state, 30.0)
    for call in calls:
        assert is_image_or_error(call.result(30.0))
