"""Before a compiled model serves, each group of ranks has run each shape of the table."""

import asyncio

import pytest

from tests.unit.profiling.fake_executor import FakeExecutor
from tetriserve_backend.domain import ConfigurationError, SegmentKind
from tetriserve_backend.latency_table import Work
from tetriserve_profiling.warm_up import warm_up

STEP = SegmentKind.DENOISE
WORKS = (
    Work(STEP, 256, 256, degree=1),
    Work(STEP, 256, 256, degree=2, batch=3),
    Work(STEP, 512, 256, degree=4, cfg_degree=2),
    Work(SegmentKind.ENCODE),
    Work(SegmentKind.DECODE, 256, 256),
)


def steps_of(executor: FakeExecutor) -> list[tuple]:
    segments = [command.segment for command in executor.commands if command.segment.kind is STEP]
    return [(s.height, s.batch_size, s.placement.ranks, s.cfg_degree, s.num_steps) for s in segments]


def test_every_group_runs_every_shape_once() -> None:
    executor = FakeExecutor(world_size=4)
    asyncio.run(warm_up(executor, WORKS, lambda _: None))
    assert steps_of(executor) == [
        (256, 1, (0,), 1, 1), (256, 1, (1,), 1, 1), (256, 1, (2,), 1, 1), (256, 1, (3,), 1, 1),
        (256, 3, (0, 1), 1, 1), (256, 3, (2, 3), 1, 1),
        (512, 1, (0, 1, 2, 3), 2, 1),
    ]  # fmt: skip


def test_guided_models_run_with_and_without_guidance() -> None:
    executor = FakeExecutor(world_size=1, guided=True)
    asyncio.run(warm_up(executor, WORKS[:1], lambda _: None))
    requests = [command.requests[0] for command in executor.commands if command.segment.kind is STEP]
    assert [request.guidance_scale > 1 for request in requests] == [True, False]


def test_nothing_is_left_behind_and_failures_name_the_shape() -> None:
    executor = FakeExecutor(
        world_size=2, fault=lambda command: "boom" if command.segment.placement.ranks == (0, 1) else None
    )
    with pytest.raises(ConfigurationError, match=r"256x256, batch 3, on 2 ranks failed: boom; .*segment_timeout_s"):
        asyncio.run(warm_up(executor, WORKS, lambda _: None))
    started = {request.request_id for command in executor.commands for request in command.requests}
    assert started == set(executor.released)
