"""What the client tests share: how to see on the server what became of requests."""

import json
import time
from collections.abc import Iterator

import pytest

from tests.integration.conftest import Server
from tetriserve_client import TetriserveClient

LONG_STEPS = 200
"""At 256x256 far longer than a cancelled request may take to end."""

_END_S = 30.0


def outcomes(server: Server) -> dict[str, str]:
    """How each request ended, by id, as the live timeline tells."""
    events = json.loads(server.timeline_path.read_text())["traceEvents"]
    return {e["args"]["id"]: e["name"] for e in events if e["ph"] == "i" and e["name"] != "arrive"}


def wait_for_outcome(server: Server, request_id: str) -> str:
    """The outcome of a request that ought to be over soon."""
    give_up_s = time.monotonic() + _END_S
    while request_id not in (known := outcomes(server)):
        assert time.monotonic() < give_up_s, f"{request_id} goes on: {known}"
        time.sleep(0.05)
    return known[request_id]


@pytest.fixture(autouse=True)
def nothing_is_left_running(server: Server) -> Iterator[None]:
    """Whatever a test did, no request outlives it."""
    yield
    client = TetriserveClient(server.grpc_url)
    give_up_s = time.monotonic() + _END_S
    while (status := client.status())["running"] or status["pending"]:
        assert time.monotonic() < give_up_s, status
        time.sleep(0.05)
