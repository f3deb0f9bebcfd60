"""What moving a latent costs beside staying."""

import asyncio

import pytest

from tests.unit.profiling.fake_executor import BROADCAST_S, DISPATCH_S, HOST_S, FakeExecutor
from tetriserve_backend.domain import LatencyTableError, SegmentKind
from tetriserve_backend.engine.commands import SourceKind
from tetriserve_profiling.hand_over import Move, list_moves, resolutions_to_move
from tetriserve_profiling.profiler import Profiler
from tetriserve_profiling.record import Record
from tetriserve_profiling.settings import ProfileSettings

SETTINGS = ProfileSettings(resolutions=((256, 256), (512, 512)), repeats=3)


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


def test_the_cost_of_a_move_is_what_it_takes_beyond_staying():
    profiler = Profiler(FakeExecutor(), SETTINGS, Record(), lambda progress: None)
    costs = {cost.move: cost for cost in asyncio.run(profiler.measure_moves([1, 2]))}
    widened = costs[Move((0,), (0, 1))]
    assert widened.seconds == pytest.approx(BROADCAST_S)
    assert widened.between_s == pytest.approx(BROADCAST_S + DISPATCH_S)
    # On one rank the step after a move takes 1,024 tokens at 10 µs and 1 ms.
    moved = costs[Move((0,), (1,))]
    assert moved.seconds == pytest.approx(HOST_S, abs=1e-9)
    assert moved.share == pytest.approx(HOST_S / 0.01124)
    assert costs[Move((0, 1), (0,))].seconds == pytest.approx(0.0)
    assert {cost.samples for cost in costs.values()} == {6}, "the smallest size is measured twice as often"


def test_a_move_that_fails_is_named():
    executor = FakeExecutor(
        fault=lambda c: "bug" if c.segment.kind is SegmentKind.DENOISE and c.segment.placement.ranks == (1,) else None
    )
    profiler = Profiler(executor, SETTINGS, Record(), lambda progress: None)
    with pytest.raises(LatencyTableError, match=r"hand-over from \(0,\) to \(1,\) failed: bug"):
        asyncio.run(profiler.measure_moves([1, 2]))
