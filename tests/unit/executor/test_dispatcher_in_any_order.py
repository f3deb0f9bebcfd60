"""Whatever happens in whatever order, ranks do not wait for each other and each segment is told of once."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.executor.segments import ALL, CREATE, RESIDENT, denoise, done, failed, from_host, latent_copy
from tetriserve_backend.engine.commands import RunSegment, SourceKind
from tetriserve_backend.engine.events import SegmentFailed, SegmentFinished
from tetriserve_backend.executor.dispatcher import Dispatcher
from tetriserve_backend.executor.flight import Action, KillRanks, SendForget, SendHeal, SendSegment
from tetriserve_backend.executor.host_store import HostStore
from tetriserve_backend.executor.placements import shared_groups

PLACEMENTS = [*((rank,) for rank in ALL), *shared_groups(4)]


class AnyOrderOfEvents(RuleBasedStateMachine):
    """Random segments, reports, ends of requests and deaths, with latents handed over as the engine does it.

    Ranks obey strictly in order and meet in what they share, so a deadlock would show as work that never ends.
    """

    @initialize(heals=st.booleans())
    def start(self, heals: bool) -> None:
        self.dispatcher = Dispatcher(HostStore(), segment_timeout_s=10.0, heals_in_place=heals)
        self.dispatcher.world_formed(ALL)
        self.now_s = 0.0
        self.queues: dict[int, list[Any]] = {rank: [] for rank in ALL}
        self.alive = set(ALL)
        self.submitted: set[int] = set()
        self.told: set[int] = set()
        self.commands: dict[int, RunSegment] = {}
        # By request: segments that were not told of, steps that were sent and done, and the last placement.
        self.open: dict[str, list[int]] = {name: [] for name in "abc"}
        self.sent_to_ranks: dict[str, list[int]] = {name: [] for name in "abc"}
        self.sent_steps = dict.fromkeys("abc", 0)
        self.done_steps = dict.fromkeys("abc", 0)
        self.placement: dict[str, tuple[int, ...]] = dict.fromkeys("abc", ())
        self.ends: set[str] = set()
        self.fails: set[str] = set()
        self.holds: dict[int, dict[str, int]] = {rank: {} for rank in ALL}

    @rule(ranks=st.sampled_from(PLACEMENTS), name=st.sampled_from("abc"))
    def submit(self, ranks: tuple[int, ...], name: str) -> None:
        if name in self.ends | self.fails:
            return
        steps = self.sent_steps[name]
        latent = CREATE if not steps else RESIDENT if ranks == self.placement[name] else from_host(ranks[0])
        segment_id = len(self.submitted) + 1
        self.submitted.add(segment_id)
        command = denoise(segment_id, ranks, name, steps, latent, expected_s=0.5)
        self.commands[segment_id] = command
        self.open[name].append(segment_id)
        self.sent_steps[name], self.placement[name] = steps + 5, ranks
        self.perform(self.dispatcher.submit(command))

    @rule(name=st.sampled_from("abc"))
    def release(self, name: str) -> None:
        self.ends.add(name)
        self.perform(self.dispatcher.release(name))
        assert self.dispatcher._store.latent(name) is None
        self.start_afresh(name)

    @precondition(lambda self: any(self.ready()))
    @rule(data=st.data(), verdict=st.sampled_from(["done", "done", "done", "work", "group", "state"]))
    def report(self, data: st.DataObject, verdict: str) -> None:
        rank, item = data.draw(st.sampled_from(list(self.ready())))
        self.do(rank, item, verdict)

    @rule(passed_s=st.sampled_from([0.4, 1.0, 3.0]))
    def time_passes(self, passed_s: float) -> None:
        self.now_s += passed_s
        self.perform(self.dispatcher.overdue(self.now_s))

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
            self.do(*items[0], "done")
        assert not any(self.queues.values())
        assert self.submitted == self.told

    @invariant()
    def what_ranks_share_reaches_them_in_one_order(self) -> None:
        for one, other in combinations(self.alive, 2):
            ours, theirs = ([i for i in self.queues[rank] if not isinstance(i, str)] for rank in (one, other))
            assert [item for item in ours if item in theirs] == [item for item in theirs if item in ours]

    @invariant()
    def segments_of_a_request_reach_ranks_in_their_order(self) -> None:
        assert all(ids == sorted(ids) for ids in self.sent_to_ranks.values())

    @invariant()
    def nothing_waits_while_all_ranks_are_idle(self) -> None:
        assert any(self.queues.values()) or self.submitted == self.told

    def ready(self) -> Iterator[tuple[int, Any]]:
        """What each rank is at; it can be done with it once all members have come to it."""
        for rank in sorted(self.alive):
            if self.queues[rank]:
                item = self.queues[rank][0]
                if isinstance(item, str) or not any(item in queue[1:] for queue in self.queues.values()):
                    yield rank, item

    def do(self, rank: int, item: Any, verdict: str) -> None:
        self.queues[rank].pop(0)
        if isinstance(item, str):
            self.holds[rank].pop(item, None)
        elif isinstance(item, SendHeal):
            self.perform(self.dispatcher.group_healed(rank, item.ranks))
        elif verdict == "done":
            self.work(rank, self.commands[item])
        else:
            shared = len(self.commands[item].segment.placement.ranks) > 1
            self.perform(self.dispatcher.part_failed(rank, failed(item, verdict, shared), self.now_s))

    def work(self, rank: int, command: RunSegment) -> None:
        segment, source = command.segment, command.hand_over[0].latent
        part = segment.parts[0]
        if source == RESIDENT and self.holds[rank].get(part.request_id) != part.first_step:
            self.perform(self.dispatcher.part_failed(rank, failed(segment.segment_id, "state"), self.now_s))
            return
        self.holds[rank][part.request_id] = part.first_step + 5
        results = latent_copy(part.request_id, part.first_step + 5) if rank == segment.placement.lead else ()
        self.perform(self.dispatcher.part_done(rank, done(segment.segment_id), results))

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, SendSegment):
                self.send(action)
            elif isinstance(action, SendHeal | SendForget):
                for rank in action.ranks if isinstance(action, SendHeal) else self.alive:
                    self.queues[rank].append(action if isinstance(action, SendHeal) else action.request_id)
            elif isinstance(action, KillRanks):
                for rank in set(action.ranks) & self.alive:
                    self.die(rank)
            else:
                self.hear(action)

    def send(self, action: SendSegment) -> None:
        segment, source = action.command.segment, action.command.hand_over[0].latent
        self.sent_to_ranks[segment.parts[0].request_id].append(segment.segment_id)
        if source.kind is SourceKind.HOST:
            assert [t.header.step for t in action.tensors[source.root or 0]] == [segment.parts[0].first_step]
        for rank in segment.placement.ranks:
            assert rank in self.alive
            self.queues[rank].append(segment.segment_id)

    def hear(self, action: Action) -> None:
        assert isinstance(action, SegmentFinished | SegmentFailed)
        assert action.segment_id in self.submitted
        assert action.segment_id not in self.told
        self.told.add(action.segment_id)
        name = self.commands[action.segment_id].segment.parts[0].request_id
        self.open[name].remove(action.segment_id)
        if isinstance(action, SegmentFinished):
            self.done_steps[name] += 5
        else:
            self.fails.add(name)
        self.start_afresh(name)

    def start_afresh(self, name: str) -> None:
        """As the engine: an id may come again, or a request go on, once all its segments have been told of."""
        if self.open[name] or name not in self.ends | self.fails:
            return
        if name in self.ends:
            self.done_steps[name] = 0
        self.sent_steps[name], self.placement[name] = self.done_steps[name], ()
        self.ends.discard(name)
        self.fails.discard(name)

    def die(self, rank: int) -> None:
        self.alive.discard(rank)
        self.queues[rank].clear()
        self.holds[rank].clear()
        self.perform(self.dispatcher.rank_lost(rank, "killed"))


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
TestAnyOrderOfEvents.settings = settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)
