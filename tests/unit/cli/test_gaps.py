"""Idle time between segments of a request is what its ranks spend on nothing."""

import pytest

from tests.unit.test_timeline_check import work
from tetriserve_backend.cli.overhead.gaps import idle_share


def test_ranks_that_stay_and_wait_are_idle():
    events = [*work(0, [0], "denoise", 0, 100, 0, 2), *work(1, [0], "denoise", 110, 90, 2, 2)]
    assert idle_share(events) == pytest.approx(10 / 190)


def test_work_for_others_in_between_is_not_idle_time():
    events = [
        *work(0, [0, 1], "denoise", 0, 100, 0, 2),
        *work(1, [1], "denoise", 100, 40, 0, 1, request="other"),
        *work(2, [0, 1], "denoise", 150, 100, 2, 2),
    ]
    assert idle_share(events) == pytest.approx(10 / 240)


def test_a_request_that_moves_leaves_no_idle_time_behind():
    events = [*work(0, [0], "encode", 0, 50), *work(1, [0, 1], "denoise", 80, 50, 0, 4)]
    assert idle_share(events) == 0.0
    assert idle_share([]) == 0.0
