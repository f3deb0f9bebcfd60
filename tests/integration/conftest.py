"""Real servers for the integration tests: one shared by the whole session, others on demand."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tetriserve_backend.cli.timeline_check import find_problems
from tetriserve_client.local_server import LocalServer

# A shell starts its background jobs with SIGINT ignored, and whatever they start inherits that: Ctrl-C would be lost on
# the processes under test.
signal.signal(signal.SIGINT, signal.default_int_handler)

START_TIMEOUT_S = 300.0
LONGEST_FIRST = (
    "docker/test_dockerfile.py",
    "executor/test_lifecycle.py",
    "server/test_faults.py",
    "server/test_several_models.py",
    "executor/test_compile.py",
    "clients/test_demo.py",
    "clients/test_load_tools.py",
    "bench/test_bench.py",
    "executor/test_faults.py",
    "executor/test_sd3_parity.py",
)
"""Files that two workers must not leave for the end, where one of them would wait for the other."""
TEST_OPTIONS = (
    "--world-size",
    "2",
    "--set",
    "quick_resolutions=[64x64, 128x128, 256x256]",
    "--set",
    "request.height=128",
    "--set",
    "request.width=128",
    "--set",
    "request.num_inference_steps=4",
)
"""Two ranks and small images, so that a start and a request are quick."""


@dataclass(frozen=True)
class Server:
    """A running server, where it writes its timeline, and what it tells programs about itself."""

    local: LocalServer
    folder: Path

    @property
    def http_url(self) -> str:
        return self.local.http_url

    @property
    def grpc_url(self) -> str:
        return self.local.grpc_url

    @property
    def timeline_path(self) -> Path:
        return self.folder / "live.timeline.json"

    @property
    def log(self) -> str:
        return (self.folder / "serve.log").read_text(encoding="utf-8", errors="replace")

    def state(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "state.json").read_text(encoding="utf-8")))

    def wait_for_state(self, state: str, restarts: int, timeout_s: float) -> float:
        """Seconds until the state file says so."""
        start_s = time.monotonic()
        while (found := self.state())["state"] != state or found["restarts"] < restarts:
            assert time.monotonic() - start_s < timeout_s, f"{found}\n{self.log}"
            time.sleep(0.05)
        return time.monotonic() - start_s

    def stop_and_check(self) -> None:
        """Stop it; if it ends as it should, its timeline must be whole."""
        if self.local.stop() == 0:
            self.check_timeline()

    def check_timeline(self) -> None:
        """Whatever happened on this server, its timeline must hold what the engine promises."""
        events = json.loads(self.timeline_path.read_text(encoding="utf-8"))["traceEvents"]
        assert find_problems(events, num_gpus=2) == []

    def stub(self, model: str) -> psutil.Process:
        """The stub process of a model."""
        children = psutil.Process(self.state()["server_pid"]).children()
        return next(child for child in children if any(f"/{model}/1/model.py" in part for part in child.cmdline()))

    def ranks(self) -> list[psutil.Process]:
        """The rank processes: the leaves below the stub of denoise, whatever started them."""
        return [child for child in self.stub("denoise").children(recursive=True) if not child.children()]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first; all else keeps its order."""
    here = Path(__file__).parent
    ranks = {here / name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(scope="session")
def tetriserve_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home for generated models and tables, shared by all workers; the caller's own if TETRISERVE_HOME is set."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    home = Path(os.environ.get("TETRISERVE_HOME") or folder / "home")
    home.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TETRISERVE_HOME", str(home))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield home


def start_server(folder: Path, *options: str) -> Server:
    """A server of its own that serves; the caller stops it."""
    server = Server(
        LocalServer(
            folder / "serve.log",
            [
                *TEST_OPTIONS,
                "--timeline",
                str(folder / "live.timeline.json"),
                "--state-file",
                str(folder / "state.json"),
                *options,
            ],
            start_timeout_s=START_TIMEOUT_S,
        ),
        folder,
    )
    server.local.start()
    server.wait_for_state("ready", 0, START_TIMEOUT_S)
    return server


@pytest.fixture(scope="session")
def server(tetriserve_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that tests share; no test may break it."""
    running = start_server(tmp_path_factory.mktemp("server"))
    yield running
    assert running.local.stop() == 0, running.log
    running.check_timeline()


@pytest.fixture
def own_server(tetriserve_home: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers that a test may break; they are stopped after it."""
    started: list[Server] = []

    def start(*options: str) -> Server:
        folder = tmp_path / f"server{len(started)}"
        folder.mkdir()
        started.append(start_server(folder, *options))
        return started[-1]

    yield start
    for running in started:
        running.stop_and_check()
