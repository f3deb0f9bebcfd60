"""Ranks in virtual time behind `tetriserve profile`, and what they were told."""

from pathlib import Path

import pytest

from tests.unit.profiling.fake_executor import FakeExecutor
from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.executor.machine import decide_dtype
from tetriserve_backend.executor.model_executor import ModelExecutor
from tetriserve_profiling import blank_model


class FakeRanks:
    """What `ModelExecutor.alone` gives: ranks on a CPU that call their model as real ones do, by its path.

    Attributes:
        told: the settings of each start.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        self.told: list[tuple[ModelSettings, ExecutorSettings]] = []
        monkeypatch.setattr(ModelExecutor, "alone", self._alone)
        monkeypatch.setenv("TETRISERVE_HOME", str(home))
        # A folder of a known model takes seconds to make, and nothing here reads it.
        monkeypatch.setattr(blank_model, "_make_blank_model", lambda name, directory: directory.mkdir(parents=True))

    def _alone(self, model: ModelSettings, settings: ExecutorSettings) -> FakeExecutor:
        self.told.append((model, settings))
        executor = FakeExecutor(settings.world_size or 2)
        executor.model_name, executor.dtype = model.path, decide_dtype(model, executor.device)
        return executor
