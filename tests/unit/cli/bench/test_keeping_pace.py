"""A table or a run is only worth something where ranks that hold a pace were able to."""

import statistics

import pytest

from tests.unit.simulator.conftest import small_table
from tetriserve_backend.cli.bench import measuring
from tetriserve_backend.cli.bench.keeping_pace import behind_pace, kept_pace
from tetriserve_backend.cli.bench.measuring import measure_at_pace, measure_fastest, measure_free
from tetriserve_backend.domain import Placement, Segment, SegmentKind, SegmentPart, ServerError
from tetriserve_backend.latency_table.work import step_work
from tetriserve_backend.simulator.pace import TimedSegment
from tetriserve_backend.triton_adapter.settings import ServerSettings
from tetriserve_profiling.settings import ProfileSettings

PACE = small_table()
PROFILE = ProfileSettings(resolutions=((512, 512),))
SLOW = step_work(512, 512, sp=2)


def disturbed(times):
    """A table in which one entry took so many times as long as the pace says."""
    return PACE.corrected(lambda work: times if work == SLOW else 1.0)


def a_run(times):
    """Two segments of a request on two ranks; the second took so many times as long as the pace says."""
    whole_s = 4 * PACE.seconds(SLOW)
    for number, (start_s, factor) in enumerate([(0.0, 1.0), (whole_s, times)]):
        part = SegmentPart("r0", 4 * number, 4)
        segment = Segment(number, SegmentKind.DENOISE, (part,), Placement((0, 1)), 512, 512)
        yield TimedSegment(segment, start_s, start_s + factor * whole_s)


@pytest.mark.parametrize(("times", "kept"), [(1.0, True), (1.02, True), (1.2, False)])
def test_ranks_that_take_longer_than_their_pace_allows_have_not_kept_it(times, kept):
    assert kept_pace(a_run(times), PACE) is kept


def test_a_measured_table_names_the_entries_that_were_behind_the_pace():
    assert behind_pace(disturbed(1.02), PACE) == []
    (entry,) = behind_pace(disturbed(1.4), PACE)
    assert str(SLOW) in entry and "1.40 times" in entry


def measured_as(monkeypatch, *tables):
    """The next tables that are measured; what they were made of."""
    waiting, asked = list(tables), []

    def measure(server, profile, tell, *, choose=statistics.fmean, with_moves=False):
        asked.append((choose, with_moves))
        return waiting.pop(0)

    monkeypatch.setattr(measuring, "measure", measure)
    return asked


def test_a_table_behind_its_pace_is_measured_again(monkeypatch):
    asked, told = measured_as(monkeypatch, disturbed(1.4), disturbed(1.01)), []
    found = measure_at_pace(ServerSettings(), PROFILE, PACE, told.append)
    assert found.seconds(SLOW) == pytest.approx(1.01 * PACE.seconds(SLOW))
    assert asked == [(statistics.median, True)] * 2 and "1 entries" in told[-1]


def test_a_machine_that_never_leaves_the_ranks_their_time_is_an_error_that_says_what_to_do(monkeypatch):
    measured_as(monkeypatch, *[disturbed(1.4)] * 3)
    with pytest.raises(ServerError, match=r"1\.40 times.*larger hold_pace"):
        measure_at_pace(ServerSettings(), PROFILE, PACE, lambda text: None)


WIDEST = step_work(512, 512, sp=4)
"""3.08 times as fast as on one rank."""


def crowded(times, fast=1.0):
    """Four ranks together took so many times as long as they could, everything else `fast` of its time."""
    return PACE.corrected(lambda work: times if work == WIDEST else fast)


def test_fastest_moments_are_measured_again_until_ranks_together_were_quick(monkeypatch):
    asked, told = measured_as(monkeypatch, crowded(2.0), crowded(1.0, fast=1.5)), []
    found = measure_fastest(ServerSettings(), PROFILE, told.append, speed_up=2.0)
    assert asked == [(min, False)] * 2 and "1.82 times as fast as one" in told[-1]
    assert all(found.seconds(work) == pytest.approx(PACE.seconds(work)) for work in PACE.works), "the best of both"


def test_fastest_moments_are_taken_as_they_are_where_no_gain_is_expected(monkeypatch):
    asked = measured_as(monkeypatch, crowded(2.0))
    found = measure_fastest(ServerSettings(), PROFILE, lambda text: None, speed_up=None)
    assert found.seconds(WIDEST) == pytest.approx(2 * PACE.seconds(WIDEST)) and len(asked) == 1


def test_the_table_of_free_ranks_is_the_one_in_which_they_gained_the_most(monkeypatch):
    tables = crowded(2.0), crowded(1.5, fast=1.1), crowded(1.8)
    asked = measured_as(monkeypatch, *tables)
    assert measure_free(ServerSettings(), PROFILE, lambda text: None, speed_up=3.0) is tables[1], "means, unmixed"
    assert asked == [(statistics.fmean, True)] * 3


@pytest.mark.parametrize("speed_up", [None, 1.4])
def test_free_ranks_that_gain_enough_are_measured_once(monkeypatch, speed_up):
    asked = measured_as(monkeypatch, crowded(2.0))
    assert measure_free(ServerSettings(), PROFILE, lambda text: None, speed_up=speed_up).speed_up(512, 512) < 2.0
    assert len(asked) == 1


def test_a_machine_on_which_ranks_gain_nothing_together_is_measured_three_times_and_taken_as_it_is(monkeypatch):
    asked = measured_as(monkeypatch, *[crowded(2.0)] * 3)
    assert measure_fastest(ServerSettings(), PROFILE, lambda text: None, speed_up=2.0).speed_up(512, 512) < 2.0
    assert len(asked) == 3
