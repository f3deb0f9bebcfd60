"""Two models on the same ranks: each is served as if it were alone, and they come and go by Triton's own means."""

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.integration.conftest import Server, start_server
from tests.integration.server.test_faults import pixels
from tests.integration.server.wire import Background, HttpAnswer, generate, post

FLUX, SD3 = MODELS = ("demo-flux", "demo-sd3")
FIELDS: dict[str, Any] = {"prompt": "a red fox", "height": 128, "width": 128, "num_inference_steps": 6, "seed": 5}


@pytest.fixture(scope="module")
def both(tetriserve_home: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("both")
    running = start_server(folder, "--model", FLUX, "--model", SD3, "--model-control", "explicit")
    yield running
    assert running.local.stop() == 0, running.log
    running.check_timeline()


class Stream:
    """Asks for one image of a model after the other, until it is stopped."""

    def __init__(self, server: Server, model: str) -> None:
        self._server, self._model = server, model
        self._is_stopping = threading.Event()
        self.answers: list[HttpAnswer] = []
        self._call = Background(self._run)

    def __enter__(self) -> "Stream":
        self.wait_for_one()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopping.set()
        assert self._call.result() is None
        assert {answer.status for answer in self.answers} == {200}, [answer.error for answer in self.answers]

    def wait_for_one(self) -> None:
        """Until a request that begins from now on has been answered."""
        enough, give_up_s = len(self.answers) + 2, time.monotonic() + 60.0
        while len(self.answers) < enough:
            assert time.monotonic() < give_up_s, "no answers come any more"
            time.sleep(0.02)

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            self.answers.append(ask(self._server, self._model))


def ask(server: Server, model: str, **fields: Any) -> HttpAnswer:
    return generate(server.http_url, {**FIELDS, "model": model, **fields})


def control(server: Server, model: str, verb: str, config: dict[str, Any] | None = None) -> HttpAnswer:
    body = {"parameters": {"config": json.dumps(config)}} if config else {}
    return post(server.http_url, f"/v2/repository/models/denoise_{model}/{verb}", body)


def wait_until_served(server: Server, *models: str) -> None:
    give_up_s = time.monotonic() + 60.0
    while (served := set(generate(server.http_url, {"op": "status"}, "denoise").metadata["models"])) != set(models):
        assert time.monotonic() < give_up_s, served
        time.sleep(0.05)


def denoise_starts_us(server: Server, answers: list[HttpAnswer]) -> list[float]:
    """When each segment of these requests began, as the timeline tells."""
    ids = {answer.metadata["request_id"] for answer in answers}
    events = json.loads(server.timeline_path.read_text())["traceEvents"]
    work = [event for event in events if event["ph"] == "X" and event["cat"] == "denoise"]
    return [event["ts"] for event in work if ids & {part["id"] for part in event["args"]["requests"]}]


def test_requests_choose_their_model_by_name(both: Server) -> None:
    calls = [Background(ask, both, model) for model in (FLUX, SD3) * 4]
    images: dict[str, Any] = {}
    for call, model in zip(calls, (FLUX, SD3) * 4, strict=True):
        answer = call.result()
        assert answer.metadata["model"] == model
        assert np.abs(pixels(answer) - images.setdefault(model, pixels(answer))).max() <= 1
    assert np.abs(images[FLUX] - images[SD3]).max() > 10
    assert ask(both, SD3, negative_prompt="blurry").status == 200
    assert "negative_prompt" in ask(both, FLUX, negative_prompt="blurry").error
    assert f"INVALID_ARGUMENT: model: missing; allowed: {FLUX}, {SD3}" in generate(both.http_url, FIELDS).error


def test_mixed_burst_makes_the_images_that_each_request_makes_alone(both: Server) -> None:
    sizes = ((128, 128), (256, 128), (128, 256), (64, 64))
    burst = [
        {
            "model": model,
            "height": height,
            "width": width,
            "num_inference_steps": 3 + number,
            "seed": 100 + number,
            "latency_threshold": 1.0 + number,
            **({"negative_prompt": "blurry", "guidance_scale": 4.0} if model == SD3 else {}),
        }
        for number, (height, width) in enumerate(sizes)
        for model in (FLUX, SD3)
    ]
    alone = [ask(both, **fields) for fields in burst]
    together = [call.result() for call in [Background(ask, both, **fields) for fields in burst]]
    for fields, one, other in zip(burst, alone, together, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1, fields
    # They did share the ranks: neither model waited for the other to be done with all of its requests.
    starts = {model: denoise_starts_us(both, [a for a in together if a.metadata["model"] == model]) for model in MODELS}
    assert min(starts[FLUX]) < max(starts[SD3])
    assert min(starts[SD3]) < max(starts[FLUX])


def test_one_is_unloaded_and_loaded_again_while_the_other_loses_no_request(both: Server) -> None:
    before = pixels(ask(both, SD3))
    with Stream(both, FLUX) as flux:
        running = Background(ask, both, SD3, num_inference_steps=40)
        while not generate(both.http_url, {"op": "status"}, "denoise").metadata["running"]:
            time.sleep(0.01)
        time.sleep(0.2)
        assert control(both, SD3, "unload").status == 200
        wait_until_served(both, FLUX)
        assert running.result().status == 200, running.result().error
        assert f"INVALID_ARGUMENT: model: got '{SD3}'; allowed: {FLUX}" in ask(both, SD3).error
        assert ask(both, "").metadata["model"] == FLUX
        flux.wait_for_one()
        assert control(both, SD3, "load").status == 200
        wait_until_served(both, FLUX, SD3)
        flux.wait_for_one()
    assert np.abs(pixels(ask(both, SD3)) - before).max() <= 1
    assert both.state()["restarts"] == 0


def test_model_that_cannot_be_loaded_says_why_and_leaves_the_others_alone(both: Server) -> None:
    with Stream(both, FLUX) as flux:
        with urllib.request.urlopen(f"{both.http_url}/v2/models/denoise_{SD3}/config") as answer:
            config = json.load(answer)
        config["parameters"]["model.path"]["string_value"] = "nowhere"
        refused = control(both, SD3, "load", config)
        assert refused.status == 400
        assert "model.path: 'nowhere' is neither a directory nor a model" in refused.error
        flux.wait_for_one()
    # As Triton has it: what was loaded before still is.
    assert ask(both, SD3).status == 200


def test_a_rank_that_died_comes_back_with_both(both: Server) -> None:
    with Stream(both, FLUX) as flux, Stream(both, SD3) as sd3:
        both.ranks()[0].kill()
        flux.wait_for_one()
        sd3.wait_for_one()
    assert both.state()["restarts"] == 0


def test_a_killed_stand_in_takes_its_model_along_and_no_other(both: Server) -> None:
    with Stream(both, FLUX) as flux:
        both.stub(f"denoise_{SD3}").kill()
        wait_until_served(both, FLUX)
        flux.wait_for_one()
        # Triton has not noticed: to load what it holds for loaded would do nothing.
        assert control(both, SD3, "unload").status == 200
        assert control(both, SD3, "load").status == 200
        wait_until_served(both, FLUX, SD3)
    assert ask(both, SD3).status == 200
    assert both.state()["restarts"] == 0
