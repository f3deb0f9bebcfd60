"""What the engine core remembers of each request."""

from dataclasses import dataclass, field

from tetriserve_backend.domain import Placement, Request, SegmentKind
from tetriserve_backend.engine.commands import SegmentRecord


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request is: encoded or not, steps denoised, decoded or not."""

    encoded: bool = False
    steps: int = 0
    decoded: bool = False

    def after(self, kind: SegmentKind, num_steps: int) -> "Progress":
        """The progress once a segment of `kind` is done as well."""
        if kind is SegmentKind.ENCODE:
            return Progress(True, self.steps, self.decoded)
        if kind is SegmentKind.DENOISE:
            return Progress(self.encoded, self.steps + num_steps, self.decoded)
        return Progress(self.encoded, self.steps, True)

    def next_kind(self, num_steps: int) -> SegmentKind | None:
        """The stage that a request of `num_steps` steps needs next; None when nothing is left."""
        if not self.encoded:
            return SegmentKind.ENCODE
        if self.steps < num_steps:
            return SegmentKind.DENOISE
        return None if self.decoded else SegmentKind.DECODE


@dataclass(slots=True)
class RequestState:
    """One request between arrival and answer.

    `done` is what has finished and has a host copy; `sent` also counts the segments in flight.
    The holders are the ranks that will have the tensors once all sent segments are over.
    `retries` counts lost ranks; `failed_together` is set once work that it shared with others has failed.
    """

    request: Request
    predicted_finish_s: float
    done: Progress = Progress()
    sent: Progress = Progress()
    placement: Placement | None = None
    conditioning_holders: set[int] = field(default_factory=set)
    latent_holders: set[int] = field(default_factory=set)
    records: list[SegmentRecord] = field(default_factory=list)
    rolling_back: bool = False
    retries: int = 0
    failed_together: bool = False

    @property
    def runs_alone(self) -> bool:
        """Whether it may share no forward pass: one has failed, or its text is not as long as the others'."""
        return self.failed_together or self.request.max_sequence_length is not None

    def forget_rank(self, rank: int) -> None:
        """`rank` no longer holds anything."""
        self.conditioning_holders.discard(rank)
        self.latent_holders.discard(rank)

    def roll_back(self) -> None:
        """Go on from the last host copies; only called with nothing in flight."""
        self.sent = self.done
        self.conditioning_holders.clear()
        self.latent_holders.clear()
        self.placement = None
        self.rolling_back = False
