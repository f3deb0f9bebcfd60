"""What preprocess tells denoise about one request, and denoise tells postprocess: the wire inside the ensemble."""

import json
from dataclasses import asdict, dataclass
from typing import Final

from tetriserve_backend.domain import Request
from tetriserve_backend.triton_adapter.image_format import ImageFormat

RENDERING_KEY = "_rendering"
"""Metadata key under which the rendering wishes travel from denoise to postprocess, which takes it away."""

UNIT_MARK: Final = "#"
"""Stands between the id of a request of several images and the index of one; no client's id ends like that."""


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
    """A valid request with every default filled in; `request_checks` makes them.

    What only the model can tell is open until `model_fit` fills it in: `model` "" means the only one there is,
    and `guidance_scale` and `max_sequence_length` None mean the model's own.
    """

    request_id: str
    model: str
    prompt: str
    negative_prompt: str
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float | None
    max_sequence_length: int | None
    num_images: int
    seed: int
    latency_threshold: float
    stream_progress: bool
    preview: bool
    arrival_s: float
    output_format: ImageFormat
    is_base64: bool

    @property
    def rendering(self) -> Rendering:
        """The part that postprocess needs."""
        return Rendering(self.output_format, self.is_base64, self.arrival_s, self.arrival_s + self.latency_threshold)

    def to_requests(self) -> tuple[Request, ...]:
        """The part that the engine needs, of a spec fitted to its model: one request for each image, by index.

        All share the deadline. Image n has the seed `seed` + n, so that any of them can be had again on its own.
        """
        return tuple(self._to_request(index) for index in range(self.num_images))

    def _to_request(self, index: int) -> Request:
        assert self.guidance_scale is not None
        return Request(
            request_id=self.request_id if self.num_images == 1 else f"{self.request_id}{UNIT_MARK}{index}",
            height=self.height,
            width=self.width,
            num_steps=self.num_inference_steps,
            arrival_s=self.arrival_s,
            deadline_s=self.arrival_s + self.latency_threshold,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            guidance_scale=self.guidance_scale,
            seed=self.seed + index,
            # A preview comes with a progress message.
            stream_progress=self.stream_progress or self.preview,
            preview=self.preview,
            model=self.model,
            prompt_group=self.request_id if self.num_images > 1 else "",
            max_sequence_length=self.max_sequence_length,
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
