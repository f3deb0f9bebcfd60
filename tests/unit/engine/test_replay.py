"""Live equals simulated: the same events make the same decisions, event for event."""

import asyncio
import random

import pytest

from tests.unit.engine.conftest import make_request
from tests.unit.engine.test_async_engine import Collector, InstantExecutor, now_request
from tetriserve_backend.engine.async_engine import AsyncEngine
from tetriserve_backend.engine.commands import RunSegment
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.latency_table import LatencyTables
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.simulator.virtual_world import RankFailure, VirtualWorld

SETTINGS = {name: SchedulerSettings(policy=name) for name in ("tetris", "tetriserve", "rssp", "fixed-sp2")}
SETTINGS["tetris in pods"] = SchedulerSettings(policy="tetris", pod_size=2)


class RecordingCore(EngineCore):
    """Keeps each event with its time and what came of it."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.stream = []

    def handle(self, event, now_s):
        commands = super().handle(event, now_s)
        self.stream.append((event, now_s, list(commands)))
        return commands


def core_of(table, settings):
    tables = LatencyTables({"": table})
    return RecordingCore(make_policy(settings, tables, 4), tables, 4, EngineSettings())


def check_replay(core, table, settings):
    fresh = core_of(table, settings)
    assert any(isinstance(command, RunSegment) for _, _, commands in core.stream for command in commands)
    for event, now_s, commands in core.stream:
        assert fresh.handle(event, now_s) == commands


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_simulated_stream_makes_the_same_decisions_in_a_fresh_engine(table, settings):
    rng = random.Random(3)
    requests = [
        make_request(f"r{index}", rng.choice([256, 512]), arrival_s=0.2 * index, slo_s=rng.uniform(0.5, 3.0))
        for index in range(40)
    ]
    core = core_of(table, settings)
    world = VirtualWorld(
        core, table, 4, failures=[RankFailure(1, 2.0, 1.5)], stretch=lambda segment, start_s: rng.uniform(0.9, 1.3)
    )
    assert len(list(world.run(requests))) == len(requests)
    assert core.drift().corrected, "the stream should make the core learn"
    check_replay(core, table, settings)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_live_stream_makes_the_same_decisions_in_a_fresh_engine(table, settings):
    core = core_of(table, settings)

    async def live():
        engine = AsyncEngine(core, InstantExecutor())
        await engine.start()
        listeners = [Collector() for _ in range(12)]
        for index, listener in enumerate(listeners):
            engine.submit(now_request(f"r{index}"), listener)
            await asyncio.sleep(0.001 * (index % 3))
        await asyncio.wait_for(asyncio.gather(*(listener.done.wait() for listener in listeners)), 10)
        await engine.shutdown()
        assert all(len(listener.answers) == 1 for listener in listeners)

    asyncio.run(live())
    check_replay(core, table, settings)
