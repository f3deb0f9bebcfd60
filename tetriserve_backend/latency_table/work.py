"""What a latency table tells the time of."""

from dataclasses import dataclass
from functools import lru_cache

from tetriserve_backend.domain import Segment, SegmentKind


@dataclass(frozen=True, slots=True)
class Work:
    """One denoising step, one encode or one decode.

    Attributes:
        height, width: pixels; 0 for an encode.
        degree: ranks that share it.
        batch: images, or prompts, that share a forward pass.
        cfg_degree: into how many parts its guidance is split over the ranks, 1 or 2.
    """

    kind: SegmentKind
    height: int = 0
    width: int = 0
    degree: int = 1
    batch: int = 1
    cfg_degree: int = 1

    @property
    def sp(self) -> int:
        """Sequence-parallel degree of each part of its guidance, as files have it."""
        return self.degree // self.cfg_degree

    def __str__(self) -> str:
        """For people."""
        if self.kind is SegmentKind.ENCODE:
            return f"encode batch {self.batch}"
        if self.kind is SegmentKind.DECODE:
            return f"decode {self.height}x{self.width}"
        return f"step {self.height}x{self.width} batch {self.batch} {mode_label(self.sp, self.cfg_degree)}"


def mode_label(sp: int, cfg: int) -> str:
    """A way to share a step, for people."""
    return f"sp {sp}" + (f" × cfg {cfg}" if cfg > 1 else "")


def step_work(height: int, width: int, batch: int = 1, sp: int = 1, cfg: int = 1) -> Work:
    """A step of `batch` images on `sp` × `cfg` ranks."""
    return Work(SegmentKind.DENOISE, height, width, sp * cfg, batch, cfg)


def encode_work(batch: int = 1) -> Work:
    """The text encoders for `batch` prompts on one rank."""
    return Work(SegmentKind.ENCODE, batch=batch)


def decode_work(height: int, width: int) -> Work:
    """The VAE for one image on one rank."""
    return Work(SegmentKind.DECODE, height, width)


_kept = lru_cache(maxsize=1024)(Work)
"""The same object each time: every segment is asked about often, and tables are searched for the answer."""


def work_of(segment: Segment) -> Work:
    """What a segment does, as a table names it; a segment of several steps does it several times."""
    if segment.kind is SegmentKind.ENCODE:
        return _kept(segment.kind, 0, 0, 1, 1, 1)
    if segment.kind is SegmentKind.DECODE:
        return _kept(segment.kind, segment.height, segment.width, 1, 1, 1)
    degree, batch = segment.placement.sp_degree, segment.batch_size
    return _kept(segment.kind, segment.height, segment.width, degree, batch, segment.cfg_degree)
