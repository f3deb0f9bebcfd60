"""Consecutive steps of one batch on one placement, or one encode, or one decode."""

from dataclasses import dataclass
from enum import Enum

from tetriserve_backend.domain.placement import Placement


class SegmentKind(str, Enum):
    """What a segment does; also the order in which a request goes through them."""

    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class SegmentPart:
    """What a segment does for one request of its batch: steps `first_step … first_step + num_steps − 1`.

    Both are 0 for encode and decode.
    """

    request_id: str
    first_step: int = 0
    num_steps: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """Work that its ranks do without asking anyone; the unit of scheduling, of the timeline and of loss.

    Attributes:
        parts: one for each request; those of an encode share one prompt, which is encoded once.
        model: whose it is, as `Request.model`.
        cfg_degree: 2 where the ranks are split in two halves, one for each pass of classifier-free guidance.
    """

    segment_id: int
    kind: SegmentKind
    parts: tuple[SegmentPart, ...]
    placement: Placement
    height: int
    width: int
    model: str = ""
    cfg_degree: int = 1

    @property
    def num_steps(self) -> int:
        """Denoising steps of the longest part; 0 for encode and decode."""
        return max(part.num_steps for part in self.parts)

    @property
    def batch_size(self) -> int:
        """How many requests share each forward pass."""
        return len(self.parts)
