"""What preprocess tells denoise about one request, and denoise tells postprocess: the wire inside the ensemble."""

import json
from dataclasses import asdict, dataclass

from tetriserve_backend.domain import Request
from tetriserve_backend.triton_adapter.image_format import ImageFormat

RENDERING_KEY = "_rendering"
"""Metadata key under which the rendering wishes travel from denoise to postprocess, which takes it away."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """How the client wants its image, and the times that are only complete once it is rendered.

    Times are seconds on CLOCK_MONOTONIC, which all processes of one machine share.
    """

    output_format: ImageFormat
    is_base64: bool
    arrival_s: float
    deadline_s: float


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """A valid request with every default filled in; `request_checks` makes them."""

    request_id: str
    prompt: str
    negative_prompt: str
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    latency_threshold: float
    stream_progress: bool
    arrival_s: float
    output_format: ImageFormat
    is_base64: bool

    @property
    def rendering(self) -> Rendering:
        """The part that postprocess needs."""
        return Rendering(self.output_format, self.is_base64, self.arrival_s, self.arrival_s + self.latency_threshold)

    def to_request(self) -> Request:
        """The part that the engine needs."""
        return Request(
            request_id=self.request_id,
            height=self.height,
            width=self.width,
            num_steps=self.num_inference_steps,
            arrival_s=self.arrival_s,
            deadline_s=self.arrival_s + self.latency_threshold,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
            stream_progress=self.stream_progress,
        )


def dump_spec(spec: RequestSpec) -> str:
    """`spec` as JSON."""
    return json.dumps(asdict(spec))


def dump_rendering(rendering: Rendering) -> dict[str, object]:
    """`rendering` as JSON values."""
    return asdict(rendering)


def load_rendering(raw: dict[str, object]) -> Rendering:
    """The counterpart of `dump_rendering`."""
    return Rendering(
        output_format=ImageFormat(raw["output_format"]),
        is_base64=bool(raw["is_base64"]),
        arrival_s=float(str(raw["arrival_s"])),
        deadline_s=float(str(raw["deadline_s"])),
    )
