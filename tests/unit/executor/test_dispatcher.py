"""Segments go out in one order, wait for what they need, and are told of exactly once."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tetriserve_backend.domain import Placement, Request, Segment, SegmentKind, SegmentPart
from tetriserve_backend.engine.commands import HandOver, RunSegment, Source, SourceKind
from tetriserve_backend.engine.events import SegmentFailed, SegmentFinished
from tetriserve_backend.executor.dispatcher import Action, Dispatcher, KillRanks, SendHeal, SendSegment
from tetriserve_backend.executor.host_store import HostStore
from tetriserve_backend.executor.placements import aligned_groups
from tetriserve_backend.executor.wire import HostTensor, PartDone, PartFailed, TensorHeader

RESIDENT, CREATE = Source(SourceKind.RESIDENT), Source(SourceKind.CREATE)
ALL = (0, 1, 2, 3)


def denoise(
    segment_id: int, ranks: tuple[int, ...], request_id: str = "r0", first: int = 0, latent: Source = RESIDENT
) -> RunSegment:
    request = Request(request_id, 256, 256, 10, arrival_s=0.0, deadline_s=1.0)
    part = SegmentPart(request_id, first, 5)
    segment = Segment(segment_id, SegmentKind.DENOISE, (part,), Placement(ranks), 256, 256)
    return RunSegment(segment, (request,), (HandOver(RESIDENT, latent),))


def from_host(root: int) -> Source:
    return Source(SourceKind.HOST, root)


def latent_copy(request_id: str, step: int) -> tuple[HostTensor, ...]:
    return (HostTensor(TensorHeader(request_id, "latent", "float32", (1,), step), b"1234"),)


def done(segment_id: int, start_s: float = 1.0, end_s: float = 2.0) -> PartDone:
    return PartDone(segment_id, start_s, end_s, ())


def failed(segment_id: int, blame: Any = "work", group_broken: bool = True) -> PartFailed:
    return PartFailed(segment_id, "boom", blame, group_broken)


@pytest.fixture
def dispatcher() -> Dispatcher:
    made = Dispatcher(HostStore(), segment_timeout_s=10.0, heals_in_place=True)
    made.world_formed(ALL)
    return made


def sent_ids(actions: list[Action]) -> list[int]:
    return [action.command.segment.segment_id for action in actions if isinstance(action, SendSegment)]


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


def test_broken_group_is_healed_before_anything_else_goes_to_it(dispatcher: Dispatcher) -> None:
    dispatcher.submit(denoise(1, (0, 1)))
    dispatcher.part_failed(0, failed(1), 0.0)
    assert dispatcher.submit(denoise(2, (0, 1), "r1")) == []
    assert dispatcher.part_failed(1, failed(1, "group"), 0.0) == [SendHeal((0, 1), 1)]
    assert dispatcher.group_healed(0, (0, 1)) == []
    assert sent_ids(dispatcher.group_healed(1, (0, 1))) == [2]


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


PLACEMENTS = [*((rank,) for rank in ALL), *aligned_groups(4)]


class AnyOrderOfEvents(RuleBasedStateMachine):
    """Random segments, reports and deaths; ranks that obey strictly in order never wait for each other."""

    @initialize(heals=st.booleans())
    def start(self, heals: bool) -> None:
        self.dispatcher = Dispatcher(HostStore(), segment_timeout_s=10.0, heals_in_place=heals)
        self.heals = heals
        self.dispatcher.world_formed(ALL)
        self.queues: dict[int, list[Any]] = {rank: [] for rank in ALL}
        self.alive = set(ALL)
        self.submitted: set[int] = set()
        self.told: set[int] = set()
        self.commands: dict[int, RunSegment] = {}

    @rule(ranks=st.sampled_from(PLACEMENTS), request=st.sampled_from("abc"))
    def submit(self, ranks: tuple[int, ...], request: str) -> None:
        segment_id = len(self.submitted) + 1
        self.submitted.add(segment_id)
        command = denoise(segment_id, ranks, request, latent=CREATE)
        self.commands[segment_id] = command
        self.perform(self.dispatcher.submit(command))

    @precondition(lambda self: any(self.ready()))
    @rule(data=st.data(), verdict=st.sampled_from(["done", "done", "done", "work", "group", "state"]))
    def report(self, data: st.DataObject, verdict: str) -> None:
        rank, item = data.draw(st.sampled_from(list(self.ready())))
        self.queues[rank].pop(0)
        if isinstance(item, tuple):
            self.perform(self.dispatcher.group_healed(rank, item))
        elif verdict == "done":
            self.perform(self.dispatcher.part_done(rank, done(item), ()))
        else:
            shared = len(self.commands[item].segment.placement.ranks) > 1
            self.perform(self.dispatcher.part_failed(rank, failed(item, verdict, shared), 0.0))

    @precondition(lambda self: len(self.alive) > 1)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.die(data.draw(st.sampled_from(sorted(self.alive))))

    @precondition(lambda self: len(self.alive) < 4 and self.submitted == self.told)
    @rule()
    def form_world_anew(self) -> None:
        self.queues = {rank: [] for rank in ALL}
        self.alive = set(ALL)
        self.perform(self.dispatcher.world_formed(ALL))

    def teardown(self) -> None:
        # Whatever happened, once every rank has done what it was sent, every segment has been told of.
        while items := list(self.ready()):
            rank, item = items[0]
            self.queues[rank].pop(0)
            if isinstance(item, tuple):
                self.perform(self.dispatcher.group_healed(rank, item))
            else:
                self.perform(self.dispatcher.part_done(rank, done(item), ()))
        assert self.submitted == self.told

    @invariant()
    def shared_segments_reach_their_ranks_in_one_order(self) -> None:
        for one in self.alive:
            for other in self.alive:
                shared = [item for item in self.queues[one] if item in self.queues[other]]
                assert shared == [item for item in self.queues[other] if item in self.queues[one]]

    def ready(self) -> Iterator[tuple[int, Any]]:
        """What each rank is at: segments one after the other, a healing when all members are at it."""
        for rank in sorted(self.alive):
            if not self.queues[rank]:
                continue
            item = self.queues[rank][0]
            members_wait = isinstance(item, tuple) and any(
                item in self.queues[member] and self.queues[member][0] != item for member in item
            )
            if not members_wait:
                yield rank, item

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, SendSegment):
                for rank in action.command.segment.placement.ranks:
                    assert rank in self.alive
                    self.queues[rank].append(action.command.segment.segment_id)
            elif isinstance(action, SendHeal):
                for rank in action.ranks:
                    self.queues[rank].append(action.ranks)
            elif isinstance(action, KillRanks):
                for rank in set(action.ranks) & self.alive:
                    self.die(rank)
            else:
                assert action.segment_id in self.submitted
                assert action.segment_id not in self.told
                self.told.add(action.segment_id)

    def die(self, rank: int) -> None:
        self.alive.discard(rank)
        self.queues[rank].clear()
        self.perform(self.dispatcher.rank_lost(rank, "killed"))


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
TestAnyOrderOfEvents.settings = settings(max_examples=150, stateful_step_count=30, deadline=None, derandomize=True)
