"""A compiled model makes the same images."""

from pathlib import Path

from tests.integration.executor.conftest import Reference
from tests.integration.executor.driver import Driver, make_request
from tests.integration.executor.test_parity import assert_same_image
from tetriserve_backend.domain import SegmentKind
from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.latency_table import Work
from tetriserve_profiling.warm_up import warm_up


def test_compiled_model_makes_the_image_of_diffusers(tiny_model: Path, reference: Reference) -> None:
    """On two ranks only: one compilation of each kind of block takes most of this test's time."""
    settings = ExecutorSettings(world_size=2, segment_timeout_s=300.0, group_timeout_s=300.0)
    driver = Driver(ModelSettings(path=str(tiny_model), compile=True), settings)
    try:
        driver.start()
        shapes: list[str] = []
        driver.do(warm_up(driver.executor, [Work(SegmentKind.DENOISE, 128, 128, degree=2)], shapes.append))
        assert shapes == ["warmed 128x128, batch 1, on 2 ranks"]
        request = make_request()
        assert_same_image(driver.generate(request, (((0, 1), 4),)), reference(tiny_model, request, 64))
    finally:
        driver.stop()
