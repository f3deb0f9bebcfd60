"""What the engine wants done: the only outputs of `EngineCore.handle`, performed in order."""

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from tetriserve_backend.domain import Request, Segment, TetriserveError


class SourceKind(str, Enum):
    """Where the ranks of a segment find a request's tensors.

    RESIDENT: every rank of the placement holds them.
    BROADCAST: rank `root` of the placement holds them and broadcasts inside the placement.
    HOST: the host copy goes to rank `root` of the placement, which then broadcasts. If the copy is not
        there yet (the segment before is still running elsewhere), the ranks wait for it.
    CREATE: nothing to move; each rank makes them itself (noise from the seed, before the first step).
    """

    RESIDENT = "resident"
    BROADCAST = "broadcast"
    HOST = "host"
    CREATE = "create"


@dataclass(frozen=True, slots=True)
class Source:
    """A `SourceKind` and, for BROADCAST and HOST, the rank that broadcasts."""

    kind: SourceKind
    root: int | None = None


@dataclass(frozen=True, slots=True)
class HandOver:
    """How one request's tensors reach the ranks of a segment.

    `conditioning` is what the text encoders made, `latent` the image in the making. An encode needs
    neither (CREATE for both); a decode needs only the latent (CREATE for the conditioning).
    """

    conditioning: Source
    latent: Source


@dataclass(frozen=True, slots=True)
class RunSegment:
    """Send `segment` to its ranks. `requests` and `hand_over` go with `segment.parts`, in that order.

    `expected_s` is how long it should take once its ranks are free; 0 if that is not known.
    """

    segment: Segment
    requests: tuple[Request, ...]
    hand_over: tuple[HandOver, ...]
    expected_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """No rank and no host store needs this request's tensors any more."""

    request_id: str


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """A finished segment as the answer's metadata tells it; `batch_size` requests shared it, see `Segment`."""

    kind: str
    ranks: tuple[int, ...]
    first_step: int
    num_steps: int
    start_s: float
    end_s: float
    batch_size: int = 1
    cfg_degree: int = 1


@dataclass(frozen=True, slots=True)
class FinishRequest:
    """The decoded pixels are there: answer. `predicted_finish_s` is what was expected at arrival."""

    request: Request
    finish_s: float
    predicted_finish_s: float
    segments: tuple[SegmentRecord, ...]


@dataclass(frozen=True, slots=True)
class EndRequest:
    """Answer with an error. `outcome` is `reject`, `cancel` or `fail` (timeline names)."""

    request: Request
    outcome: str
    error: TetriserveError


@dataclass(frozen=True, slots=True)
class ReformWorld:
    """No segment is in flight and every lost rank has a loaded worker: build all groups anew."""


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Send `TimerFired` at `at_s`; replaces an earlier timer."""

    at_s: float


@dataclass(frozen=True, slots=True)
class WarnOperator:
    """Something that whoever runs the server should know; goes to the log."""

    text: str


Command: TypeAlias = RunSegment | ReleaseRequest | FinishRequest | EndRequest | ReformWorld | SetTimer | WarnOperator
