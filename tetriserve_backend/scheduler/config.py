"""Settings of the scheduler layer."""

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

_RESOLUTION = re.compile(r"[1-9][0-9]*x[1-9][0-9]*")


class SchedulerSettings(BaseModel):
    """Frozen settings of the scheduler.

    Attributes:
        policy: which policy plans: `tetris`, `tetriserve`, `rssp`, `fcfs-optimal-shape` or `fixed-sp<k>`.
        step_granularity: steps that one round of `tetriserve` holds of a resolution of median speed at its
            fastest degree (`round_length.py`). Fewer react sooner to arrivals, more switch less often (§6, Fig. 15).
        placement_preservation: `tetriserve` keeps a request on the ranks of its last round where it can;
            off, each round places anew from the lowest rank (§4.2.3).
        elastic_scale_up: `tetriserve` and `tetris` give ranks that the packing left idle, or that are idle before
            the end of a round, to whoever gains from them; off, they idle until the next round (§4.2.3) or plan,
            unless a late request can use them.
        boundary_grace: how far `tetriserve` may put off a round's start, as a share of the round, to wait
            for ranks that are about to finish (a decode, a segment slower than its profile).
        boundary_overrun: how far beyond the end of a round of `tetriserve`, as a share of the round, a request may go
            on that the next round would keep on its ranks, where no step of anybody fits into the rest of this one; 0
            has these ranks idle until then. With scale-up only.
        late_limit_s: a request that is late by this much goes before all others, on one rank (`tetriserve`) or as
            soon as its group can be had (`rssp`), so that nobody starves under lasting overload; None leaves
            late requests the leftovers only, as in the paper.
        rssp_degrees: degree by resolution ("1024x1024": 2) for `rssp`; resolutions not named follow the
            rule of `rssp_min_efficiency`.
        rssp_min_efficiency: `rssp` takes the widest degree whose speed-up is at least this share of its ranks.
        segment_seconds: how long `tetris` lets a segment run before it plans anew, roughly: shorter reacts
            sooner, longer costs fewer dispatches. Halved until it is less than half the slack that requests
            arrive with, as long as dispatches do not take too much of it (`tetris/segment_length.py`).
        plan_tries: packings that `tetris` tries per plan when not everybody can be saved; fewer in a crowd.
        plan_candidates: how many of the dearest requests `tetris` may widen or give up in turn to save others.
        pod_size: ranks that `tetris` plans as one, a power of two, at least the widest group. Larger worlds are pods
            side by side, so that a decision takes no longer in them. Wider pods save more and take longer to plan.
        max_batch: most requests of one model and resolution that `tetris` and `tetriserve` let share a forward pass
            (selective continuous batching, §5); 1 switches it off. They join and leave between segments. Only sizes
            that the latency table has, only where a batch takes fewer GPU-seconds per image than an image alone
            (`tetriserve`: at the degree that both were given), and only where no request is given up for it.
        batch_patience_s: how long a request of `tetris` may idle until another one's segment ends, to share passes
            with it; 0 batches only what is ready at the same time. Longer saves more GPU-seconds and spends more
            slack, so nobody waits while somebody's deadline is given up.
        batch_reserve: share of the time that a batch still needs by which `tetris` plans it to be early: for ranks
            whose pace changes from second to second. There a batch that ends just late misses several deadlines,
            where one after the other the first would have been in time. Costs batches where ranks are steady.
        max_segment_steps: steps that the policies without rounds send at a time; a request can be cancelled,
            and resumes after a lost rank, between two segments.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str = "tetris"
    step_granularity: int = Field(default=5, ge=1)
    placement_preservation: bool = True
    elastic_scale_up: bool = True
    boundary_grace: float = Field(default=0.1, ge=0.0, le=1.0)
    boundary_overrun: float = Field(default=0.5, ge=0.0, le=1.0)
    late_limit_s: float | None = Field(default=120.0, ge=0.0)
    rssp_degrees: dict[str, int] | None = None
    rssp_min_efficiency: float = Field(default=0.9, gt=0.0, le=1.0)
    segment_seconds: float = Field(default=0.2, gt=0.0)
    plan_tries: int = Field(default=12, ge=1)
    plan_candidates: int = Field(default=4, ge=1)
    pod_size: int = Field(default=32, ge=1)
    max_batch: int = Field(default=4, ge=1)
    batch_patience_s: float = Field(default=0.25, ge=0.0)
    batch_reserve: float = Field(default=0.0, ge=0.0)
    max_segment_steps: int = Field(default=5, ge=1)

    @field_validator("pod_size")
    @classmethod
    def _check_pod_size(cls, size: int) -> int:
        if size & (size - 1):
            raise ValueError(f"expected a power of two, got {size}")
        return size

    @field_validator("rssp_degrees")
    @classmethod
    def _check_rssp_degrees(cls, degrees: dict[str, int] | None) -> dict[str, int] | None:
        for resolution, degree in (degrees or {}).items():
            if not _RESOLUTION.fullmatch(resolution):
                raise ValueError(f"{resolution!r}: expected a resolution as HEIGHTxWIDTH, such as '1024x1024'")
            if degree < 1 or degree & (degree - 1):
                raise ValueError(f"{resolution}: expected a degree that is a power of two, got {degree}")
        return degrees
