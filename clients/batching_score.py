"""What a server made of a trace: deadlines met, ranks' time, shared passes, and whether every image is right."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from tetriserve_client import GenerateResult, TetriserveClientError

_MOST_DIFFERENCE = 1
"""Of 255, by which a channel of a pixel may differ from the image made alone."""

Answers: TypeAlias = Mapping[str, GenerateResult | TetriserveClientError]
"""What came, by request id."""


@dataclass(frozen=True, slots=True)
class Score:
    """What one server made of one trace.

    Attributes:
        on_time: requests whose image was there by the deadline.
        latency_s: mean over the images.
        busy_gpu_s: seconds that ranks worked, encodes and decodes included.
        steps: denoising steps of all images.
        shared_steps: those that were run together with another image's.
        passes: forward passes that all steps took.
        difference: the worst of any pixel from the image made alone, of 255.
        errors: requests that got no image, or another than when alone.
    """

    requests: int
    on_time: int
    latency_s: float
    busy_gpu_s: float
    steps: int
    shared_steps: int
    passes: float
    difference: int
    errors: tuple[str, ...]

    @property
    def attainment(self) -> float:
        """On time over submitted."""
        return self.on_time / self.requests

    @property
    def on_time_per_gpu_second(self) -> float:
        """On-time requests per second that a rank worked."""
        return self.on_time / self.busy_gpu_s if self.busy_gpu_s else 0.0

    def __add__(self, other: "Score") -> "Score":
        """Both traces as one."""
        requests = self.requests + other.requests
        return Score(
            requests,
            self.on_time + other.on_time,
            (self.latency_s * self.requests + other.latency_s * other.requests) / requests,
            self.busy_gpu_s + other.busy_gpu_s,
            self.steps + other.steps,
            self.shared_steps + other.shared_steps,
            self.passes + other.passes,
            max(self.difference, other.difference),
            (*self.errors, *other.errors),
        )


def score(answers: Answers, wanted: Mapping[str, GenerateResult]) -> Score:
    """Compare what came with what came alone, both by request id."""
    results = {name: answer for name, answer in answers.items() if isinstance(answer, GenerateResult)}
    differences = {name: difference(result, wanted[name]) for name, result in results.items()}
    segments = [part for result in results.values() for part in result.segments]
    denoised = [part for part in segments if part.kind == "denoise"]
    return Score(
        requests=len(answers),
        on_time=sum(result.deadline_met for result in results.values()),
        latency_s=statistics.fmean(float(r.metadata["total_s"]) for r in results.values()) if results else 0.0,
        # Each member of a batch reports the segment that it was in.
        busy_gpu_s=sum(part.duration_s * len(part.ranks) / part.batch_size for part in segments),
        steps=sum(part.steps for part in denoised),
        shared_steps=sum(part.steps for part in denoised if part.batch_size > 1),
        passes=sum(part.steps / part.batch_size for part in denoised),
        difference=max(differences.values(), default=0),
        errors=(
            *(f"{name}: {answer}" for name, answer in answers.items() if name not in results),
            *(f"{name}: differs by {worst} of 255" for name, worst in differences.items() if worst > _MOST_DIFFERENCE),
        ),
    )


def difference(one: GenerateResult, other: GenerateResult) -> int:
    """The most by which a channel of a pixel differs, of 255."""
    return int(np.abs(one.images[0].pixels.astype(int) - other.images[0].pixels).max())


def verdict_of(together: Score, alone: Score) -> str:
    """Whether batching met at least as many deadlines, in words."""
    points = 100 * (together.attainment - alone.attainment)
    ratio = together.on_time_per_gpu_second / alone.on_time_per_gpu_second if alone.on_time else math.inf
    return (
        f"SLO met with batches {'at least as often as' if points >= 0 else 'LESS OFTEN than'} without: "
        f"{together.attainment:.1%} against {alone.attainment:.1%} ({points:+.1f} points); "
        f"on time per busy GPU-second ×{ratio:.2f}"
    )
