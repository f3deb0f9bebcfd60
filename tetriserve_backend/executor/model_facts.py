"""What the server must know of a loaded model; without torch, because the ranks' parent reads it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Of one loaded model.

    Attributes:
        text_tokens: length of the text stream in the transformer; part of every step's cost.
        max_sequence_length: tokens that T5's prompt is padded or cut to; all or a part of `text_tokens`.
        text_multiple: a request's T5 tokens may be any multiple of this up to `max_sequence_length`: those lengths can
            be shared by every degree by which that can be. None: only `max_sequence_length` itself.
        shared_counts: what each sequence-parallel degree must divide, by name, besides the image tokens.
        supports_negative_prompt: whether the family has true classifier-free guidance. Where it has, a
            `guidance_scale` above 1 means two passes a step, and a placement may be split between them.
        default_guidance_scale: what diffusers takes for this family where a request names none.
        max_side: the longest side of an image in pixels; None where there is no limit.
    """

    text_tokens: int
    max_sequence_length: int
    shared_counts: dict[str, int]
    supports_negative_prompt: bool
    default_guidance_scale: float
    max_side: int | None = None
    text_multiple: int | None = None
