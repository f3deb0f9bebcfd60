"""What to ask for, and how it looks on the wire."""

import re
import uuid
from dataclasses import dataclass, field
from typing import TypedDict

IMAGE_MODEL = "tetriserve"
WHOLE_MODEL = "tetriserve_infer"
"""Answers once, with all images of a request: for plain HTTP `generate`, which takes no more than one response."""

ENGINE_MODEL = "denoise"
"""The model that takes `op`s: cancellation does not reach it through an ensemble, so clients call it directly."""

_SIZE = re.compile(r"(\d+)\s*[xX×]\s*(\d+)")


@dataclass(frozen=True, slots=True)
class Size:
    """An image's size in pixels, written WIDTHxHEIGHT as in other image interfaces."""

    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Read `WIDTHxHEIGHT`, for instance `1024x512`.

        Raises:
            ValueError: the text is something else.
        """
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"size: '{text}' is not WIDTHxHEIGHT, such as 1024x512")
        return cls(width=int(match[1]), height=int(match[2]))

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def new_request_id() -> str:
    """A request id that no other client has."""
    return uuid.uuid4().hex


class ImageFields(TypedDict, total=False):
    """What `generate` takes besides the prompt; see `ImageRequest`. None is as good as not given."""

    size: Size | str | None
    steps: int | None
    slo_s: float | None
    seed: int | None
    guidance: float | None
    negative_prompt: str | None
    output_format: str | None
    model: str | None
    num_images: int | None
    max_sequence_length: int | None
    preview: bool | None
    request_id: str | None


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One image asked for, or several. What is None is left to the server's defaults.

    Args:
        prompt: what to draw.
        size: a `Size`, or text such as `1024x512` (width first).
        steps: denoising steps.
        slo_s: seconds from the request's arrival by which the images should be done.
        seed: of the first image; the next ones have the numbers after it.
        guidance: how closely to follow the prompt.
        negative_prompt: what to keep away from; only for models with classifier-free guidance.
        output_format: `png`, `jpeg`, `webp`, or `raw` for the pixels themselves.
        model: the name of the served model.
        num_images: how many images.
        max_sequence_length: text tokens of the prompt; as many as the server was set up with, or fewer.
        preview: whether progress, where it is asked for, brings small images.
        request_id: the id under which the server and its timeline know this request; must not be in use.
    """

    prompt: str
    size: Size | str | None = None
    steps: int | None = None
    slo_s: float | None = None
    seed: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    output_format: str | None = None
    model: str | None = None
    num_images: int | None = None
    max_sequence_length: int | None = None
    preview: bool | None = None
    request_id: str = field(default_factory=new_request_id)

    def fields(self) -> dict[str, str | int | float | bool]:
        """The server's public input names with their values, without those left to the server."""
        size = Size.parse(self.size) if isinstance(self.size, str) else self.size
        values: dict[str, str | int | float | bool | None] = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "height": size.height if size else None,
            "width": size.width if size else None,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "seed": self.seed,
            "latency_threshold": self.slo_s,
            "output_format": self.output_format,
            "model": self.model,
            "num_images": self.num_images,
            "max_sequence_length": self.max_sequence_length,
            "preview": self.preview,
        }
        return {name: value for name, value in values.items() if value is not None}


def make_request(prompt: str, fields: ImageFields) -> ImageRequest:
    """The request that `generate` was asked for, with a new id unless one is given.

    Raises:
        TypeError: there is no such field.
    """
    given = dict(fields)
    request_id = given.pop("request_id", None) or new_request_id()
    return ImageRequest(prompt, request_id=str(request_id), **given)  # type: ignore[arg-type]
