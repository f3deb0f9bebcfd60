"""What the parent sends to which rank and when, and what becomes of it: a state machine without IO.

Ranks perform what they get strictly in order, so the order of sending decides everything. A segment
is sent as soon as the host copies that it needs are there, and to all of its ranks at once: hence
all ranks see what they share in one order and no collective can wait for another. A segment that
must wait for its copies keeps its turn on its ranks, but not once the work that it waits for is
late: one stuck rank would stall all the others through it.
"""

from collections.abc import Iterable, Iterator

from tetriserve_backend.engine.commands import HandOver, RunSegment, SourceKind
from tetriserve_backend.engine.events import SegmentFailed, SegmentFinished
from tetriserve_backend.executor.flight import (
    Action,
    Flight,
    KillRanks,
    SendForget,
    SendHeal,
    SendSegment,
    Task,
)
from tetriserve_backend.executor.host_store import HostStore
from tetriserve_backend.executor.wire import HostTensor, PartDone, PartFailed

_STRAGGLER_GRACE_S = 10.0
_HEAL_TIMEOUT_S = 10.0
_TIMEOUT_FACTOR = 10.0
_LATE_FACTOR, _LATE_GRACE_S = 2.0, 1.0


class Dispatcher:
    """Every segment that is submitted is told of once, as `SegmentFinished` or `SegmentFailed`.

    Args:
        store: the host copies.
        segment_timeout_s: a segment that runs longer gets its ranks killed, or much sooner if it is
            known how long it should take.
        slow_pass_s: what a first pass on a new shape may take, whatever is known.
        heals_in_place: whether ranks can leave a collective that broke (gloo) or must be killed (NCCL).

    Each method returns what to do now, in order.
    """

    def __init__(
        self, store: HostStore, segment_timeout_s: float, heals_in_place: bool, slow_pass_s: float = 10.0
    ) -> None:
        self._store = store
        self._segment_timeout_s, self._slow_pass_s = segment_timeout_s, slow_pass_s
        self._heals_in_place = heals_in_place
        self._usable: set[int] = set()
        # In the order of submission.
        self._flights: dict[int, Flight] = {}
        self._broken: set[tuple[int, ...]] = set()
        self._healing: dict[tuple[int, ...], Task] = {}
        self._sent = 0

    def world_formed(self, ranks: Iterable[int]) -> list[Action]:
        """All groups of these ranks exist."""
        self._usable = set(ranks)
        self._broken.clear()
        self._healing.clear()
        return self._pump()

    def submit(self, command: RunSegment) -> list[Action]:
        """Queue a segment behind all earlier ones of its ranks and requests."""
        flight = Flight(set(command.segment.placement.ranks), command=command)
        unusable = sorted(flight.waiting_for - self._usable)
        if unusable:
            return [SegmentFailed(flight.segment_id, f"ranks {unusable} are not usable", retryable=True)]
        self._flights[flight.segment_id] = flight
        return self._pump()

    def release(self, request_id: str) -> list[Action]:
        """The request has ended: nothing more of it is sent or kept; what ranks are at runs out."""
        actions: list[Action] = []
        for flight in list(self._flights.values()):
            if request_id not in flight.request_ids:
                continue
            if flight.sent:
                flight.released.add(request_id)
            elif flight.segment_id in self._flights:
                actions += self._fail(flight, f"request '{request_id}' has ended", retryable=True)
        self._store.forget(request_id)
        # On each rank behind everything of this request, and before whatever has the same id later.
        actions.append(SendForget(request_id))
        return actions + self._pump()

    def part_done(self, rank: int, part: PartDone, tensors: tuple[HostTensor, ...]) -> list[Action]:
        """A rank is done with its share; the lead rank's `tensors` are the results."""
        flight = self._flights.get(part.segment_id)
        if flight is None:
            return []
        flight.waiting_for.discard(rank)
        flight.parts.append(part)
        flight.results += tensors
        return self._settle(flight)

    def part_failed(self, rank: int, part: PartFailed, now_s: float) -> list[Action]:
        """A rank's share failed. Whose fault it was decides whether the segment may be tried again."""
        flight = self._flights.get(part.segment_id)
        if flight is None:
            return []
        flight.waiting_for.discard(rank)
        flight.failures.append(part)
        flight.first_failure_s = flight.first_failure_s or now_s
        actions: list[Action] = []
        if part.blame == "work":
            actions += self._fail(flight, part.reason, retryable=False)
        if part.group_broken and self._heals_in_place:
            # At once, so that nothing more is sent to a group that is about to be made anew.
            self._break(flight.groups)
        elif part.group_broken:
            actions += self._fail(flight, part.reason, retryable=True)
            actions.append(KillRanks(flight.ranks, f"segment {flight.segment_id} broke its group"))
        return actions + self._settle(flight)

    def group_healed(self, rank: int, ranks: tuple[int, ...]) -> list[Action]:
        """A member has the group again; it is usable when all have."""
        heal = self._healing.get(ranks)
        if heal is None:
            return []
        heal.waiting_for.discard(rank)
        if heal.waiting_for:
            return []
        del self._healing[ranks]
        return self._pump()

    def rank_lost(self, rank: int, reason: str) -> list[Action]:
        """A rank is dead: whatever it was to do will not happen."""
        self._usable.discard(rank)
        actions: list[Action] = []
        stuck: set[int] = set()
        for flight in [f for f in self._flights.values() if rank in f.ranks]:
            actions += self._fail(flight, f"rank {rank} was lost: {reason}", retryable=True)
            flight.waiting_for.discard(rank)
            if flight.sent and flight.waiting_for and self._heals_in_place:
                # The others will leave these groups too, and can make those without this rank anew once they have.
                self._break(flight.groups)
                continue
            stuck |= flight.waiting_for if flight.sent else set()
            self._flights.pop(flight.segment_id, None)
        self._broken = {ranks for ranks in self._broken if rank not in ranks}
        for ranks in [ranks for ranks in self._healing if rank in ranks]:
            stuck |= self._healing.pop(ranks).waiting_for - {rank}
        if stuck:
            actions.append(KillRanks(tuple(sorted(stuck)), f"waiting for rank {rank}, which is lost"))
        return actions + self._pump()

    def overdue(self, now_s: float) -> list[Action]:
        """Kill ranks that have been at one thing, or behind the failure of a member, for too long.

        To be called often: a time counts from the first call that sees a segment first on its ranks.
        """
        actions: list[Action] = []
        busy: set[int] = set()
        for task in sorted(self._at_ranks(), key=lambda task: task.sent_as or 0):
            if task.running_since_s is None and busy.isdisjoint(task.waiting_for):
                task.running_since_s = now_s
            busy |= task.waiting_for
            if isinstance(task, Flight):
                task.late = task.runs_longer_than(_LATE_FACTOR * task.command.expected_s + _LATE_GRACE_S, now_s)
            if self._is_stuck(task, now_s):
                what = f"segment {task.segment_id}" if isinstance(task, Flight) else "the healing of a group"
                actions.append(KillRanks(tuple(sorted(task.waiting_for)), f"no answer to {what} in time"))
        return actions + self._pump()

    def _at_ranks(self) -> Iterator[Task]:
        """What ranks have and have not reported, in no order."""
        yield from self._healing.values()
        yield from (flight for flight in self._flights.values() if flight.sent and flight.waiting_for)

    def _is_stuck(self, task: Task, now_s: float) -> bool:
        if not isinstance(task, Flight):
            return task.runs_longer_than(_HEAL_TIMEOUT_S, now_s)
        if task.first_failure_s is not None and now_s - task.first_failure_s > _STRAGGLER_GRACE_S:
            return True
        limit_s, expected_s = self._segment_timeout_s, task.command.expected_s
        if expected_s > 0:
            limit_s = min(limit_s, _TIMEOUT_FACTOR * expected_s + self._slow_pass_s)
        return task.runs_longer_than(limit_s, now_s)

    def _break(self, groups: Iterable[tuple[int, ...]]) -> None:
        """Nothing more goes to these groups until they are made anew; those of a lost rank wait for the whole world."""
        self._broken |= {ranks for ranks in groups if self._usable.issuperset(ranks)}

    def _pump(self) -> list[Action]:
        """Send everything that may go now."""
        actions: list[Action] = list(self._heal_idle_groups())
        kept_ranks: set[int] = set()
        held_requests: set[str] = set()
        late_requests: set[str] = set()
        for flight in list(self._flights.values()):
            if flight.segment_id not in self._flights:
                continue
            requests = flight.request_ids
            if (flight.late and not flight.told) or not late_requests.isdisjoint(requests):
                late_requests |= requests
            if flight.sent:
                continue
            group_is_out = not flight.groups.isdisjoint(self._broken | self._healing.keys())
            its_turn = kept_ranks.isdisjoint(flight.ranks) and held_requests.isdisjoint(requests)
            if its_turn and not group_is_out:
                if self._host_copies_ready(flight):
                    flight.sent_as = self._next_place()
                    actions.append(SendSegment(flight.command, self._host_tensors(flight)))
                    continue
                if not self._has_predecessor(flight):
                    actions += self._fail(flight, "there is no host copy at the step it starts from", retryable=False)
                    continue
            held_requests |= requests
            if not group_is_out and late_requests.isdisjoint(requests):
                kept_ranks |= set(flight.ranks)
        return actions

    def _next_place(self) -> int:
        self._sent += 1
        return self._sent

    def _heal_idle_groups(self) -> Iterator[Action]:
        for ranks in sorted(self._broken):
            if not any(f.sent and ranks in f.groups for f in self._flights.values()):
                self._broken.discard(ranks)
                number = self._next_place()
                self._healing[ranks] = Task(set(ranks), number)
                yield SendHeal(ranks, number)

    def _settle(self, flight: Flight) -> list[Action]:
        """Tell of a segment once all of its ranks have reported."""
        if flight.waiting_for or flight.segment_id not in self._flights:
            return []
        actions: list[Action] = []
        if not flight.failures and not flight.told:
            self._store.commit(tuple(r for r in flight.results if r.header.request_id not in flight.released))
            start_s = max(part.start_s for part in flight.parts)
            end_s = min(part.end_s for part in flight.parts)
            peaks = [part.peak_memory_bytes for part in flight.parts if part.peak_memory_bytes is not None]
            actions.append(SegmentFinished(flight.segment_id, start_s, max(start_s, end_s), max(peaks, default=None)))
        elif flight.failures:
            actions += self._fail(flight, flight.failures[0].reason, retryable=True)
        self._flights.pop(flight.segment_id, None)
        return actions + self._pump()

    def _fail(self, flight: Flight, reason: str, retryable: bool) -> list[Action]:
        """Give up a segment and what was to follow for its requests; a sent one stays until its ranks report.

        Those that follow are to be tried again in any case: nothing is wrong with them.
        """
        if flight.told:
            # What was submitted since then starts afresh.
            return []
        actions: list[Action] = []
        doomed = flight.request_ids
        after = False
        for other in list(self._flights.values()):
            after = after or other is flight
            if not after or (other is not flight and doomed.isdisjoint(other.request_ids)):
                continue
            doomed |= other.request_ids
            if not other.told:
                other.told = True
                failure = SegmentFailed(flight.segment_id, reason, retryable)
                if other is not flight:
                    text = f"segment {flight.segment_id} before it failed: {reason}"
                    failure = SegmentFailed(other.segment_id, text, retryable=True)
                actions.append(failure)
            if not other.sent:
                del self._flights[other.segment_id]
        return actions

    def _has_predecessor(self, flight: Flight) -> bool:
        """Whether an earlier segment may yet bring the host copies that this one waits for."""
        for other in self._flights.values():
            if other is flight:
                return False
            if not other.told and not flight.request_ids.isdisjoint(other.request_ids):
                return True
        return False

    def _host_copies_ready(self, flight: Flight) -> bool:
        return all(self._is_ready(*item) for item in flight.hand_overs())

    def _is_ready(self, request_id: str, step: int, hand_over: HandOver) -> bool:
        if hand_over.conditioning.kind is SourceKind.HOST and not self._store.conditioning(request_id):
            return False
        if hand_over.latent.kind is not SourceKind.HOST:
            return True
        latent = self._store.latent(request_id)
        return latent is not None and latent.header.step == step

    def _host_tensors(self, flight: Flight) -> dict[int, tuple[HostTensor, ...]]:
        """What goes to each root."""
        tensors: dict[int, tuple[HostTensor, ...]] = {}
        for request_id, _, hand_over in flight.hand_overs():
            latent = self._store.latent(request_id)
            for source, copies in (
                (hand_over.conditioning, self._store.conditioning(request_id)),
                (hand_over.latent, (latent,) if latent is not None else ()),
            ):
                if source.kind is SourceKind.HOST and source.root is not None:
                    tensors[source.root] = tensors.get(source.root, ()) + copies
        return tensors
