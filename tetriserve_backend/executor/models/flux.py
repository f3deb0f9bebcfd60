"""FLUX.1 from any directory in diffusers format, dev (with guidance) or schnell (without)."""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import FluxPipeline
from xfuser.model_executor.models.transformers.transformer_flux import xFuserFlux1Transformer2DWrapper

from tetriserve_backend.domain import ConfigurationError, Request, image_tokens
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.model_facts import ModelFacts
from tetriserve_backend.executor.models.base import Conditioning, TensorSpec
from tetriserve_backend.executor.models.flow_match import EMBEDS, POOLED, FlowMatchModel, Row, stack, t5_tokens
from tetriserve_backend.executor.models.parts import load_pipeline, load_transformer

_TRAINING_TIMESTEPS = 1000
_DEFAULT_GUIDANCE = 3.5
_DEFAULT_T5_TOKENS = 512


class FluxModel(FlowMatchModel):
    """FLUX.1: guidance is distilled into the model and an input of its one pass, so there is no negative prompt."""

    def __init__(
        self, pipeline: Any, directory: Path, settings: ModelSettings, device: torch.device, text_tokens: int
    ) -> None:
        config = pipeline.transformer.config
        # xfuser would be silently wrong with a text stream that the degree does not divide.
        counts = {"attention heads": int(config.num_attention_heads), "text tokens": text_tokens}
        facts = ModelFacts(
            text_tokens,
            max_sequence_length=text_tokens,
            shared_counts=counts,
            supports_negative_prompt=False,
            default_guidance_scale=_DEFAULT_GUIDANCE,
            # Each length would have to be compiled, and takes as long as a start.
            text_multiple=None if settings.compile else math.gcd(*counts.values()),
        )
        super().__init__(pipeline, directory, settings, device, facts)
        self._takes_guidance = bool(config.guidance_embeds)
        self._packed_channels = int(config.in_channels)
        self._image_ids = lru_cache(maxsize=64)(self._make_image_ids)
        self._text_ids = torch.zeros(text_tokens, 3, device=device, dtype=self._dtype)

    @classmethod
    def load(cls, directory: Path, settings: ModelSettings, device: torch.device, dtype: torch.dtype) -> "FluxModel":
        """Load all parts; weights stored in `dtype` are mapped, not copied, on the CPU.

        Raises:
            ConfigurationError: see `FlowMatchModel`, T5 is to be left out, or `max_sequence_length` is more
                than the tokenizer allows.
        """
        if not settings.load_t5:
            raise ConfigurationError("model.load_t5: false; FLUX.1 needs T5, only Stable Diffusion 3 works without")
        transformer = load_transformer(xFuserFlux1Transformer2DWrapper, directory, settings, device, dtype)
        pipeline = load_pipeline(FluxPipeline, directory, transformer, settings, device)
        text_tokens = t5_tokens(settings, pipeline.tokenizer_2, _DEFAULT_T5_TOKENS)
        return cls(pipeline, directory, settings, device, text_tokens)

    def is_guided(self, request: Request) -> bool:
        """Never: there is one pass a step."""
        return False

    def latent_spec(self, height: int, width: int) -> TensorSpec:
        """Packed latent of one image: (1, image tokens, channels of a 2×2 patch)."""
        return TensorSpec("latent", (1, image_tokens(height, width), self._packed_channels), self._dtype)

    def encode(self, request: Request) -> Conditioning:
        """Run T5 and CLIP on the prompt."""
        embeds, pooled, _ = self._pipeline.encode_prompt(
            prompt=request.prompt,
            prompt_2=None,
            device=self._device,
            max_sequence_length=self._t5_tokens(request),
        )
        return {EMBEDS: embeds, POOLED: pooled}

    def initial_latent(self, request: Request) -> torch.Tensor:
        """Noise drawn on the CPU, so that every rank and device starts from the same."""
        generator = torch.Generator("cpu").manual_seed(request.seed)
        latent, _ = self._pipeline.prepare_latents(
            1, self._packed_channels // 4, request.height, request.width, self._dtype, self._device, generator
        )
        return torch.as_tensor(latent)

    def _velocity(self, rows: Sequence[Row]) -> torch.Tensor:
        first = rows[0].request
        velocity = self._pipeline.transformer(
            hidden_states=stack([row.latent for row in rows]),
            timestep=torch.stack([row.timestep for row in rows]).to(self._dtype) / _TRAINING_TIMESTEPS,
            guidance=self._guidance(rows),
            pooled_projections=stack([row.pooled for row in rows]),
            encoder_hidden_states=stack([row.embeds for row in rows]),
            txt_ids=self._text_ids[: self._t5_tokens(first)],
            img_ids=self._image_ids(first.height, first.width),
            joint_attention_kwargs={},
            return_dict=False,
        )[0]
        return torch.as_tensor(velocity)

    def _unpack(self, latent: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return torch.as_tensor(self._pipeline._unpack_latents(latent, height, width, self._pipeline.vae_scale_factor))

    def _sigmas(self, num_steps: int) -> npt.NDArray[np.float64] | None:
        if self._pipeline.scheduler.config.get("use_flow_sigmas"):
            return None
        return np.linspace(1.0, 1 / num_steps, num_steps)

    def _guidance(self, rows: Sequence[Row]) -> torch.Tensor | None:
        if not self._takes_guidance:
            return None
        # Filled on the device: a copy from the host would wait for all steps before.
        scales = [torch.full((1,), row.request.guidance_scale, device=self._device) for row in rows]
        return stack(scales)

    def _make_image_ids(self, height: int, width: int) -> torch.Tensor:
        rows, columns = height // 16, width // 16
        ids = self._pipeline._prepare_latent_image_ids(1, rows, columns, self._device, self._dtype)
        return torch.as_tensor(ids)
