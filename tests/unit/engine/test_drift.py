"""What the engine learns from measured times: how much slower work is, and whose fault that is."""

import random
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.engine.conftest import STEPS, Machine, make_request
from tetriserve_backend.domain import Placement, Segment, SegmentKind, SegmentPart
from tetriserve_backend.engine import events as ev
from tetriserve_backend.engine.commands import RunSegment, WarnOperator
from tetriserve_backend.engine.config import DriftSettings, EngineSettings
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.latency_table import LatencyTable, LatencyTables, Work
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy


@pytest.fixture
def machine(table):
    return Machine(table)


def test_a_true_table_stays_as_it_is(machine):
    draw = random.Random(1)
    for _ in range(500):
        ranks = draw.choice([(0,), (1,), (2, 3), (0, 1, 2, 3)])
        machine.run(ranks, draw.lognormvariate(0.0, 0.025), side=draw.choice([256, 512]))
    assert machine.tables.of("m") is machine.table and machine.warnings == []


def test_a_slower_machine_is_learnt_before_every_shape_has_been_seen(machine):
    machine.run((0,), 1.3, count=10)
    assert [machine.step_factor(side, degree) for side in (256, 512) for degree in (1, 2, 4)] == [
        pytest.approx(1.3)
    ] * 6
    assert machine.tables.of("m").decode_s(256, 256) == machine.table.decode_s(256, 256), "other work may not be slower"


def test_one_stale_entry_is_corrected_alone(machine):
    for _ in range(60):
        machine.run((0,), 1.0)
        machine.run((0, 1), 1.0)
        machine.run((0,), 1.0, side=512)
        machine.run((0, 1), 1.5, side=512)
    assert machine.step_factor(512, 2) == pytest.approx(1.5, rel=0.01)
    assert machine.step_factor(256, 2) == machine.step_factor(256, 1) == machine.step_factor(512, 1) == 1.0


def test_a_shape_between_profiled_ones_gets_its_own_factor(machine):
    for _ in range(40):
        machine.run((0,), 1.4, side=384)
        machine.run((0,), 1.0)
        machine.run((0,), 1.0, side=512)
    assert machine.step_factor(384, 1) == pytest.approx(1.4, rel=0.01)
    assert machine.step_factor(256, 1) == machine.step_factor(512, 1) == 1.0


def test_corrections_are_bounded(machine):
    machine.run((0,), 40.0, count=30)
    assert machine.step_factor(256, 1) == pytest.approx(3.0)
    machine.run((0,), 0.01, count=200)
    assert machine.step_factor(256, 1) == pytest.approx(0.5, rel=0.05)


def test_single_outliers_count_for_nothing(machine):
    for _ in range(20):
        machine.run((0,), 1.0, count=5)
        machine.run((0,), 12.0)
    assert machine.tables.of("m") is machine.table and machine.warnings == []


def test_what_nobody_measures_any_more_is_forgotten(machine):
    machine.run((0, 1), 1.5, count=20)
    machine.run((0,), 1.0, count=60)
    assert machine.step_factor(256, 2) == pytest.approx(1.5, rel=0.01)
    machine.run((0,), 1.0, count=1000)
    assert machine.step_factor(256, 2) == 1.0, "so that this degree is tried again"


def test_times_of_nothing_are_ignored(machine):
    machine.run((0,), 0.0, count=20)
    machine.run((0,), -1.0, count=20)
    assert machine.monitor.snapshot().shapes == ()


def test_without_correction_there_are_ratios_and_warnings_only(table):
    machine = Machine(table, correction=False)
    machine.run((0,), 1.3, count=20)
    assert machine.tables.version == 0 and machine.monitor.slowness((0,)) == 1.0
    (shape,) = machine.monitor.snapshot().shapes
    assert (shape.ratio, shape.factor, shape.work.degree) == (pytest.approx(1.3), 1.0, 1)
    assert len(machine.warnings) == 1


def test_a_shape_is_warned_of_once_until_it_is_back(machine):
    machine.run((0, 1), 1.2, side=512, count=30)
    (warning,) = machine.warnings
    assert "model 'm': a step of 512x512 on 2 ranks takes 1.20 times" in warning
    assert "median of 8 segments" in warning and "tetriserve profile" in warning
    machine.run((0, 1), 1.0, side=512, count=30)
    machine.run((0, 1), 1.2, side=512, count=30)
    assert len(machine.warnings) == 2 == machine.monitor.snapshot().warnings


def test_a_table_that_somebody_else_puts_is_measured_anew(machine):
    machine.run((0,), 1.3, count=20)
    profiled_again = machine.tables.of("m").corrected(lambda work: 1.0)
    machine.tables.put("m", profiled_again)
    machine.table = profiled_again
    machine.run((0,), 1.0, count=20)
    assert machine.tables.of("m") is profiled_again
    machine.tables.remove("m")
    machine.run((0,), 1.0)


def test_clients_that_ask_for_ever_new_shapes_cost_no_memory(machine):
    shapes = [(256 + 16 * i, 256 + 16 * j) for i in range(16) for j in range(16)]
    for height, width in shapes:
        part = (SegmentPart("r0", 0, STEPS),)
        segment = Segment(0, SegmentKind.DENOISE, part, Placement((0,)), height, width, "m")
        machine.now_s += 1.0
        end_s = machine.now_s + 2 * STEPS * machine.table.step_s(height, width, 1)
        machine.monitor.observe(segment, machine.now_s, end_s, machine.now_s)
    seen = machine.monitor.snapshot().shapes
    assert len(seen) < len(shapes) and (seen[-1].work.height, seen[-1].work.width) == shapes[-1]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([(0,), (1,), (2, 3), (0, 1, 2, 3)]), st.floats(1e-3, 1e3), st.sampled_from([256, 512])
        ),
        max_size=80,
    )
)
def test_whatever_is_measured_the_table_stays_a_table(table, measured):
    machine = Machine(table, min_samples=1)
    for ranks, ratio, side in measured:
        machine.run(ranks, ratio, side=side)
        current = machine.tables.of("m")
        assert current.resolutions == table.resolutions and current.dispatch_s == table.dispatch_s
        slowest = max(machine.monitor.slow_ranks.values(), default=1.0)
        for work in table.works:
            assert 0.5 * (1 - 1e-9) <= current.seconds(work) / table.seconds(work) <= 3.0 * slowest * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.55, 2.8), st.floats(0.0, 0.05), st.integers(0, 10_000))
@example(ratio=2.0, noise=0.0, seed=2017)
def test_a_constant_ratio_is_learnt_whatever_the_noise(table, ratio, noise, seed):
    machine, draw = Machine(table), random.Random(seed)
    for _ in range(80):
        machine.run((draw.randrange(4),), ratio * draw.lognormvariate(0.0, noise / STEPS**0.5))
    assert machine.step_factor(512, 4) == pytest.approx(ratio, rel=0.06)


def test_segments_that_failed_teach_nothing_and_the_policy_plans_with_what_was_learnt(table):
    tables = LatencyTables({"": table})
    policy = make_policy(SchedulerSettings(policy="fixed-sp1"), tables, 1)
    core = EngineCore(policy, tables, 1, EngineSettings(lead_s=0.0, drift=DriftSettings(min_samples=1)))
    now_s, told, expected_s = 0.0, [], []
    for index in range(12):
        queue = core.handle(ev.RequestArrived(make_request(f"r{index}", arrival_s=now_s)), now_s)
        while queue:
            command = queue.pop(0)
            if not isinstance(command, RunSegment):
                assert not isinstance(command, WarnOperator) or "a step of 256x256" in command.text
                continue
            segment, is_denoise = command.segment, command.segment.kind is SegmentKind.DENOISE
            if is_denoise and index % 3 == 2 and index not in told:
                told.append(index)
                now_s += 5.0
                behind = [segment, *(other.segment for other in queue if isinstance(other, RunSegment))]
                queue = []
                for lost in behind:
                    queue += core.handle(ev.SegmentFailed(lost.segment_id, "lost", retryable=True), now_s)
                continue
            expected_s += [command.expected_s] * is_denoise
            start_s = now_s
            now_s += 5 * 0.2 if is_denoise else command.expected_s - table.dispatch_s
            queue += core.handle(ev.SegmentFinished(segment.segment_id, start_s, now_s), now_s)
    assert len(told) == 4
    assert expected_s[0] == pytest.approx(5 * 0.1 + 0.001) and expected_s[-1] == pytest.approx(
        5 * 0.2 + 0.001, rel=0.01
    )
    assert tables.of("").seconds(Work(SegmentKind.DENOISE, 256, 256)) == pytest.approx(0.2, rel=0.01)


@pytest.mark.parametrize(
    ("wish", "is_guided", "factor"),
    [
        ({}, False, 2.0),
        ({"preview": True}, False, 1.0),
        ({"max_sequence_length": 8}, False, 1.0),
        ({"guidance_scale": 1.0}, True, 1.0),
        ({"guidance_scale": 1.0}, False, 2.0),
        ({"guidance_scale": 1.5}, True, 2.0),
    ],
)
def test_requests_that_the_table_does_not_know_teach_nothing(table, wish, is_guided, factor):
    tables = LatencyTables({"": LatencyTable.from_dict({**table.to_dict(), "guided": is_guided}, "test")})
    policy = make_policy(SchedulerSettings(policy="fixed-sp1"), tables, 1)
    core = EngineCore(policy, tables, 1, EngineSettings(lead_s=0.0, drift=DriftSettings(min_samples=1)))
    now_s = 0.0
    for index in range(12):
        request = replace(make_request(f"r{index}", arrival_s=now_s), **wish)
        queue = core.handle(ev.RequestArrived(request), now_s)
        while queue:
            command = queue.pop(0)
            if not isinstance(command, RunSegment):
                continue
            segment, start_s = command.segment, now_s
            now_s += 2 * 0.1 * segment.num_steps or command.expected_s - table.dispatch_s
            queue += core.handle(ev.SegmentFinished(segment.segment_id, start_s, now_s), now_s)
    seconds = tables.of("").seconds(Work(SegmentKind.DENOISE, 256, 256))
    assert seconds == pytest.approx(0.1 * factor, rel=0.01)
