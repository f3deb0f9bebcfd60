"""What a policy wants done next."""

from dataclasses import dataclass

from tetriserve_backend.domain.placement import Placement
from tetriserve_backend.domain.segment import SegmentKind


@dataclass(frozen=True, slots=True)
class Assignment:
    """One segment to start: the engine fills in first steps, hand-over and the segment id.

    `num_steps` is ≥ 1 for denoise and 0 otherwise. All requests of a batch have one model
    and one resolution.
    """

    kind: SegmentKind
    request_ids: tuple[str, ...]
    placement: Placement
    num_steps: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Segments to send now, in this order, and when to ask the policy again if nothing happens before.

    The order is the order in which every shared rank performs them. A request may appear several times
    (encode, then denoise, then decode): each entry counts on the ones before it.
    """

    assignments: tuple[Assignment, ...] = ()
    wake_at_s: float | None = None
