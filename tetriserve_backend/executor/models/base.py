"""The interface behind which everything that belongs to one family of models stays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tetriserve_backend.domain import Request
from tetriserve_backend.executor.model_facts import ModelFacts

PREVIEW_SIDE = 128
"""Pixels of the longer side of a preview: its decode costs as much as that of an image of this size."""

Conditioning = Mapping[str, torch.Tensor]
"""What the text encoders made of one request, by name."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype of a tensor that will be received; known from the command, never from the sender."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class StepInput:
    """One request's share of a denoising pass: `latent` as it is before step `step_index`."""

    request: Request
    step_index: int
    conditioning: Conditioning
    latent: torch.Tensor


class GuidanceSplit(Protocol):
    """Two halves of a placement, of which each computes one pass of classifier-free guidance."""

    @property
    def is_unconditional(self) -> bool:
        """Whether this rank is in the half that computes the unconditional (negative) pass."""

    def exchange(self, velocity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The unconditional and the conditional half's result, on every rank; both have this shape."""


class DiffusionModel(Protocol):
    """A loaded model on one rank. `step` runs on the group that xfuser has been switched to."""

    @property
    def facts(self) -> ModelFacts:
        """What the server must know of it."""

    @property
    def transformer(self) -> Any:
        """The diffusers transformer, with xfuser's sequence parallelism."""

    @property
    def attention_backend(self) -> str | None:
        """The name of one of xfuser's attention backends; None lets xfuser choose."""

    def conditioning_specs(self, request: Request) -> tuple[TensorSpec, ...]:
        """What `encode` returns of `request`, by name."""

    def latent_spec(self, height: int, width: int) -> TensorSpec:
        """The latent of one image of `height` × `width` pixels."""

    def encode(self, request: Request) -> Conditioning:
        """Run the text encoders."""

    def initial_latent(self, request: Request) -> torch.Tensor:
        """Noise from the request's seed: the same on every rank and every device."""

    def step(self, inputs: Sequence[StepInput], split: GuidanceSplit | None = None) -> list[torch.Tensor]:
        """One denoising step of a batch of one resolution; the new latents, in order.

        Without a split this is one forward pass, in which guided requests have two rows. With one, each
        half of the ranks computes one row for each request; both compute the same for unguided requests.
        """

    def decode(self, latent: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The image of a finished latent: uint8, shape (height, width, 3), on the CPU."""

    def preview(self, request: Request, step_index: int, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """A small image of what step `step_index` promises, from the latents before and after it.

        uint8, shape (rows, columns, 3), on the CPU; the longer side has `PREVIEW_SIDE` pixels or fewer.
        """
