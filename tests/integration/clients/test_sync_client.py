"""The blocking client against a real server."""

import io
import threading

import pytest
from PIL import Image

from tests.integration.clients.conftest import LONG_STEPS, wait_for_outcome
from tests.integration.conftest import Server
from tetriserve_client import (
    DuplicateRequestError,
    GenerateResult,
    ImageRequest,
    ImageResult,
    InvalidRequestError,
    Progress,
    RequestCancelledError,
    RequestTimeoutError,
    ServerUnavailableError,
    TetriserveClient,
)


@pytest.fixture
def client(server: Server) -> TetriserveClient:
    return TetriserveClient(server.grpc_url)


def test_image_comes_with_progress_by_step(client: TetriserveClient) -> None:
    seen: list[Progress] = []
    result = client.generate("a red fox", size="128x64", steps=6, slo_s=20.0, seed=7, on_progress=seen.append)
    with Image.open(io.BytesIO(result.image)) as image:
        image.load()
        assert (image.format, image.size) == ("PNG", (128, 64))
    assert [(progress.step, progress.num_steps) for progress in seen] == [(step, 6) for step in range(1, 7)]
    assert (result.seed, result.deadline_met) == (7, True)
    assert result.latency_s >= result.metadata["total_s"] - 0.01
    assert sum(segment.steps for segment in result.segments) == 6
    assert [segment.kind for segment in result.segments][:: len(result.segments) - 1] == ["encode", "decode"]
    assert set(result.degrees) <= {1, 2}


def test_same_seed_gives_the_same_image(client: TetriserveClient) -> None:
    first, second, other = (client.generate("x", size="64x64", steps=2, seed=seed).image for seed in (1, 1, 2))
    assert first == second != other


def test_several_images_come_one_by_one_and_make_one_result(client: TetriserveClient) -> None:
    request = ImageRequest("x", size="64x64", steps=2, seed=5, num_images=3, request_id="sync-several")
    events = list(client.stream(request))
    images = [event for event in events if isinstance(event, ImageResult)]
    assert sorted((image.index, image.seed) for image in images) == [(0, 5), (1, 6), (2, 7)]
    for index in range(3):
        steps = [event.step for event in events if isinstance(event, Progress) and event.image_index == index]
        assert steps == [1, 2]
    result = client.generate("x", size="64x64", steps=2, seed=5, num_images=3)
    assert [image.seed for image in result.images] == [5, 6, 7]
    assert len({image.image for image in result.images}) == 3


def test_raw_image_has_pixels(client: TetriserveClient) -> None:
    assert client.generate("x", size="96x64", steps=1, output_format="raw").images[0].pixels.shape == (64, 96, 3)


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_format_is_the_one_asked_for(client: TetriserveClient, output_format: str) -> None:
    result = client.generate("x", size="64x64", steps=1, output_format=output_format)
    with Image.open(io.BytesIO(result.image)) as image:
        assert image.format == output_format.upper()


def test_wrong_field_is_named(client: TetriserveClient) -> None:
    with pytest.raises(InvalidRequestError, match="height"):
        client.generate("x", size="128x100")
    with pytest.raises(InvalidRequestError, match="prompt"):
        client.generate("")
    with pytest.raises(InvalidRequestError, match="negative_prompt"):
        client.generate("x", negative_prompt="blurry")


def test_timeout_cancels_on_the_server(client: TetriserveClient, server: Server) -> None:
    with pytest.raises(RequestTimeoutError):
        client.generate("x", size="256x256", steps=LONG_STEPS, timeout_s=0.5, request_id="sync-timeout")
    assert wait_for_outcome(server, "sync-timeout") == "cancel"


def test_closed_generator_cancels_on_the_server(client: TetriserveClient, server: Server) -> None:
    events = client.stream(ImageRequest("x", size="256x256", steps=LONG_STEPS, request_id="sync-closed"))
    assert isinstance(next(events), Progress)
    events.close()
    assert wait_for_outcome(server, "sync-closed") == "cancel"


def test_error_in_the_progress_callback_cancels_on_the_server(client: TetriserveClient, server: Server) -> None:
    def fail(_: Progress) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        client.generate("x", size="256x256", steps=LONG_STEPS, on_progress=fail, request_id="sync-callback")
    assert wait_for_outcome(server, "sync-callback") == "cancel"


def test_request_cancelled_by_another_client_says_so(client: TetriserveClient) -> None:
    events = client.stream(ImageRequest("x", size="256x256", steps=LONG_STEPS, request_id="sync-other"))
    next(events)
    assert client.cancel("sync-other")
    with pytest.raises(RequestCancelledError):
        list(events)
    assert not client.cancel("sync-other")


def test_id_in_use_is_refused_and_the_first_request_goes_on(client: TetriserveClient) -> None:
    events = client.stream(ImageRequest("x", size="128x128", steps=200, request_id="sync-twice"))
    next(events)
    with pytest.raises(DuplicateRequestError, match="sync-twice"):
        client.generate("y", size="64x64", steps=1, request_id="sync-twice")
    assert isinstance(list(events)[-1], ImageResult)


def test_one_client_serves_many_threads(client: TetriserveClient) -> None:
    results: dict[int, GenerateResult] = {}

    def ask(seed: int) -> None:
        results[seed] = client.generate("x", size="64x64", steps=2, seed=seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {seed: result.seed for seed, result in results.items()} == {seed: seed for seed in range(6)}


def test_status_tells_what_serves(client: TetriserveClient) -> None:
    status = client.status()
    assert (status["state"], status["world_size"], status["policy"]) == ("serving", 2, "tetris")
    assert status["models"]["demo-flux"]["latency_table"]["world_size"] == 2


@pytest.mark.parametrize("attempt", range(3))
def test_absent_server_is_unavailable(attempt: int) -> None:
    with pytest.raises(ServerUnavailableError, match="localhost:1"):
        TetriserveClient("localhost:1").generate("x")
