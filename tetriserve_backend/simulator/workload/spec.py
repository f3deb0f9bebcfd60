"""What a workload looks like."""

import itertools
import math
import re
from enum import Enum
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from tetriserve_backend.domain import PIXELS_PER_TOKEN_SIDE, image_tokens

_RESOLUTION = re.compile(r"([1-9][0-9]*)x([1-9][0-9]*)")

PAPER_SLO_S = {"256x256": 1.5, "512x512": 2.0, "1024x1024": 3.0, "2048x2048": 5.0}
"""The paper's resolutions and their SLOs at scale 1 (§6)."""


class Arrivals(str, Enum):
    """When requests come.

    POISSON: independent of each other. GAMMA: gaps with coefficient of variation `cv`; above 1 in clumps,
    below 1 more regular. FIXED: at equal gaps. BURSTS: Poisson, with phases of high and low rate in turn.
    DIURNAL: Poisson, with a rate that rises and falls like a sine.
    """

    POISSON = "poisson"
    GAMMA = "gamma"
    FIXED = "fixed"
    BURSTS = "bursts"
    DIURNAL = "diurnal"


def _known_mix(mix: str | dict[str, float]) -> str | dict[str, float]:
    if isinstance(mix, str):
        if mix not in ("uniform", "skewed"):
            parse_shape(mix)
        return mix
    for resolution, weight in mix.items():
        parse_shape(resolution)
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(f"{resolution}: expected a weight of at least 0, got {weight}")
    if not sum(mix.values()):
        raise ValueError("expected at least one weight above 0")
    return mix


Mix: TypeAlias = Annotated[str | dict[str, float], AfterValidator(_known_mix)]
Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
RatePerMinute: TypeAlias = Positive
Seed: TypeAlias = Annotated[int, Field(ge=0)]


class WorkloadSpec(BaseModel):
    """A workload as numbers; the same spec always gives the same trace.

    Arrivals, resolutions, SLO classes, steps and prompts come from random streams of their own: two specs
    that differ in one of them agree in the others.

    Attributes:
        requests: how many.
        mix: `uniform` (all of `slo_s` alike), `skewed` (p ∝ exp(alpha·L/L_max) over latent tokens L, §6), or
            weights by resolution.
        alpha: how far `skewed` leans to large images; negative leans to small ones.
        slo_s: seconds by resolution at scale 1; a resolution in between takes what lies on the line over
            latent tokens, one outside takes the nearest.
        slo_scales: factors on the SLO; each request draws one, so that several make SLO classes.
        min_steps: fewest denoising steps; each request draws a number.
        max_steps: most denoising steps.
        arrivals: see `Arrivals`.
        rate_per_minute: mean rate over time, whatever the arrivals.
        cv: of `gamma`.
        burst_on_s: seconds of each phase of high rate in `bursts`.
        burst_off_s: seconds of each phase of low rate.
        burst_factor: high rate over mean rate; the low rate follows.
        period_s: of `diurnal`.
        amplitude: of `diurnal`: how far the rate leaves its mean, as a share of it.
        prompts: texts to draw from; none leaves the prompt out.
        seed: of all random streams.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: int = Field(default=300, ge=0)
    mix: Mix = "uniform"
    alpha: float = Field(default=1.0, allow_inf_nan=False)
    slo_s: dict[str, Positive] = PAPER_SLO_S
    slo_scales: tuple[Positive, ...] = Field(default=(1.0,), min_length=1)
    min_steps: int = Field(default=20, ge=1)
    max_steps: int = Field(default=20, ge=1)
    arrivals: Arrivals = Arrivals.POISSON
    rate_per_minute: RatePerMinute = 12.0
    cv: Positive = 2.0
    burst_on_s: Positive = 15.0
    burst_off_s: Positive = 45.0
    burst_factor: float = Field(default=3.0, ge=1, allow_inf_nan=False)
    period_s: Positive = 1800.0
    amplitude: float = Field(default=0.8, ge=0, le=1)
    prompts: tuple[str, ...] = ()
    seed: Seed = 0

    @field_validator("slo_s")
    @classmethod
    def _known_shapes(cls, slo_s: dict[str, float]) -> dict[str, float]:
        for resolution in slo_s:
            parse_shape(resolution)
        if not slo_s:
            raise ValueError("expected the SLO of at least one resolution")
        return slo_s

    @model_validator(mode="after")
    def _consistent(self) -> "WorkloadSpec":
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps {self.min_steps} exceeds max_steps {self.max_steps}")
        most = (self.burst_on_s + self.burst_off_s) / self.burst_on_s
        if self.arrivals is Arrivals.BURSTS and self.burst_factor > most:
            raise ValueError(
                f"burst_factor {self.burst_factor} leaves no room for the mean rate; allowed with these phases: "
                f"up to {most:g}"
            )
        return self

    def weights(self) -> dict[tuple[int, int], float]:
        """Probability of each (height, width), fewest tokens first; they add up to 1."""
        if isinstance(self.mix, dict):
            raw = {parse_shape(resolution): weight for resolution, weight in self.mix.items()}
        elif self.mix in ("uniform", "skewed"):
            raw = {parse_shape(resolution): 1.0 for resolution in self.slo_s}
            if self.mix == "skewed":
                largest = max(image_tokens(*shape) for shape in raw)
                raw = {shape: math.exp(self.alpha * image_tokens(*shape) / largest) for shape in raw}
        else:
            raw = {parse_shape(self.mix): 1.0}
        total = sum(raw.values())
        return {shape: raw[shape] / total for shape in sorted(raw, key=lambda shape: (image_tokens(*shape), shape))}

    @property
    def mix_name(self) -> str:
        """The mix by its name, or resolution by resolution with its weight, such as `256x256:3 512x512:1`.

        Two mixes that differ have different names.
        """
        if isinstance(self.mix, str):
            return self.mix
        shapes = sorted(self.mix, key=lambda name: (image_tokens(*parse_shape(name)), name))
        return " ".join(f"{name}:{self.mix[name]:.12g}" for name in shapes)

    def labels(self) -> dict[str, Any]:
        """What a summary says about its trace, in the terms of the paper's figures."""
        scales, steps = self.slo_scales, (self.min_steps, self.max_steps)
        return {
            "mix": self.mix_name,
            "arrivals": self.arrivals.value,
            "rate_per_minute": self.rate_per_minute,
            "slo_scale": scales[0] if len(scales) == 1 else None,
            "steps": steps[0] if steps[0] == steps[1] else None,
            "seed": self.seed,
        }

    def base_slo_s(self, height: int, width: int) -> float:
        """The SLO of a shape at scale 1, in seconds."""
        tokens = image_tokens(height, width)
        points = sorted((image_tokens(*parse_shape(name)), slo_s) for name, slo_s in self.slo_s.items())
        exact = self.slo_s.get(f"{height}x{width}")
        if exact is not None:
            return exact
        for (left, left_s), (right, right_s) in itertools.pairwise(points):
            if left <= tokens <= right:
                return left_s + (right_s - left_s) * (tokens - left) / max(1, right - left)
        return points[0][1] if tokens < points[0][0] else points[-1][1]


def parse_shape(resolution: str) -> tuple[int, int]:
    """(height, width) of `HEIGHTxWIDTH`.

    Raises:
        ValueError: not of that form, or of a size that no model makes images of.
    """
    found = _RESOLUTION.fullmatch(resolution)
    if not found:
        raise ValueError(f"{resolution!r}: expected uniform, skewed or a resolution as HEIGHTxWIDTH")
    height, width = int(found[1]), int(found[2])
    if height % PIXELS_PER_TOKEN_SIDE or width % PIXELS_PER_TOKEN_SIDE:
        raise ValueError(f"{resolution}: expected height and width to be multiples of {PIXELS_PER_TOKEN_SIDE} pixels")
    return height, width
