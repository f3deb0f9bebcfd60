"""What moving a latent costs beside staying."""

import asyncio
import json

import pytest

from tests.unit.profiling.fake_executor import BROADCAST_S, DISPATCH_S, HOST_S, FakeExecutor
from tetriserve_backend.domain import SegmentKind
from tetriserve_backend.engine.commands import SourceKind
from tetriserve_backend.latency_table.work import encode_work, step_work
from tetriserve_profiling.hand_over import (
    LatentMove,
    Move,
    MoveCost,
    MoveSample,
    list_moves,
    move_visits,
    moves_between,
    resolutions_to_move,
)
from tetriserve_profiling.profiler import Profiler
from tetriserve_profiling.record import Record
from tetriserve_profiling.settings import ProfileSettings

SETTINGS = ProfileSettings(resolutions=((256, 256), (512, 512)), repeats=3, rounds=1)


def test_moves_go_wider_narrower_and_elsewhere():
    assert list_moves([1, 2, 4], 4) == [
        Move((0,), (0, 1)), Move((0, 1), (0,)), Move((0, 1), (0, 1, 2, 3)), Move((0, 1, 2, 3), (0, 1)),
        Move((0,), (1,)), Move((0, 1), (2, 3)),
    ]  # fmt: skip
    assert list_moves([1], 1) == []


def test_the_latent_comes_as_the_engine_would_bring_it():
    assert Move((0,), (0, 1)).source.kind is SourceKind.BROADCAST
    assert Move((0, 1), (0,)).source.kind is SourceKind.RESIDENT
    elsewhere = Move((0, 1), (2, 3)).source
    assert (elsewhere.kind, elsewhere.root) == (SourceKind.HOST, 2)


def test_moves_are_measured_at_the_smallest_sizes_from_512_on():
    assert resolutions_to_move([(1024, 1024), (256, 256), (512, 512), (2048, 2048)]) == [(512, 512), (1024, 1024)]
    assert resolutions_to_move([(128, 128), (64, 64)]) == [(128, 128)]


def test_a_move_is_measured_only_between_steps_that_there_are():
    # 528x528 has 1,089 tokens, which no two ranks can share.
    steps = [step_work(528, 528), step_work(1024, 1024), step_work(1024, 1024, sp=2), step_work(512, 512, 2, 2)]
    assert moves_between(steps, 2) == [
        LatentMove(528, 528, Move((0,), (1,))),
        LatentMove(1024, 1024, Move((0,), (0, 1))),
        LatentMove(1024, 1024, Move((0, 1), (0,))),
        LatentMove(1024, 1024, Move((0,), (1,))),
    ]
    assert moves_between([step_work(512, 512), step_work(512, 512, cfg=2)], 1) == []


def test_the_smallest_shape_is_visited_twice_as_often_and_what_is_there_not_again():
    small, large = LatentMove(512, 512, Move((0,), (1,))), LatentMove(1024, 1024, Move((0,), (1,)))
    assert move_visits([small, large], 2, {}) == [small, small, large] * 2
    assert move_visits([small, large], 2, {small: 3, large: 1}) == [small, large]
    assert move_visits([], 2, {}) == []


SMALL, LARGE = (step_work(256, 256), step_work(256, 256, sp=2)), (step_work(512, 512), step_work(512, 512, sp=2))


def profiled(executor=None, record=None, on_progress=lambda progress: None, work=(*SMALL, *LARGE)):
    """The record after a profile with moves."""
    record = Record() if record is None else record
    profiler = Profiler(executor or FakeExecutor(), SETTINGS, record, on_progress)
    asyncio.run(profiler.measure([encode_work(), *work], with_moves=True))
    return record


def test_the_cost_of_a_move_is_what_it_takes_beyond_staying():
    costs = {cost.move: cost for cost in profiled().move_costs()}
    widened = costs[Move((0,), (0, 1))]
    assert widened.seconds == pytest.approx(BROADCAST_S)
    assert widened.between_s == pytest.approx(BROADCAST_S + DISPATCH_S)
    # On one rank the step after a move takes 1,024 tokens at 10 µs and 1 ms.
    moved = costs[Move((0,), (1,))]
    assert moved.seconds == pytest.approx(HOST_S, abs=1e-9)
    assert moved.share == pytest.approx(HOST_S / 0.01124)
    assert costs[Move((0, 1), (0,))].seconds == pytest.approx(0.0)
    assert {cost.samples for cost in costs.values()} == {6}, "the smallest size is measured twice as often"


def test_a_segment_that_seems_to_start_before_the_one_before_it_ends_is_no_time_less_than_nothing():
    samples = [MoveSample(-0.0001, 0.0002, 0.1), MoveSample(-0.0002, 0.0001, 0.1)]
    cost = MoveCost.of(LatentMove(512, 512, Move((0,), (0, 1))), samples)
    assert (cost.between_s, cost.seconds) == (0.0, 0.0)


def only_moves(fault):
    """The fault where a step does not start on rank 0: of what is measured, that is so after a move to rank 1."""
    return lambda c: fault() if c.segment.kind is SegmentKind.DENOISE and c.segment.placement.ranks == (1,) else None


def test_a_move_that_fails_is_told_and_left_out():
    told = []
    record = profiled(FakeExecutor(fault=only_moves(lambda: "bug")), on_progress=told.append)
    assert [progress.in_words() for progress in told if progress.problem] == [
        "hand-over 512x512 from (0,) to (1,): left out: bug"
    ]
    assert [cost.move for cost in record.move_costs()] == [Move((0,), (0, 1)), Move((0, 1), (0,))]
    assert [(progress.done, progress.total) for progress in told][-1] == (told[-1].total, told[-1].total)


def test_a_lost_rank_costs_no_move():
    lost = iter([True, False, True])
    executor = FakeExecutor(fault=only_moves(lambda: "lost" if next(lost, False) else None))
    assert {cost.samples for cost in profiled(executor).move_costs()} == {6}
    assert executor.reformed == 2


def test_a_move_that_loses_its_ranks_again_and_again_is_left_out():
    executor = FakeExecutor(fault=only_moves(lambda: "lost"))
    assert Move((0,), (1,)) not in [cost.move for cost in profiled(executor).move_costs()]
    assert executor.reformed == 3


def test_a_shape_whose_step_does_not_fit_has_no_move_to_it():
    def fault(command):
        segment = command.segment
        return "out of memory" if segment.height == 512 and segment.placement.ranks == (0, 1) else None

    record = profiled(FakeExecutor(fault=fault))
    assert [cost.move for cost in record.move_costs()] == [Move((0,), (1,))]


def test_moves_are_part_of_the_total_and_of_the_time_left():
    told = []
    profiled(on_progress=told.append)
    # One visit of an encode and four steps, and three moves twice in each of three turns.
    assert {progress.total for progress in told} == {5 + 3 * 2 * 3}
    assert [progress.done for progress in told] == list(range(1, 24))
    assert told[4].remaining_s and told[4].what == "step 512x512 batch 1 sp 2"
    assert (told[-1].remaining_s, told[-1].complete) == (0.0, True)


def test_moves_of_an_interrupted_profile_are_taken_up():
    class Interrupted(Exception):
        pass

    def interrupt(progress):
        if progress.done == 12:
            raise Interrupted

    record, told = Record(), []
    with pytest.raises(Interrupted):
        profiled(record=record, on_progress=interrupt)
    resumed = Record.from_dict(json.loads(json.dumps(record.to_dict())))
    assert sum(resumed.move_counts().values()) == 7
    profiled(record=resumed, on_progress=told.append)
    assert len(told) == 18 - 7
    assert set(resumed.move_counts().values()) == {6}
