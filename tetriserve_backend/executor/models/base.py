"""The interface behind which everything that belongs to one family of models stays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tetriserve_backend.domain import Request

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


class DiffusionModel(Protocol):
    """A loaded model on one rank. `step` runs on the group that xfuser has been switched to."""

    @property
    def transformer(self) -> Any:
        """The diffusers transformer, with xfuser's sequence parallelism."""

    @property
    def num_heads(self) -> int:
        """Attention heads; each degree must divide them."""

    @property
    def text_tokens(self) -> int:
        """Tokens of the text stream; each degree must divide them."""

    @property
    def attention_backend(self) -> str | None:
        """The name of one of xfuser's attention backends; None lets xfuser choose."""

    def conditioning_specs(self) -> tuple[TensorSpec, ...]:
        """What `encode` returns, by name."""

    def latent_spec(self, height: int, width: int) -> TensorSpec:
        """The latent of one image of `height` × `width` pixels."""

    def encode(self, request: Request) -> Conditioning:
        """Run the text encoders."""

    def initial_latent(self, request: Request) -> torch.Tensor:
        """Noise from the request's seed: the same on every rank and every device."""

    def step(self, inputs: Sequence[StepInput]) -> list[torch.Tensor]:
        """One denoising pass over a batch of one resolution; the new latents, in order."""

    def decode(self, latent: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The image of a finished latent: uint8, shape (height, width, 3), on the CPU."""
