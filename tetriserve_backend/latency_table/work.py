"""What a latency table tells the time of."""

from dataclasses import dataclass

from tetriserve_backend.domain import Segment, SegmentKind


@dataclass(frozen=True, slots=True)
class Work:
    """One denoising step, one encode or one decode.

    Attributes:
        height, width: pixels; 0 for an encode.
        degree: ranks that share it.
        batch: images that share a forward pass.
        cfg_degree: into how many parts its guidance is split over the ranks, 1 or 2.
    """

    kind: SegmentKind
    height: int = 0
    width: int = 0
    degree: int = 1
    batch: int = 1
    cfg_degree: int = 1


def work_of(segment: Segment) -> Work:
    """What a segment does, as a table names it; a segment of several steps does it several times."""
    if segment.kind is SegmentKind.ENCODE:
        return Work(segment.kind)
    if segment.kind is SegmentKind.DECODE:
        return Work(segment.kind, segment.height, segment.width)
    degree, batch = segment.placement.sp_degree, segment.batch_size
    return Work(segment.kind, segment.height, segment.width, degree, batch, segment.cfg_degree)
