"""Idle time between segments of a request is what its ranks spend on nothing."""

import pytest

from tests.unit.test_timeline_check import work
from tetriserve_backend.cli.overhead.gaps import RequestIdle, idle_of_requests, idle_share


def test_ranks_that_stay_and_wait_are_idle():
    events = [*work(0, [0], "denoise", 0, 100, 0, 2), *work(1, [0], "denoise", 110, 90, 2, 2)]
    (found,) = idle_of_requests(events)
    assert found == RequestIdle("r0", pytest.approx(10e-6), pytest.approx(190e-6))
    assert found.share == pytest.approx(10 / 190)


def test_work_for_others_in_between_is_not_idle_time():
    events = [
        *work(0, [0, 1], "denoise", 0, 100, 0, 2),
        *work(1, [1], "denoise", 100, 40, 0, 1, request="other"),
        *work(2, [0, 1], "denoise", 150, 100, 2, 2),
    ]
    shares = {one.request_id: one.share for one in idle_of_requests(events)}
    assert shares == {"r0": pytest.approx(10 / 200), "other": 0.0}
    assert idle_share(idle_of_requests(events)) == pytest.approx(10 / 240), "of all work"


def test_a_request_that_moves_leaves_no_idle_time_behind():
    events = [*work(0, [0], "encode", 0, 50), *work(1, [0, 1], "denoise", 80, 50, 0, 4)]
    assert idle_share(idle_of_requests(events)) == 0.0
    assert idle_share([]) == RequestIdle("r0", 0.0, 0.0).share == 0.0
