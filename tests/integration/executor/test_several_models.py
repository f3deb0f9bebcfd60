"""Ranks hold several models at a time, whichever of them come, go or fail."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.executor.conftest import Reference
from tests.integration.executor.driver import Driver, make_request
from tests.integration.executor.test_lifecycle import linked_copy
from tests.integration.executor.test_parity import assert_same_image
from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.engine.events import WorkerLost
from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.executor.model_executor import ModelExecutor
from tetriserve_backend.executor.xdit_executor import XditExecutor

BOTH_RANKS = (((0, 1), 2), ((1,), 2))


class TwoModels:
    """One world, and a driver for each of its models."""

    def __init__(self) -> None:
        self.drivers: dict[str, Driver] = {}
        self.ranks = XditExecutor(ExecutorSettings(world_size=2))
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.ranks.start())

    def load(self, directory: Path) -> Driver:
        settings = ModelSettings(path=str(directory))
        spec = self.loop.run_until_complete(self.ranks.find_model(directory.name, settings))
        loaded = self.loop.run_until_complete(self.ranks.load_model(spec))
        driver = Driver(settings, ExecutorSettings(world_size=2))
        driver.loop.close()
        driver.loop, driver.executor = self.loop, ModelExecutor(self.ranks, settings, loaded)
        self.drivers[directory.name] = driver
        return driver

    def unload(self, directory: Path) -> None:
        self.loop.run_until_complete(self.ranks.unload_model(directory.name))

    def maps(self, directory: Path) -> list[str]:
        """Files of a model that ranks have in their memory."""
        return [
            mapped.path
            for pid in self.ranks.worker_pids().values()
            for mapped in psutil.Process(pid).memory_maps()
            if mapped.path.startswith(f"{directory}/")
        ]


@pytest.fixture
def shared() -> Iterator[TwoModels]:
    running = TwoModels()
    yield running
    running.loop.run_until_complete(running.ranks.shutdown())
    running.loop.close()


def test_models_come_and_go_and_a_new_rank_has_those_that_are_there(
    shared: TwoModels, tiny_model: Path, tiny_sd35: Path, reference: Reference
) -> None:
    flux, sd3 = shared.load(tiny_model), shared.load(tiny_sd35)
    assert flux.executor.facts != sd3.executor.facts
    request = make_request(seed=3)

    def check(driver: Driver, directory: Path) -> None:
        assert_same_image(driver.generate(request, BOTH_RANKS), reference(directory, request, 64))

    check(flux, tiny_model)
    check(sd3, tiny_sd35)
    os.kill(shared.ranks.worker_pids()[1], signal.SIGKILL)
    flux.wait_for(WorkerLost)
    flux.reform()
    check(sd3, tiny_sd35)
    check(flux, tiny_model)
    assert shared.maps(tiny_sd35)
    shared.unload(tiny_sd35)
    assert not shared.maps(tiny_sd35)
    check(flux, tiny_model)
    check(shared.load(tiny_sd35), tiny_sd35)


def test_model_that_cannot_be_loaded_costs_nothing_but_the_attempt(
    shared: TwoModels, tiny_model: Path, tmp_path: Path
) -> None:
    broken = linked_copy(tiny_model, tmp_path / "broken")
    (broken / "transformer" / "config.json").unlink()
    flux = shared.load(tiny_model)
    pids = shared.ranks.worker_pids()
    with pytest.raises(ConfigurationError, match="could not load 'broken'"):
        shared.load(broken)
    with pytest.raises(ConfigurationError, match="is loaded already"):
        shared.load(tiny_model)
    flux.generate(make_request(), BOTH_RANKS)
    assert shared.ranks.worker_pids() == pids
