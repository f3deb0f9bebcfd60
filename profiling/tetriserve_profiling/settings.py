"""What to measure, and how often."""

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tetriserve_backend.domain import PIXELS_PER_TOKEN_SIDE

_Side: TypeAlias = Annotated[int, Field(gt=0, multiple_of=PIXELS_PER_TOKEN_SIDE)]
_Count: TypeAlias = Annotated[int, Field(ge=1)]

MAX_REPEATS, MAX_WARMUP = 100, 20
_CPU_RESOLUTIONS = ((256, 256), (512, 512), (768, 768), (1024, 1024))
_CUDA_RESOLUTIONS = ((256, 256), (512, 512), (1024, 1024), (2048, 2048))


def default_resolutions(device: str) -> tuple[tuple[int, int], ...]:
    """(height, width) in pixels that are measured where nobody says which; `device` is `cpu` or `cuda`."""
    return _CPU_RESOLUTIONS if device == "cpu" else _CUDA_RESOLUTIONS


class ProfileSettings(BaseModel):
    """Settings of a profile.

    Attributes:
        resolutions: (height, width) in pixels.
        batches: images that share a step. 1 must be among them.
        degrees: ranks that share a step, of those that the model can run at; None takes all of these.
        repeats: samples of each entry.
        warmup: times that each entry runs unmeasured before its first sample. Each later visit of an entry begins
            with one unmeasured run, because other shapes ran in between.
        rounds: visits over which the samples of an entry are spread, so that a passing disturbance hits a few samples
            of many entries rather than all samples of one.
        budget_s: seconds after which an entry gets no further samples, once it has `min_repeats`; None is unlimited.
        min_repeats: see `budget_s`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resolutions: Annotated[tuple[tuple[_Side, _Side], ...], Field(min_length=1)]
    batches: Annotated[tuple[_Count, ...], Field(min_length=1)] = (1,)
    degrees: tuple[_Count, ...] | None = None
    repeats: int = Field(default=20, ge=2, le=MAX_REPEATS)
    warmup: int = Field(default=3, ge=1, le=MAX_WARMUP)
    rounds: int = Field(default=4, ge=1)
    budget_s: float | None = Field(default=None, gt=0)
    min_repeats: int = Field(default=3, ge=2)

    @model_validator(mode="after")
    def _has_single_images(self) -> "ProfileSettings":
        if 1 not in self.batches:
            raise ValueError("batches: 1 must be among them, since every batch may end up with one request")
        return self
