"""Segments go out in one order, wait for what they need, and are told of exactly once."""

import pytest

from tests.unit.executor.segments import ALL, CREATE, denoise, done, failed, from_host, latent_copy, sent_ids
from tetriserve_backend.engine.events import SegmentFailed, SegmentFinished
from tetriserve_backend.executor.dispatcher import Dispatcher
from tetriserve_backend.executor.flight import KillRanks, SendForget, SendHeal, SendSegment
from tetriserve_backend.executor.host_store import HostStore


@pytest.fixture
def dispatcher() -> Dispatcher:
    made = Dispatcher(HostStore(), segment_timeout_s=10.0, heals_in_place=True)
    made.world_formed(ALL)
    return made


def test_segment_goes_out_at_once_behind_others_of_its_ranks(dispatcher: Dispatcher) -> None:
    assert sent_ids(dispatcher.submit(denoise(1, (0, 1)))) == [1]
    assert sent_ids(dispatcher.submit(denoise(2, (0, 1), first=5))) == [2]


def test_span_is_what_all_ranks_shared(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0, 1)))
    assert dispatcher.part_done(0, done(1, 1.0, 3.0), ()) == []
    assert dispatcher.part_done(1, done(1, 1.5, 2.5), ()) == [SegmentFinished(1, 1.5, 2.5)]


def test_segment_waits_for_the_host_copy_of_the_one_before(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0,)))
    assert dispatcher.submit(denoise(2, (2, 3), first=5, latent=from_host(2))) == []
    finished, sent = dispatcher.part_done(0, done(1), latent_copy("r0", 5))
    assert finished == SegmentFinished(1, 1.0, 2.0)
    assert isinstance(sent, SendSegment)
    assert {rank: [t.header.step for t in tensors] for rank, tensors in sent.tensors.items()} == {2: [5]}


def test_segment_that_waits_holds_back_later_ones_of_its_ranks_only(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0,)))
    dispatcher.submit(denoise(2, (2, 3), first=5, latent=from_host(2)))
    assert dispatcher.submit(denoise(3, (3,), "r1")) == []
    assert sent_ids(dispatcher.submit(denoise(4, (1,), "r2"))) == [4]
    assert sent_ids(dispatcher.part_done(0, done(1), latent_copy("r0", 5))) == [2, 3]


def test_segment_that_waits_for_late_work_is_overtaken_by_other_requests_but_not_by_its_own(
    dispatcher: Dispatcher,
) -> None:
    dispatcher.submit(denoise(1, (0,), expected_s=0.5))
    dispatcher.submit(denoise(2, (2, 3), first=5, latent=from_host(2)))
    dispatcher.submit(denoise(3, (2, 3), first=10))
    assert dispatcher.submit(denoise(4, (3,), "r1")) == []
    assert dispatcher.overdue(100.0) == []
    assert dispatcher.overdue(101.9) == []
    assert sent_ids(dispatcher.overdue(102.1)) == [4]
    assert sent_ids(dispatcher.submit(denoise(5, (2,), "r2"))) == [5]
    assert sent_ids(dispatcher.part_done(0, done(1), latent_copy("r0", 5))) == [2, 3]
    assert dispatcher.submit(denoise(6, (1,), first=15, latent=from_host(1))) == []
    # Nothing is late any more: turns are kept again.
    assert dispatcher.submit(denoise(7, (1,), "r1")) == []


def test_segment_that_waits_for_its_group_does_not_hold_back_other_work_of_the_ranks(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0, 1)))
    dispatcher.part_failed(0, failed(1), 0.0)
    assert dispatcher.submit(denoise(2, (0, 1), "r1")) == []
    assert sent_ids(dispatcher.submit(denoise(3, (0,), "r2"))) == [3]


def test_end_of_a_request_fails_what_was_not_sent_and_keeps_nothing_of_what_was(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0,)))
    dispatcher.submit(denoise(2, (2, 3), first=5, latent=from_host(2)))
    dispatcher.submit(denoise(3, (2,), "r1"))
    failure, forget, sent = dispatcher.release("r0")
    assert isinstance(failure, SegmentFailed)
    assert failure.segment_id == 2
    assert forget == SendForget("r0")
    assert sent_ids([sent]) == [3]
    assert dispatcher.part_done(0, done(1), latent_copy("r0", 5)) == [SegmentFinished(1, 1.0, 2.0)]
    assert dispatcher._store.latent("r0") is None


def test_id_that_is_used_again_gets_nothing_of_the_request_before(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0,)))
    dispatcher.release("r0")
    assert sent_ids(dispatcher.submit(denoise(2, (2,), latent=CREATE))) == [2]
    assert dispatcher.submit(denoise(3, (1,), first=5, latent=from_host(1))) == []
    assert dispatcher.part_done(0, done(1), latent_copy("r0", 5)) == [SegmentFinished(1, 1.0, 2.0)]
    _, sent = dispatcher.part_done(2, done(2), latent_copy("r0", 5))
    assert isinstance(sent, SendSegment)
    assert sent.command.segment.segment_id == 3


def test_failure_of_a_request_that_has_ended_is_none_of_its_successor(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0,)))
    dispatcher.release("r0")
    dispatcher.submit(denoise(2, (2,), latent=CREATE))
    assert dispatcher.part_failed(0, failed(1, group_broken=False), 0.0) == [SegmentFailed(1, "boom", False)]
    assert dispatcher.part_done(2, done(2), ()) == [SegmentFinished(2, 1.0, 2.0)]


def test_host_copy_that_can_never_come_is_a_failure(dispatcher: Dispatcher) -> None:
    (failure,) = dispatcher.submit(denoise(1, (0,), first=5, latent=from_host(0)))
    assert isinstance(failure, SegmentFailed)
    assert not failure.retryable


def test_lost_rank_fails_its_segments_and_what_was_to_follow_them(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0, 1)))
    dispatcher.submit(denoise(2, (3,), first=5, latent=from_host(3)))
    dispatcher.submit(denoise(3, (2,), "r1"))
    actions = dispatcher.rank_lost(1, "killed")
    assert [(a.segment_id, a.retryable) for a in actions if isinstance(a, SegmentFailed)] == [(1, True), (2, True)]
    assert dispatcher.part_failed(0, failed(1, "group"), 0.0) == []
    assert dispatcher.part_done(2, done(3), ()) == [SegmentFinished(3, 1.0, 2.0)]
    (refused,) = dispatcher.submit(denoise(4, (0, 1), "r2"))
    assert isinstance(refused, SegmentFailed)
    assert refused.retryable


def test_verdict_on_work_that_raised_does_not_wait_for_the_others(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0, 1)))
    (failure,) = dispatcher.part_failed(0, failed(1), 0.0)
    assert failure == SegmentFailed(1, "boom", retryable=False)


def test_what_follows_work_that_raised_may_be_tried_again(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0, 1)))
    dispatcher.submit(denoise(2, (0, 1), first=5))
    dispatcher.submit(denoise(3, (2,), first=10, latent=from_host(2)))
    failures = dispatcher.part_failed(0, failed(1), 0.0)
    verdicts = [(a.segment_id, a.retryable) for a in failures if isinstance(a, SegmentFailed)]
    assert verdicts == [(1, False), (2, True), (3, True)]
    assert all("segment 1 before it failed: boom" in a.reason for a in failures[1:] if isinstance(a, SegmentFailed))


def test_broken_group_is_healed_before_anything_else_goes_to_it(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0, 1)))
    dispatcher.part_failed(0, failed(1), 0.0)
    assert dispatcher.submit(denoise(2, (0, 1), "r1")) == []
    assert dispatcher.part_failed(1, failed(1, "group"), 0.0) == [SendHeal((0, 1), 2)]
    assert dispatcher.group_healed(0, (0, 1)) == []
    assert sent_ids(dispatcher.group_healed(1, (0, 1))) == [2]


def test_halves_of_a_split_segment_are_healed_with_the_whole(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, ALL, cfg_degree=2))
    dispatcher.part_failed(0, failed(1), 0.0)
    assert dispatcher.submit(denoise(2, (2, 3), "r1")) == []
    dispatcher.part_failed(1, failed(1, "group"), 0.0)
    dispatcher.part_failed(2, failed(1, "group"), 0.0)
    heals = dispatcher.part_failed(3, failed(1, "group"), 0.0)
    assert heals == [SendHeal((0, 1), 2), SendHeal(ALL, 3), SendHeal((2, 3), 4)]
    assert dispatcher.group_healed(2, (2, 3)) == []
    assert sent_ids(dispatcher.group_healed(3, (2, 3))) == [2]


def test_half_of_a_split_segment_that_outlives_the_other_is_healed_once_its_ranks_have_left(
    dispatcher: Dispatcher,
) -> None:
    dispatcher.submit(denoise(1, ALL, cfg_degree=2))
    dispatcher.part_failed(1, failed(1, "group"), 0.0)
    assert dispatcher.rank_lost(0, "killed") == [SegmentFailed(1, "rank 0 was lost: killed", retryable=True)]
    assert dispatcher.submit(denoise(2, (2, 3), "r1")) == [], "they are about to leave that group"
    assert dispatcher.part_failed(2, failed(1, "group"), 0.0) == []
    heals = dispatcher.part_failed(3, failed(1, "group"), 0.0)
    assert heals == [SendHeal((2, 3), 2)], "no other group of the segment is without the lost rank"
    dispatcher.group_healed(2, (2, 3))
    assert sent_ids(dispatcher.group_healed(3, (2, 3))) == [2]


def test_rank_lost_while_its_group_is_healed_takes_the_waiting_members_along(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0, 1)))
    dispatcher.part_failed(0, failed(1), 0.0)
    dispatcher.part_failed(1, failed(1, "group"), 0.0)
    (kill,) = dispatcher.rank_lost(1, "killed")
    assert isinstance(kill, KillRanks)
    assert kill.ranks == (0,)


def test_failure_that_only_peers_saw_may_be_tried_again(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0, 1)))
    assert dispatcher.part_failed(0, failed(1, "group"), 0.0) == []
    failure = dispatcher.part_failed(1, failed(1, "state"), 0.0)[0]
    assert failure == SegmentFailed(1, "boom", retryable=True)


def test_request_can_start_afresh_while_ranks_still_report_its_failure(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0, 1)))
    dispatcher.part_failed(0, failed(1, group_broken=False), 0.0)
    dispatcher.submit(denoise(2, (2,)))
    assert dispatcher.part_failed(1, failed(1, group_broken=False), 0.0) == []
    assert dispatcher.part_done(2, done(2), ()) == [SegmentFinished(2, 1.0, 2.0)]


def test_results_of_a_failed_segment_are_not_kept(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0, 1)))
    dispatcher.part_done(0, done(1), latent_copy("r0", 5))
    dispatcher.part_failed(1, failed(1, "group"), 0.0)
    assert dispatcher._store.latent("r0") is None


def test_only_the_segment_that_runs_can_be_overdue(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0, 1)))
    dispatcher.submit(denoise(2, (0, 1), first=5))
    assert dispatcher.overdue(100.0) == []
    assert dispatcher.overdue(109.0) == []
    for rank in (0, 1):
        dispatcher.part_done(rank, done(1), ())
    assert dispatcher.overdue(111.0) == []
    (kill,) = dispatcher.overdue(122.0)
    assert isinstance(kill, KillRanks)
    assert kill.ranks == (0, 1)


def test_time_that_a_segment_may_take_follows_from_what_is_expected() -> None:
    dispatcher = Dispatcher(HostStore(), segment_timeout_s=100.0, heals_in_place=True)
    dispatcher.world_formed(ALL)
    dispatcher.submit(denoise(1, (0,), "r0", expected_s=1.0))
    dispatcher.submit(denoise(2, (1,), "r1", expected_s=50.0))
    dispatcher.submit(denoise(3, (2,), "r2"))
    # Behind the one that is stuck: its own time has not begun.
    dispatcher.submit(denoise(4, (0, 3), "r3", expected_s=0.1))
    assert dispatcher.overdue(0.0) == []
    assert dispatcher.overdue(19.0) == []
    assert [a.ranks for a in dispatcher.overdue(21.0) if isinstance(a, KillRanks)] == [(0,)]
    dispatcher.rank_lost(0, "killed")
    assert dispatcher.overdue(99.0) == []
    assert [a.ranks for a in dispatcher.overdue(101.0) if isinstance(a, KillRanks)] == [(1,), (2,)]


def test_first_pass_may_be_slow_where_the_settings_say_so() -> None:
    dispatcher = Dispatcher(HostStore(), segment_timeout_s=100.0, heals_in_place=True, slow_pass_s=60.0)
    dispatcher.world_formed(ALL)
    dispatcher.submit(denoise(1, (0,), expected_s=1.0))
    assert dispatcher.overdue(0.0) == []
    assert dispatcher.overdue(69.0) == []
    assert [a.ranks for a in dispatcher.overdue(71.0) if isinstance(a, KillRanks)] == [(0,)]


def test_members_that_do_not_heal_their_group_are_killed_once_they_could_have(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0, 1)))
    dispatcher.submit(denoise(2, (1,), "r1", expected_s=2.0))
    for rank in (0, 1):
        dispatcher.part_failed(rank, failed(1), 0.0)
    dispatcher.group_healed(0, (0, 1))
    assert dispatcher.overdue(0.0) == []
    assert dispatcher.overdue(9.0) == []
    dispatcher.part_done(1, done(2), ())
    assert dispatcher.overdue(12.0) == []
    assert dispatcher.overdue(21.0) == []
    assert [a.ranks for a in dispatcher.overdue(23.0) if isinstance(a, KillRanks)] == [(1,)]


def test_member_that_does_not_follow_a_failure_is_killed(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0, 1)))
    dispatcher.part_failed(0, failed(1), 100.0)
    assert dispatcher.overdue(105.0) == []
    (kill,) = dispatcher.overdue(111.0)
    assert isinstance(kill, KillRanks)
    assert kill.ranks == (1,)


def test_where_groups_cannot_be_left_their_members_are_killed() -> None:
    dispatcher = Dispatcher(HostStore(), segment_timeout_s=10.0, heals_in_place=False)
    dispatcher.world_formed(ALL)
    dispatcher.submit(denoise(1, (0, 1)))
    failure, kill = dispatcher.part_failed(0, failed(1), 0.0)
    assert failure == SegmentFailed(1, "boom", retryable=False)
    assert isinstance(kill, KillRanks)
    assert kill.ranks == (0, 1)
    dispatcher.submit(denoise(2, (2, 3), "r1"))
    failure, kill = dispatcher.rank_lost(3, "killed")
    assert isinstance(failure, SegmentFailed)
    assert failure.retryable
    assert isinstance(kill, KillRanks)
    assert kill.ranks == (2,)
