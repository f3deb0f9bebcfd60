"""What a policy may know when it plans."""

from dataclasses import dataclass

from tetriserve_backend.domain import Placement, Request, SegmentKind


@dataclass(frozen=True, slots=True)
class RequestView:
    """A request that still needs work, as it will be once everything already sent has run.

    Attributes:
        next_kind: the stage that it needs next (encode, denoise or decode).
        remaining_steps: denoising steps not yet sent to any rank.
        ready_at_s: when its sent work is expected to end; in the past if none is in flight.
        placement: where it ran, or runs, last; None before its encode.
        in_flight: segments sent and not yet finished.
        runs_alone: whether it must share no forward pass: one that it shared has failed, or its text has a length of
            its own.
    """

    request: Request
    next_kind: SegmentKind
    remaining_steps: int
    ready_at_s: float
    placement: Placement | None
    in_flight: int
    runs_alone: bool = False


@dataclass(frozen=True, slots=True)
class RankView:
    """A usable rank and when its sent work is expected to end; in the past if it is idle.

    `slowness` is how many times as long as on the other ranks work takes there.
    """

    rank: int
    free_at_s: float
    in_flight: int
    slowness: float = 1.0


@dataclass(frozen=True, slots=True)
class SchedulerView:
    """Everything a policy plans from.

    Attributes:
        requests: in order of arrival; requests with all their work sent are left out.
        ranks: usable ranks in ascending order; a lost rank is left out until it is back.
        world_size: ranks of the whole world, lost ones included.
        lead_s: work may be sent up to this long before its ranks and request are free
            (so that ranks never wait for the engine); wake-up times should allow for it.
    """

    requests: tuple[RequestView, ...]
    ranks: tuple[RankView, ...]
    world_size: int
    lead_s: float

    def available_ranks(self, now_s: float) -> tuple[int, ...]:
        """Ranks that are idle, or will be within `lead_s`."""
        return tuple(r.rank for r in self.ranks if r.free_at_s <= now_s + self.lead_s)

    def is_ready(self, request: RequestView, now_s: float) -> bool:
        """Whether the next segment of `request` may be sent: nothing of it runs beyond `lead_s`."""
        return request.ready_at_s <= now_s + self.lead_s
