"""A held pace waits for what is left of the time of the work, and makes up for what took too long."""

import pytest

from tests.unit.simulator.conftest import ENCODE_S, STEP_S, small_table
from tetriserve_backend.domain import (
    ConfigurationError,
    LatencyTableError,
    Placement,
    Segment,
    SegmentKind,
    SegmentPart,
)
from tetriserve_backend.executor import held_pace
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.held_pace import HeldPace
from tetriserve_backend.executor.machine import check_pace


class FakeTime:
    """A clock that only sleeping and the test move."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0.0
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(held_pace, "time", fake)
    return fake


def segment(kind: SegmentKind, side: int = 256, ranks: tuple[int, ...] = (0,), steps: int = 0) -> Segment:
    return Segment(1, kind, (SegmentPart("a", 0, steps),), Placement(ranks), side, side)


def test_each_step_ends_when_the_table_says_and_a_slow_one_is_made_up_for(clock: FakeTime) -> None:
    step_s = STEP_S[256][2]
    pace = HeldPace(small_table(), segment(SegmentKind.DENOISE, ranks=(0, 1), steps=4), clock.now_s)
    pace.wait_for(1)
    assert clock.now_s == pytest.approx(100.0 + step_s)
    clock.now_s += 1.5 * step_s
    pace.wait_for(2)
    assert clock.now_s == pytest.approx(100.0 + 2.5 * step_s), "too late to wait"
    pace.wait_for(3)
    assert clock.now_s == pytest.approx(100.0 + 3 * step_s)


def test_time_counts_from_when_the_last_rank_began(clock: FakeTime) -> None:
    HeldPace(small_table(), segment(SegmentKind.ENCODE), clock.now_s + 1.0).wait_for(1)
    assert clock.now_s == pytest.approx(101.0 + ENCODE_S)


def test_a_shape_that_the_table_lacks_is_refused(clock: FakeTime) -> None:
    with pytest.raises(LatencyTableError, match="1024"):
        HeldPace(small_table(), segment(SegmentKind.DENOISE, side=1024, steps=1), clock.now_s)


def test_gpus_have_locked_clocks_instead() -> None:
    settings = ModelSettings(pace_table="a.latency.json")
    check_pace(settings, "cpu")
    check_pace(ModelSettings(), "cuda")
    with pytest.raises(
        ConfigurationError, match=r"model.pace_table: 'a.latency.json'; allowed: on CPU.*--lock-gpu-clocks"
    ):
        check_pace(settings, "cuda")
