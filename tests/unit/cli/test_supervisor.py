"""The supervisor hears a signal wherever it arrives."""

import sys
import threading
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from tetriserve_backend.cli.launcher import supervisor as module
from tetriserve_backend.cli.launcher.ports import Endpoints
from tetriserve_backend.cli.launcher.processes import Run
from tetriserve_backend.cli.launcher.state_file import StateFile
from tetriserve_backend.cli.launcher.stop_request import StopRequest
from tetriserve_backend.cli.launcher.supervisor import Supervisor
from tetriserve_backend.triton_adapter.settings import ServerSettings

LINES = 60
"""More than two rounds of waiting run, lines of the standard library included."""


@pytest.fixture(autouse=True)
def quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_S", 0.001)


def make_supervisor(folder: Path) -> Supervisor:
    run, endpoints = Run("r", folder), Endpoints("127.0.0.1", 1, 2, 3)
    plan: Any = SimpleNamespace(settings=ServerSettings(), endpoints=endpoints, log_path=None, run=run, import_path=())
    supervisor = Supervisor(plan, lambda text: None, StateFile(None, run, endpoints))
    supervisor._client = SimpleNamespace(is_ready=lambda: False)  # type: ignore[assignment]
    return supervisor


def wait_with_a_signal(supervisor: Supervisor, line: int) -> None:
    """Wait for a server as the main thread does, and be asked to stop before the given line of what runs then."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == line:
                supervisor.ask_to_stop()
        return trace

    server: Any = SimpleNamespace(find_death=lambda: None)
    sys.settrace(trace)
    supervisor._wait_ready(server)


def test_stop_is_heard_wherever_in_a_wait_the_signal_arrives(tmp_path: Path) -> None:
    for line in range(1, LINES):
        thread = threading.Thread(target=wait_with_a_signal, args=(make_supervisor(tmp_path), line), daemon=True)
        thread.start()
        thread.join(5.0)
        assert not thread.is_alive(), f"stuck by a signal before line {line}"


def test_second_request_is_urgent_and_a_wait_ends_at_the_first() -> None:
    request = StopRequest()
    assert not request.wait(0.001)
    request.make()
    assert (request.is_made, request.is_urgent) == (True, False)
    assert request.wait(60.0)
    request.make()
    assert request.is_urgent
