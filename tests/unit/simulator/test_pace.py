"""The pace of a real run is what its segments took beside the table, rank by rank and second by second."""

from dataclasses import replace

import pytest

from tests.unit.simulator.conftest import ENCODE_S, STEP_S, make_request, small_table
from tetriserve_backend.domain import Placement, Segment, SegmentKind, SegmentPart
from tetriserve_backend.engine.config import EngineSettings
from tetriserve_backend.engine.core import EngineCore
from tetriserve_backend.latency_table import LatencyTable
from tetriserve_backend.scheduler.config import SchedulerSettings
from tetriserve_backend.scheduler.registry import make_policy
from tetriserve_backend.simulator.pace import Pace, TimedSegment
from tetriserve_backend.simulator.virtual_world import VirtualWorld


def denoise(ranks, *, side=256, steps=5):
    return Segment(0, SegmentKind.DENOISE, (SegmentPart("r", 0, steps),), Placement(ranks), side, side)


def timed(segment, start_s, factor):
    """A segment that took `factor` times what the table says."""
    side, degree = segment.height, segment.placement.sp_degree
    return TimedSegment(segment, start_s, start_s + factor * segment.num_steps * STEP_S[side][degree])


def test_work_as_fast_as_the_table_has_pace_one(table):
    pace = Pace([timed(denoise((0,)), 0.0, 1.0), timed(denoise((1,), side=512), 0.0, 1.0)], table)
    assert pace(denoise((1,)), 0.5) == pytest.approx(1.0) and pace.overall == pytest.approx(1.0)


def test_a_kind_of_work_that_the_table_has_wrong_keeps_its_own_factor(table):
    pace = Pace([timed(denoise((0,)), 0.0, 1.5), timed(denoise((1,), side=512), 0.0, 1.0)], table)
    assert pace(denoise((0,)), 0.2) == pytest.approx(1.5)
    assert pace(denoise((1,), side=512), 0.2) == pytest.approx(1.0)


def test_split_guidance_is_a_kind_of_work_of_its_own():
    step_s = {"sp": 0.4, "split": 0.3}
    document = small_table().to_dict()
    shape = {"height": 256, "width": 256, "batch": 1}
    document["step"] = [
        {**shape, "sp": 1, "seconds": 0.6},
        {**shape, "sp": 2, "seconds": step_s["sp"]},
        {**shape, "sp": 1, "cfg": 2, "seconds": step_s["split"]},
    ]
    guided = LatencyTable.from_dict({**document, "guided": True}, origin="test")
    split = replace(denoise((0, 1)), cfg_degree=2)
    pace = Pace(
        [TimedSegment(split, 0.0, 5 * step_s["split"]), TimedSegment(denoise((0, 1)), 9.0, 9 + 5 * 0.6)], guided
    )
    assert pace(split, 0.0) == pytest.approx(1.0) and pace(denoise((0, 1)), 9.0) == pytest.approx(1.5)


def test_a_group_is_as_slow_as_its_slowest_rank_at_that_time(table):
    slow_then_even = [timed(denoise((0,)), 0.0, 2.0), timed(denoise((1,)), 0.0, 1.0)]
    slow_then_even += [timed(denoise((rank,)), 10.0, 1.5) for rank in (0, 1)]
    pace = Pace(slow_then_even, table)
    assert pace(denoise((0, 1)), 0.1) > pace(denoise((1,)), 0.1)
    assert pace(denoise((0, 1)), 0.1) / pace(denoise((0, 1)), 10.1) == pytest.approx(2.0 / 1.5, rel=0.01)


def test_a_segment_goes_through_slow_and_fast_times_alike(table):
    slow_s = 2.0 * 5 * STEP_S[256][1]
    seen = [timed(denoise((0,)), 0.0, 2.0), timed(denoise((0,)), slow_s, 1.0)]
    pace = Pace(seen, table, bin_s=slow_s)
    assert pace(denoise((0,)), 0.0) == pytest.approx(2.0)
    assert pace(denoise((0,)), slow_s / 2) == pytest.approx(1.5)
    assert pace(denoise((0,), steps=10), 0.0) == pytest.approx(1.5)


def test_times_and_ranks_without_work_take_the_next_best_answer(table):
    pace = Pace([timed(denoise((0,)), 0.0, 2.0)], table)
    assert pace(denoise((3,)), 0.1) == pytest.approx(2.0)
    assert pace(denoise((3,)), 99.0) == pytest.approx(2.0)
    assert Pace([], table)(denoise((0,)), 0.0) == 1.0


@pytest.mark.parametrize("policy", ["tetris", "tetriserve", "rssp", "fixed-sp2"])
def test_a_run_on_a_machine_that_slows_down_is_repeated_from_its_segments_alone(table, policy):
    requests = [make_request(f"r{n}", (256, 512)[n % 2], arrival_s=0.3 * n, slo_s=6.0) for n in range(40)]

    def serve(stretch, seen=None):
        core = EngineCore(make_policy(SchedulerSettings(policy=policy), table, 4), table, 4, EngineSettings())
        note = (lambda *_: None) if seen is None else lambda *span: seen.append(TimedSegment(*span))
        world = VirtualWorld(core, table, 4, stretch=stretch, on_segment=note)
        return {outcome.request.request_id: outcome for outcome in world.run(requests)}

    segments = []
    real = serve(lambda segment, start_s: 1.6 if start_s > 4.0 and 0 in segment.placement.ranks else 1.1, segments)
    unaware = serve(lambda segment, start_s: 1.0)
    repeated = serve(Pace(segments, table))

    def mean_s(outcomes):
        return sum(outcome.end_s - outcome.request.arrival_s for outcome in outcomes.values()) / len(outcomes)

    assert mean_s(repeated) == pytest.approx(mean_s(real), rel=0.05)
    assert mean_s(unaware) < 0.9 * mean_s(real)
    assert abs(sum(o.on_time for o in repeated.values()) - sum(o.on_time for o in real.values())) <= 2


def test_what_the_table_says_of_encoding_counts_too(table):
    encode = Segment(0, SegmentKind.ENCODE, (SegmentPart("r"),), Placement((0,)), 256, 256)
    pace = Pace([TimedSegment(encode, 0.0, 3 * ENCODE_S)], table)
    assert pace(encode, 0.0) == pytest.approx(3.0)
