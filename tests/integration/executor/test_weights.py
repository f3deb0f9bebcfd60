"""Ranks on one machine share one copy of the weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.executor.driver import Driver, make_request
from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.executor.demo_config import DemoFluxConfig
from tetriserve_backend.executor.demo_models import build_directory

# 130 MiB of transformer: a rank of its own needs about 50 MiB besides.
LARGE = DemoFluxConfig(num_layers=3, head_dim=64, rope_axes=(16, 24, 24))
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "large"
    build_directory(directory, LARGE)
    return directory


@pytest.fixture
def two_ranks(large_model: Path) -> Iterator[Driver]:
    driver = Driver(ModelSettings(path=str(large_model)), ExecutorSettings(world_size=2))
    try:
        yield driver.start()
    finally:
        driver.stop()


def test_two_ranks_map_one_copy_of_the_weights(two_ranks: Driver, large_model: Path) -> None:
    two_ranks.generate(make_request(), (((0,), 1), ((0, 1), 2), ((1,), 1)), decode_on=1)
    weights = large_model / WEIGHTS
    pids = list(two_ranks.executor.worker_pids().values())
    assert len(pids) == 2
    for pid in pids:
        mapped = kilobytes(Path(f"/proc/{pid}/smaps"), str(weights))
        assert mapped["Rss"] > 0.9 * weights.stat().st_size / 1024
        assert mapped["Private_Dirty"] == mapped["Private_Clean"] == 0
    rollups = [kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "[rollup]") for pid in pids]
    private = sum(rollup["Private_Dirty"] + rollup["Private_Clean"] for rollup in rollups)
    assert private < weights.stat().st_size / 1024


def kilobytes(smaps: Path, name: str) -> dict[str, int]:
    """Sums over all mappings of this name."""
    sums: dict[str, int] = {}
    inside = False
    for line in smaps.read_text().splitlines():
        first, *others = line.split()
        if not first.endswith(":"):
            inside = line.endswith(name)
        elif inside and others[-1] == "kB":
            sums[first[:-1]] = sums.get(first[:-1], 0) + int(others[0])
    return sums
