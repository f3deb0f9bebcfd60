"""Triton's APIs that change the server are closed to clients; those that use it are open."""

import os
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from tests.integration.conftest import Server
from tests.integration.server.wire import HttpAnswer, generate, infer, post, stream, tensor
from tetriserve_backend.cli.launcher.command import server_command
from tetriserve_backend.cli.launcher.installation import find_installation
from tetriserve_backend.cli.launcher.ports import Endpoints
from tetriserve_client.local_server import LocalPorts

REGION_BYTES = 64
REFUSAL = "restricted, expecting header"
FIELDS: dict[str, Any] = {"prompt": "a red fox", "height": 64, "width": 64, "num_inference_steps": 2}


@pytest.fixture
def region() -> Iterator[str]:
    """The name of a shared-memory region that is there to be registered."""
    path = Path(f"/dev/shm/tetriserve-test-{uuid.uuid4().hex[:8]}")
    path.write_bytes(bytes(REGION_BYTES))
    yield path.name
    path.unlink()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Endpoints]:
    """A bare tritonserver, which is up within seconds, in which trace and the model repository are closed."""
    installation, ports = find_installation(), LocalPorts.free()
    endpoints = Endpoints("127.0.0.1", ports.http, ports.grpc, ports.metrics)
    command = server_command(
        installation.server, backend_dir=tmp_path, repository=tmp_path, endpoints=endpoints,
        shm_prefix=f"{tmp_path.name}-", exit_timeout_s=1.0, closed_apis=("trace", "model-repository"), secret="-",
    )  # fmt: skip
    libraries = {"LD_LIBRARY_PATH": os.pathsep.join(str(folder) for folder in installation.library_dirs)}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **libraries}, stdout=log, stderr=log)
    try:
        wait_until_ready(endpoints)
        yield endpoints
    finally:
        process.kill()
        process.wait()


def wait_until_ready(endpoints: Endpoints) -> None:
    give_up_s = time.monotonic() + 60.0
    while True:
        try:
            urllib.request.urlopen(f"{endpoints.http_url}/v2/health/ready", timeout=5.0).close()
            return
        except OSError:
            assert time.monotonic() < give_up_s, "tritonserver does not start"
            time.sleep(0.1)


def register(http_url: str, region: str) -> HttpAnswer:
    body = {"key": f"/{region}", "offset": 0, "byte_size": REGION_BYTES}
    return post(http_url, f"/v2/systemsharedmemory/region/{region}/register", body)


def test_nobody_can_register_memory_or_turn_trace_and_log_over_http(server: Server, region: str) -> None:
    refused = [
        register(server.http_url, region),
        post(server.http_url, f"/v2/cudasharedmemory/region/{region}/register", {}),
        post(server.http_url, "/v2/trace/setting", {"trace_file": ["/tmp/x"]}),
        post(server.http_url, "/v2/models/tetriserve/trace/setting", {"trace_file": ["/tmp/x"]}),
        post(server.http_url, "/v2/logging", {"log_verbose_level": 1}),
    ]
    assert [answer.status for answer in refused] == [403] * 5
    # What a refused client is told names the setting, and not the secret.
    assert {answer.error for answer in refused} == {f"This API is {REFUSAL} 'supervisor.open_apis'"}


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.register_system_shared_memory("x", "/x", REGION_BYTES),
        lambda client: client.register_cuda_shared_memory("x", b"", 0, REGION_BYTES),
        lambda client: client.get_system_shared_memory_status(),
        lambda client: client.update_trace_settings(settings={"trace_file": "/tmp/x"}),
        lambda client: client.update_log_settings({"log_verbose_level": 1}),
    ],
)
def test_nobody_can_register_memory_or_turn_trace_and_log_over_grpc(
    server: Server, call: Callable[[Any], object]
) -> None:
    with (
        triton.InferenceServerClient(server.grpc_url) as client,
        pytest.raises(InferenceServerException, match=REFUSAL),
    ):
        call(client)


def test_all_that_clients_use_is_open(server: Server) -> None:
    assert generate(server.http_url, FIELDS).status == infer(server.http_url, FIELDS).status == 200
    results, error = stream(server.grpc_url, [tensor(name, value) for name, value in FIELDS.items()])
    assert (len(results), error) == (1, "")
    for path in ("", "/health/live", "/models/tetriserve", "/models/tetriserve/config", "/models/stats"):
        urllib.request.urlopen(f"{server.http_url}/v2{path}", timeout=10.0).close()
    assert post(server.http_url, "/v2/repository/index", {}).status == 200
    with triton.InferenceServerClient(server.grpc_url) as client:
        assert client.is_server_ready()
        assert client.get_model_metadata("tetriserve").name == "tetriserve"
        assert client.get_model_config("tetriserve").config.name == "tetriserve"
        assert client.get_inference_statistics().model_stats
        assert client.get_model_repository_index().models


def test_opened_api_is_open_and_the_others_are_not(opened: Endpoints, region: str) -> None:
    assert register(opened.http_url, region).status == 200
    assert post(opened.http_url, "/v2/logging", {"log_verbose_level": 0}).status == 200
    assert post(opened.http_url, "/v2/trace/setting", {}).status == 403
    assert post(opened.http_url, "/v2/repository/models/x/load", {}).status == 403
    with triton.InferenceServerClient(opened.grpc_url) as client:
        assert set(client.get_system_shared_memory_status().regions) == {region}
        client.unregister_system_shared_memory()
        client.register_system_shared_memory("by gRPC", f"/{region}", REGION_BYTES)
        with pytest.raises(InferenceServerException, match=REFUSAL):
            client.get_trace_settings()
        with pytest.raises(InferenceServerException, match=REFUSAL):
            client.load_model("x")
