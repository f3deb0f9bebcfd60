"""The HTTP client and the probe against a real server."""

import io
import subprocess
import sys

import pytest
from PIL import Image

from tests.integration.clients.conftest import LONG_STEPS, wait_for_outcome
from tests.integration.conftest import Server
from tetriserve_client import HttpTetriserveClient, InvalidRequestError, RequestTimeoutError, ServerUnavailableError


@pytest.fixture
def client(server: Server) -> HttpTetriserveClient:
    return HttpTetriserveClient(server.http_url)


def test_image_comes_under_the_callers_id(client: HttpTetriserveClient, server: Server) -> None:
    result = client.generate("a fox", size="128x64", steps=2, seed=3, slo_s=20.0, request_id="http-mine")
    with Image.open(io.BytesIO(result.image)) as image:
        image.load()
        assert (image.format, image.size) == ("PNG", (128, 64))
    assert (result.request_id, result.seed, result.deadline_met) == ("http-mine", 3, True)
    assert wait_for_outcome(server, "http-mine") == "finish"


def test_several_images_come_in_one_answer(client: HttpTetriserveClient) -> None:
    result = client.generate("a fox", size="128x64", steps=2, seed=3, num_images=3, preview=True)
    assert [(image.index, image.seed) for image in result.images] == [(0, 3), (1, 4), (2, 5)]
    for image in result.images:
        with Image.open(io.BytesIO(image.image)) as picture:
            assert picture.size == (128, 64)


def test_wrong_field_is_named(client: HttpTetriserveClient) -> None:
    with pytest.raises(InvalidRequestError, match="latency_threshold"):
        client.generate("x", slo_s=-1.0)


def test_timeout_cancels_on_the_server(client: HttpTetriserveClient, server: Server) -> None:
    with pytest.raises(RequestTimeoutError):
        client.generate("x", size="256x256", steps=LONG_STEPS, timeout_s=0.5, request_id="http-timeout")
    assert wait_for_outcome(server, "http-timeout") == "cancel"


def test_status_and_probe_answer(client: HttpTetriserveClient) -> None:
    assert client.status()["state"] == "serving"
    assert client.probe()["state"] == "serving"


def test_absent_server_is_unavailable() -> None:
    with pytest.raises(ServerUnavailableError, match="localhost:1"):
        HttpTetriserveClient("http://localhost:1").generate("x")


def test_probe_command_tells_by_its_exit_status(server: Server) -> None:
    def probe(url: str) -> int:
        return subprocess.run([sys.executable, "-m", "tetriserve_client.probe", url], check=False).returncode

    assert (probe(server.http_url), probe("http://localhost:1")) == (0, 1)
