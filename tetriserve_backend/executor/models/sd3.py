"""Stable Diffusion 3 and 3.5 from any directory in diffusers format, with classifier-free guidance."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from tetriserve_backend.domain import PIXELS_PER_TOKEN_SIDE, Request
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.model_facts import ModelFacts
from tetriserve_backend.executor.models.base import Conditioning, TensorSpec
from tetriserve_backend.executor.models.directory import absent_parts
from tetriserve_backend.executor.models.flow_match import (
    EMBEDS,
    NEGATIVE_EMBEDS,
    NEGATIVE_POOLED,
    POOLED,
    FlowMatchModel,
    Row,
    stack,
    t5_tokens,
)
from tetriserve_backend.executor.models.parts import load_pipeline, load_transformer
from tetriserve_backend.executor.models.sd3_parallel import parallelize

_DEFAULT_GUIDANCE = 7.0
_DEFAULT_T5_TOKENS = 256


class Sd3Model(FlowMatchModel):
    """Stable Diffusion 3: two CLIP encoders, optionally T5, and two passes a step where `guidance_scale` > 1."""

    def __init__(
        self, pipeline: Any, directory: Path, settings: ModelSettings, device: torch.device, t5_tokens: int
    ) -> None:
        config = pipeline.transformer.config
        facts = ModelFacts(
            # CLIP's tokens and T5's follow each other in one stream, which is padded to what the degree divides.
            text_tokens=pipeline.tokenizer_max_length + t5_tokens,
            max_sequence_length=t5_tokens,
            shared_counts={"attention heads": int(config.num_attention_heads)},
            supports_negative_prompt=True,
            default_guidance_scale=_DEFAULT_GUIDANCE,
            max_side=int(config.pos_embed_max_size) * PIXELS_PER_TOKEN_SIDE,
            text_multiple=None if settings.compile else 1,
        )
        super().__init__(pipeline, directory, settings, device, facts)
        self._channels = int(config.in_channels)

    @classmethod
    def load(cls, directory: Path, settings: ModelSettings, device: torch.device, dtype: torch.dtype) -> "Sd3Model":
        """Load all parts; weights stored in `dtype` are mapped, not copied, on the CPU.

        Without T5, which a directory or the settings may leave out, its tokens are zeros, as in diffusers.

        Raises:
            ConfigurationError: see `FlowMatchModel`, or `max_sequence_length` is more than the tokenizer allows.
        """
        transformer = load_transformer(SD3Transformer2DModel, directory, settings, device, dtype)
        parallelize(transformer)
        has_t5 = settings.load_t5 and "text_encoder_3" not in absent_parts(directory)
        without = frozenset() if has_t5 else frozenset({"text_encoder_3", "tokenizer_3"})
        pipeline = load_pipeline(StableDiffusion3Pipeline, directory, transformer, settings, device, without=without)
        return cls(pipeline, directory, settings, device, t5_tokens(settings, pipeline.tokenizer_3, _DEFAULT_T5_TOKENS))

    def is_guided(self, request: Request) -> bool:
        """Whether the guidance scale is above 1."""
        return request.guidance_scale > 1

    def latent_spec(self, height: int, width: int) -> TensorSpec:
        """Latent of one image: (1, channels, height / 8, width / 8)."""
        scale = self._pipeline.vae_scale_factor
        return TensorSpec("latent", (1, self._channels, height // scale, width // scale), self._dtype)

    def encode(self, request: Request) -> Conditioning:
        """Run CLIP, CLIP and T5 on the prompt and, if the request is guided, on the negative prompt."""
        guided = self.is_guided(request)
        embeds, negative_embeds, pooled, negative_pooled = self._pipeline.encode_prompt(
            prompt=request.prompt,
            prompt_2=None,
            prompt_3=None,
            negative_prompt=request.negative_prompt,
            do_classifier_free_guidance=guided,
            device=self._device,
            max_sequence_length=self._t5_tokens(request),
        )
        positive = {EMBEDS: embeds, POOLED: pooled}
        return positive | {NEGATIVE_EMBEDS: negative_embeds, NEGATIVE_POOLED: negative_pooled} if guided else positive

    def initial_latent(self, request: Request) -> torch.Tensor:
        """Noise drawn on the CPU, so that every rank and device starts from the same."""
        generator = torch.Generator("cpu").manual_seed(request.seed)
        latent = self._pipeline.prepare_latents(
            1, self._channels, request.height, request.width, self._dtype, self._device, generator
        )
        return torch.as_tensor(latent)

    def _velocity(self, rows: Sequence[Row]) -> torch.Tensor:
        velocity = self._pipeline.transformer(
            hidden_states=stack([row.latent for row in rows]),
            timestep=torch.stack([row.timestep for row in rows]),
            encoder_hidden_states=stack([row.embeds for row in rows]),
            pooled_projections=stack([row.pooled for row in rows]),
            return_dict=False,
        )[0]
        return torch.as_tensor(velocity)

    def _unpack(self, latent: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return latent

    def _sigmas(self, num_steps: int) -> npt.NDArray[np.float64] | None:
        return None
