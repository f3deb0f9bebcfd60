"""What can happen to the engine: the only inputs of `EngineCore.handle`."""

from dataclasses import dataclass
from typing import TypeAlias

from tetriserve_backend.domain import Request
from tetriserve_backend.latency_table import LatencyTable


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A validated request wants an image; `siblings` are the others of its `prompt_group`."""

    request: Request
    siblings: tuple[Request, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """The client no longer wants the image; unknown or finished ids are ignored."""

    request_id: str


@dataclass(frozen=True, slots=True)
class SegmentFinished:
    """Every rank of a segment is done with it; `start_s`/`end_s` were taken on the ranks.

    `peak_memory_bytes` is the most that one of them had allocated on its device; None where that is not counted.
    """

    segment_id: int
    start_s: float
    end_s: float
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class SegmentFailed:
    """A segment will not finish.

    `retryable` is true when the ranks are to blame, or a segment that it was to follow (its requests go on from
    their last host copy), false when the work itself raised (its request fails; those of a batch go on alone).
    """

    segment_id: int
    reason: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A rank died, or can no longer take part in its groups; what it held is gone."""

    rank: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A new worker for a lost rank has loaded its model and waits for the groups to be formed anew."""

    rank: int


@dataclass(frozen=True, slots=True)
class WorldFormed:
    """All groups exist again; every rank named is usable."""

    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time that the last `SetTimer` asked for has come."""


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """The server is stopping: refuse new requests, finish the running ones."""


@dataclass(frozen=True, slots=True)
class AbortRequested:
    """The drain took too long: fail every request that is still there."""

    reason: str


@dataclass(frozen=True, slots=True)
class ModelAdded:
    """The ranks hold one more model, or one whose times have changed."""

    model: str
    table: LatencyTable


@dataclass(frozen=True, slots=True)
class ModelClosing:
    """A model will be removed: refuse new requests for it, finish the running ones."""

    model: str


@dataclass(frozen=True, slots=True)
class ModelRemoved:
    """A model is gone; requests for it that are still there fail with this reason."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class RestBegun:
    """Send nothing to the ranks until `RestEnded`: somebody else needs all of them. Requests may come and wait.

    While a rank is lost, those that are left go on: there is no rest before the world is whole.
    """


@dataclass(frozen=True, slots=True)
class RestEnded:
    """The ranks are the engine's again; `happened` to them meanwhile, in order."""

    happened: tuple[WorkerLost | WorkerReady | WorldFormed, ...] = ()


Event: TypeAlias = (
    RequestArrived
    | RequestCancelled
    | SegmentFinished
    | SegmentFailed
    | WorkerLost
    | WorkerReady
    | WorldFormed
    | TimerFired
    | DrainRequested
    | AbortRequested
    | ModelAdded
    | ModelClosing
    | ModelRemoved
    | RestBegun
    | RestEnded
)
