"""What the engine core remembers of each request, rank and segment in flight."""

from collections import deque
from dataclasses import dataclass, field

from tetriserve_backend.domain import Placement, Request, Segment, SegmentKind
from tetriserve_backend.engine.commands import SegmentRecord


@dataclass(slots=True)
class Progress:
    """How far a request is: encoded or not, steps denoised, decoded or not."""

    encoded: bool = False
    steps: int = 0
    decoded: bool = False

    def copy(self) -> "Progress":
        """An independent copy."""
        return Progress(self.encoded, self.steps, self.decoded)

    def advance(self, kind: SegmentKind, num_steps: int) -> None:
        """Count a segment of `kind` as done."""
        if kind is SegmentKind.ENCODE:
            self.encoded = True
        elif kind is SegmentKind.DENOISE:
            self.steps += num_steps
        else:
            self.decoded = True


@dataclass(slots=True)
class RequestState:
    """One request between arrival and answer.

    `done` is what has finished and has a host copy; `sent` also counts the segments in flight.
    The holders are the ranks that will have the tensors once all sent segments are over.
    """

    request: Request
    predicted_finish_s: float
    done: Progress = field(default_factory=Progress)
    sent: Progress = field(default_factory=Progress)
    in_flight: list[int] = field(default_factory=list)
    ready_at_s: float = 0.0
    placement: Placement | None = None
    conditioning_holders: set[int] = field(default_factory=set)
    latent_holders: set[int] = field(default_factory=set)
    records: list[SegmentRecord] = field(default_factory=list)
    rolling_back: bool = False
    retries: int = 0

    @property
    def next_kind(self) -> SegmentKind | None:
        """The stage to send next; None when everything is sent."""
        if not self.sent.encoded:
            return SegmentKind.ENCODE
        if self.sent.steps < self.request.num_steps:
            return SegmentKind.DENOISE
        return None if self.sent.decoded else SegmentKind.DECODE

    def forget_rank(self, rank: int) -> None:
        """`rank` no longer holds anything."""
        self.conditioning_holders.discard(rank)
        self.latent_holders.discard(rank)

    def roll_back(self, now_s: float) -> None:
        """Go on from the last host copies; only called with nothing in flight."""
        self.sent = self.done.copy()
        self.conditioning_holders.clear()
        self.latent_holders.clear()
        self.placement = None
        self.ready_at_s = now_s
        self.rolling_back = False


@dataclass(slots=True)
class RankState:
    """A rank, the segments sent to it in order, and when the last of them should end."""

    rank: int
    usable: bool = True
    free_at_s: float = 0.0
    queue: deque[int] = field(default_factory=deque)


@dataclass(slots=True)
class InFlight:
    """A segment that was sent: how long it should take and when it should end."""

    segment: Segment
    duration_s: float
    end_s: float
