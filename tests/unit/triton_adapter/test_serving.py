"""The engine's thread: starts, fails and stops visibly."""

import asyncio
import threading

import pytest

from tests.unit.triton_adapter.fakes import FakeEngine
from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.triton_adapter.serving import Serving, ServingThread


def test_posted_work_runs_on_the_loop_until_the_thread_is_stopped() -> None:
    async def build() -> Serving:
        return Serving(FakeEngine(), {})

    thread = ServingThread(build)
    thread.start()
    done = threading.Event()
    thread.post(lambda: (asyncio.get_running_loop(), done.set())[1])
    assert done.wait(5.0)
    thread.stop()
    thread.stop()


def test_failed_start_is_raised_where_it_was_asked_for() -> None:
    async def build() -> Serving:
        raise ConfigurationError("model.path: no such folder")

    with pytest.raises(ConfigurationError, match=r"model\.path"):
        ServingThread(build).start()
