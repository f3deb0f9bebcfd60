"""What comes back: progress by step, then the image with its story."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Progress:
    """`step` of `num_steps` denoising steps are done, `elapsed_s` seconds after the request was sent."""

    step: int
    num_steps: int
    elapsed_s: float


ProgressCallback: TypeAlias = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """One piece of the request's work; times in seconds since its arrival at the server."""

    kind: str
    sp_degree: int
    ranks: tuple[int, ...]
    steps: int
    start_s: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """An image in the format asked for, the server's metadata, and the latency that this client saw."""

    image: bytes
    metadata: Mapping[str, Any]
    latency_s: float

    @property
    def request_id(self) -> str:
        """The id by which the server knew the request."""
        return str(self.metadata["request_id"])

    @property
    def seed(self) -> int:
        """The seed that makes this image again."""
        return int(self.metadata["seed"])

    @property
    def deadline_met(self) -> bool:
        """Whether the server finished the image before its deadline."""
        return bool(self.metadata["deadline_met"])

    @property
    def segments(self) -> tuple[SegmentReport, ...]:
        """The pieces of work that made this image, in order."""
        return tuple(
            SegmentReport(
                kind=str(entry["kind"]),
                sp_degree=int(entry["sp_degree"]),
                ranks=tuple(int(rank) for rank in entry["ranks"]),
                steps=int(entry["steps"]),
                start_s=float(entry["start_s"]),
                duration_s=float(entry["duration_s"]),
            )
            for entry in self.metadata["segments"]
        )

    @property
    def degrees(self) -> tuple[int, ...]:
        """The sequence-parallel degree of each denoise segment, in order."""
        return tuple(segment.sp_degree for segment in self.segments if segment.kind == "denoise")

    def save(self, path: str | Path) -> Path:
        """Write the image to `path` and return it."""
        path = Path(path)
        path.write_bytes(self.image)
        return path
