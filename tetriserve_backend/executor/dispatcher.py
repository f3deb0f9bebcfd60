"""What the parent sends to which rank and when, and what becomes of it: a state machine without IO.

Ranks perform what they get strictly in order, so the order of sending decides everything. A segment
is sent as soon as the host copies that it needs are there, never before an earlier segment that
shares a rank with it, and to all of its ranks at once: hence all ranks see shared segments in one
order and no collective can wait for another.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from tetriserve_backend.domain import SegmentKind
from tetriserve_backend.engine.commands import HandOver, RunSegment, SourceKind
from tetriserve_backend.engine.events import SegmentFailed, SegmentFinished
from tetriserve_backend.executor.host_store import HostStore
from tetriserve_backend.executor.wire import HostTensor, PartDone, PartFailed

_STRAGGLER_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class SendSegment:
    """Send `command` to each of its ranks, with the tensors that go to each root."""

    command: RunSegment
    tensors: dict[int, tuple[HostTensor, ...]]


@dataclass(frozen=True, slots=True)
class SendHeal:
    """Have the members of a broken group make it anew; `number` counts such events."""

    ranks: tuple[int, ...]
    number: int


@dataclass(frozen=True, slots=True)
class KillRanks:
    """These ranks will not answer any more."""

    ranks: tuple[int, ...]
    reason: str


Action: TypeAlias = SendSegment | SendHeal | KillRanks | SegmentFinished | SegmentFailed


@dataclass(slots=True)
class _Flight:
    """A segment between `submit` and the last report of its ranks."""

    command: RunSegment
    waiting_for: set[int]
    sent: bool = False
    told: bool = False
    parts: list[PartDone] = field(default_factory=list)
    failures: list[PartFailed] = field(default_factory=list)
    results: tuple[HostTensor, ...] = ()
    first_failure_s: float | None = None
    running_since_s: float | None = None

    @property
    def segment_id(self) -> int:
        return self.command.segment.segment_id

    @property
    def ranks(self) -> tuple[int, ...]:
        return self.command.segment.placement.ranks

    @property
    def request_ids(self) -> set[str]:
        return {part.request_id for part in self.command.segment.parts}


class Dispatcher:
    """Every segment that is submitted is told of once, as `SegmentFinished` or `SegmentFailed`.

    Args:
        store: the host copies.
        segment_timeout_s: a segment that runs longer gets its ranks killed.
        heals_in_place: whether ranks can leave a collective that broke (gloo) or must be killed (NCCL).

    Each method returns what to do now, in order.
    """

    def __init__(self, store: HostStore, segment_timeout_s: float, heals_in_place: bool) -> None:
        self._store = store
        self._segment_timeout_s = segment_timeout_s
        self._heals_in_place = heals_in_place
        self._usable: set[int] = set()
        self._flights: dict[int, _Flight] = {}
        self._broken: set[tuple[int, ...]] = set()
        self._healing: dict[tuple[int, ...], set[int]] = {}
        self._heals = 0

    def world_formed(self, ranks: Iterable[int]) -> list[Action]:
        """All groups of these ranks exist."""
        self._usable = set(ranks)
        self._broken.clear()
        self._healing.clear()
        return self._pump()

    def submit(self, command: RunSegment) -> list[Action]:
        """Queue a segment behind all earlier ones of its ranks."""
        flight = _Flight(command, set(command.segment.placement.ranks))
        unusable = sorted(flight.waiting_for - self._usable)
        if unusable:
            return [SegmentFailed(flight.segment_id, f"ranks {unusable} are not usable", retryable=True)]
        self._flights[flight.segment_id] = flight
        return self._pump()

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
            self._broken.add(flight.ranks)
        elif part.group_broken:
            actions += self._fail(flight, part.reason, retryable=True)
            actions.append(KillRanks(flight.ranks, f"segment {flight.segment_id} broke its group"))
        return actions + self._settle(flight)

    def group_healed(self, rank: int, ranks: tuple[int, ...]) -> list[Action]:
        """A member has the group again; it is usable when all have."""
        missing = self._healing.get(ranks)
        if missing is None:
            return []
        missing.discard(rank)
        if missing:
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
            if flight.sent and not self._heals_in_place:
                stuck |= flight.waiting_for - {rank}
            self._flights.pop(flight.segment_id, None)
        self._broken = {ranks for ranks in self._broken if rank not in ranks}
        for ranks in [ranks for ranks in self._healing if rank in ranks]:
            stuck |= self._healing.pop(ranks) - {rank}
        if stuck:
            actions.append(KillRanks(tuple(sorted(stuck)), f"waiting for rank {rank}, which is lost"))
        return actions + self._pump()

    def overdue(self, now_s: float) -> list[Action]:
        """Kill ranks that have been at one segment, or behind the failure of a member, for too long."""
        actions: list[Action] = []
        busy: set[int] = set()
        for flight in self._flights.values():
            if not flight.sent or not flight.waiting_for:
                continue
            if flight.running_since_s is None and busy.isdisjoint(flight.waiting_for):
                flight.running_since_s = now_s
            busy |= flight.waiting_for
            timed_out = _older(flight.running_since_s, now_s, self._segment_timeout_s)
            if timed_out or _older(flight.first_failure_s, now_s, _STRAGGLER_GRACE_S):
                reason = f"no answer to segment {flight.segment_id} in time"
                actions.append(KillRanks(tuple(sorted(flight.waiting_for)), reason))
        return actions

    def _pump(self) -> list[Action]:
        """Send everything that may go now."""
        actions: list[Action] = list(self._heal_idle_groups())
        held_back: set[int] = set()
        for flight in list(self._flights.values()):
            if flight.sent or flight.segment_id not in self._flights:
                continue
            if held_back.isdisjoint(flight.ranks) and flight.ranks not in self._broken | self._healing.keys():
                if self._host_copies_ready(flight):
                    flight.sent = True
                    actions.append(SendSegment(flight.command, self._host_tensors(flight)))
                    continue
                if not self._has_predecessor(flight):
                    actions += self._fail(flight, "there is no host copy at the step it starts from", retryable=False)
                    continue
            held_back |= set(flight.ranks)
        return actions

    def _heal_idle_groups(self) -> Iterator[Action]:
        for ranks in sorted(self._broken):
            if not any(f.sent and f.ranks == ranks for f in self._flights.values()):
                self._broken.discard(ranks)
                self._healing[ranks] = set(ranks)
                self._heals += 1
                yield SendHeal(ranks, self._heals)

    def _settle(self, flight: _Flight) -> list[Action]:
        """Tell of a segment once all of its ranks have reported."""
        if flight.waiting_for or flight.segment_id not in self._flights:
            return []
        actions: list[Action] = []
        if not flight.failures and not flight.told:
            self._store.commit(flight.results)
            start_s = max(part.start_s for part in flight.parts)
            end_s = min(part.end_s for part in flight.parts)
            actions.append(SegmentFinished(flight.segment_id, start_s, max(start_s, end_s)))
        elif flight.failures:
            actions += self._fail(flight, flight.failures[0].reason, retryable=True)
        self._flights.pop(flight.segment_id, None)
        return actions + self._pump()

    def _fail(self, flight: _Flight, reason: str, retryable: bool) -> list[Action]:
        """Give up a segment and what was to follow for its requests; a sent one stays until its ranks report."""
        if flight.told:
            # What was submitted since then starts afresh.
            return []
        actions: list[Action] = []
        doomed = set(flight.request_ids)
        after = False
        for other in list(self._flights.values()):
            after = after or other is flight
            if not after or doomed.isdisjoint(other.request_ids):
                continue
            doomed |= other.request_ids
            if not other.told:
                other.told = True
                text = reason if other is flight else f"segment {flight.segment_id} before it failed: {reason}"
                actions.append(SegmentFailed(other.segment_id, text, retryable))
            if not other.sent:
                del self._flights[other.segment_id]
        return actions

    def _has_predecessor(self, flight: _Flight) -> bool:
        """Whether an earlier segment may yet bring the host copies that this one waits for."""
        for other in self._flights.values():
            if other is flight:
                return False
            if not other.told and not flight.request_ids.isdisjoint(other.request_ids):
                return True
        return False

    def _host_copies_ready(self, flight: _Flight) -> bool:
        return all(self._is_ready(*item) for item in _by_request(flight.command))

    def _is_ready(self, request_id: str, step: int, hand_over: HandOver) -> bool:
        if hand_over.conditioning.kind is SourceKind.HOST and not self._store.conditioning(request_id):
            return False
        if hand_over.latent.kind is not SourceKind.HOST:
            return True
        latent = self._store.latent(request_id)
        return latent is not None and latent.header.step == step

    def _host_tensors(self, flight: _Flight) -> dict[int, tuple[HostTensor, ...]]:
        """What goes to each root."""
        tensors: dict[int, tuple[HostTensor, ...]] = {}
        for request_id, _, hand_over in _by_request(flight.command):
            latent = self._store.latent(request_id)
            for source, copies in (
                (hand_over.conditioning, self._store.conditioning(request_id)),
                (hand_over.latent, (latent,) if latent is not None else ()),
            ):
                if source.kind is SourceKind.HOST and source.root is not None:
                    tensors[source.root] = tensors.get(source.root, ()) + copies
        return tensors


def _by_request(command: RunSegment) -> Iterator[tuple[str, int, HandOver]]:
    """Each request of a segment, the step that its latent must be at, and where its tensors are."""
    segment = command.segment
    for part, request, hand_over in zip(segment.parts, command.requests, command.hand_over, strict=True):
        step = part.first_step if segment.kind is SegmentKind.DENOISE else request.num_steps
        yield part.request_id, step, hand_over


def _older(since_s: float | None, now_s: float, limit_s: float) -> bool:
    return since_s is not None and now_s - since_s > limit_s
