"""What the dispatcher keeps of a segment, and what it asks to be done."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from tetriserve_backend.domain import SegmentKind
from tetriserve_backend.engine.commands import HandOver, RunSegment
from tetriserve_backend.engine.events import SegmentFailed, SegmentFinished
from tetriserve_backend.executor.placements import used_groups
from tetriserve_backend.executor.wire import HostTensor, PartDone, PartFailed


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
class SendForget:
    """Have every rank drop what it holds of a request."""

    request_id: str


@dataclass(frozen=True, slots=True)
class KillRanks:
    """These ranks will not answer any more."""

    ranks: tuple[int, ...]
    reason: str


Action: TypeAlias = SendSegment | SendHeal | SendForget | KillRanks | SegmentFinished | SegmentFailed


@dataclass(slots=True)
class Task:
    """Something that ranks have to do together.

    Attributes:
        waiting_for: the ranks that have not reported.
        sent_as: its place in the one order in which everything was sent; None while it is held.
        running_since_s: when it was first seen with nothing before it on the ranks that it waits for.
    """

    waiting_for: set[int]
    sent_as: int | None = None
    running_since_s: float | None = None

    @property
    def sent(self) -> bool:
        """Whether the ranks have it."""
        return self.sent_as is not None

    def runs_longer_than(self, limit_s: float, now_s: float) -> bool:
        """Whether the ranks have been able to work at it for more than `limit_s`."""
        return self.running_since_s is not None and now_s - self.running_since_s > limit_s


@dataclass(slots=True, kw_only=True)
class Flight(Task):
    """A segment between its submission and the last report of its ranks.

    Attributes:
        told: the engine knows how it ended.
        late: it takes much longer than expected.
        released: requests of it that ended meanwhile; their results are of no use.
    """

    command: RunSegment
    told: bool = False
    late: bool = False
    parts: list[PartDone] = field(default_factory=list)
    failures: list[PartFailed] = field(default_factory=list)
    results: tuple[HostTensor, ...] = ()
    first_failure_s: float | None = None
    released: set[str] = field(default_factory=set)

    @property
    def segment_id(self) -> int:
        """The id of its segment."""
        return self.command.segment.segment_id

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of its placement."""
        return self.command.segment.placement.ranks

    @property
    def groups(self) -> frozenset[tuple[int, ...]]:
        """Every group in which its ranks communicate."""
        return used_groups(self.command.segment)

    @property
    def request_ids(self) -> set[str]:
        """Its requests that have not been released."""
        return {part.request_id for part in self.command.segment.parts} - self.released

    def hand_overs(self) -> Iterator[tuple[str, int, HandOver]]:
        """Each request of the segment, the step that its latent must be at, and where its tensors are."""
        segment = self.command.segment
        for part, request, hand_over in zip(segment.parts, self.command.requests, self.command.hand_over, strict=True):
            step = part.first_step if segment.kind is SegmentKind.DENOISE else request.num_steps
            yield part.request_id, step, hand_over
