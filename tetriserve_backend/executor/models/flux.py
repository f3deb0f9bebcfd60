"""FLUX.1 from any directory in diffusers format, dev (with guidance) or schnell (without)."""

import copy
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from xfuser.model_executor.models.transformers.transformer_flux import xFuserFlux1Transformer2DWrapper

from tetriserve_backend.domain import ConfigurationError, Request, image_tokens
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.models.base import Conditioning, StepInput, TensorSpec

_MAX_TEXT_TOKENS = 512
_TRAINING_TIMESTEPS = 1000


class FluxModel:
    """A FLUX.1 pipeline taken apart into stages; every stage computes what diffusers' own call computes.

    The pipeline's objects are used as they are; only the loop over the steps is ours, because each
    step may run on other ranks than the one before.
    """

    def __init__(self, pipeline: Any, device: torch.device, text_tokens: int, attention_backend: str | None) -> None:
        self._pipeline = pipeline
        self._device = device
        self._text_tokens = text_tokens
        self._attention_backend = attention_backend
        config = pipeline.transformer.config
        self._dtype: torch.dtype = pipeline.transformer.dtype
        self._guided = bool(config.guidance_embeds)
        self._latent_channels = int(config.in_channels)
        self._schedule = lru_cache(maxsize=256)(self._make_schedule)
        self._image_ids = lru_cache(maxsize=64)(self._make_image_ids)
        self._text_ids = torch.zeros(text_tokens, 3, device=device, dtype=self._dtype)

    @classmethod
    def load(cls, directory: Path, settings: ModelSettings, device: torch.device, dtype: torch.dtype) -> "FluxModel":
        """Load all parts; weights stored in `dtype` are mapped, not copied, on the CPU.

        Raises:
            ConfigurationError: the noise scheduler is one whose steps we do not know, or
                `max_sequence_length` is more than the tokenizer allows.
        """
        transformer = xFuserFlux1Transformer2DWrapper.from_pretrained(
            directory, subfolder="transformer", torch_dtype=dtype, local_files_only=True
        )
        pipeline: Any = FluxPipeline.from_pretrained(
            directory, transformer=transformer, torch_dtype=dtype, local_files_only=True
        )
        pipeline.to(device)
        _check_noise_scheduler(directory, pipeline.scheduler)
        allowed = min(_MAX_TEXT_TOKENS, int(pipeline.tokenizer_2.model_max_length))
        text_tokens = settings.max_sequence_length or allowed
        if text_tokens > allowed:
            raise ConfigurationError(f"model.max_sequence_length: {text_tokens}; allowed here: 1 to {allowed}")
        return cls(pipeline, device, text_tokens, _attention_backend(settings, device, dtype))

    @property
    def transformer(self) -> Any:
        """The diffusers transformer, with xfuser's sequence parallelism."""
        return self._pipeline.transformer

    @property
    def num_heads(self) -> int:
        """Attention heads."""
        return int(self._pipeline.transformer.config.num_attention_heads)

    @property
    def text_tokens(self) -> int:
        """Tokens that every prompt is padded or cut to."""
        return self._text_tokens

    @property
    def attention_backend(self) -> str | None:
        """The name of one of xfuser's attention backends; None lets xfuser choose."""
        return self._attention_backend

    def conditioning_specs(self) -> tuple[TensorSpec, ...]:
        """T5's token embeddings and CLIP's pooled one, as `encode` returns them."""
        config = self._pipeline.transformer.config
        return (
            TensorSpec("prompt_embeds", (1, self._text_tokens, int(config.joint_attention_dim)), self._dtype),
            TensorSpec("pooled_prompt_embeds", (1, int(config.pooled_projection_dim)), self._dtype),
        )

    def latent_spec(self, height: int, width: int) -> TensorSpec:
        """Packed latent of one image: (1, image tokens, channels of a 2×2 patch)."""
        return TensorSpec("latent", (1, image_tokens(height, width), self._latent_channels), self._dtype)

    def encode(self, request: Request) -> Conditioning:
        """Run T5 and CLIP on the prompt. FLUX.1 is guidance-distilled, so a negative prompt has no part in it."""
        embeds, pooled, _ = self._pipeline.encode_prompt(
            prompt=request.prompt, prompt_2=None, device=self._device, max_sequence_length=self._text_tokens
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def initial_latent(self, request: Request) -> torch.Tensor:
        """Noise drawn on the CPU, so that every rank and device starts from the same."""
        generator = torch.Generator("cpu").manual_seed(request.seed)
        latent, _ = self._pipeline.prepare_latents(
            1, self._latent_channels // 4, request.height, request.width, self._dtype, self._device, generator
        )
        return torch.as_tensor(latent)

    def step(self, inputs: Sequence[StepInput]) -> list[torch.Tensor]:
        """One forward pass for all inputs, then one Euler step for each."""
        first = inputs[0].request
        schedules = [self._schedule(i.request.num_steps, i.request.height, i.request.width) for i in inputs]
        timesteps = [times[i.step_index] for i, (times, _) in zip(inputs, schedules, strict=True)]
        velocity = self._pipeline.transformer(
            hidden_states=_stack([i.latent for i in inputs]),
            timestep=torch.stack(timesteps).to(self._dtype) / _TRAINING_TIMESTEPS,
            guidance=self._guidance(inputs),
            pooled_projections=_stack([i.conditioning["pooled_prompt_embeds"] for i in inputs]),
            encoder_hidden_states=_stack([i.conditioning["prompt_embeds"] for i in inputs]),
            txt_ids=self._text_ids,
            img_ids=self._image_ids(first.height, first.width),
            joint_attention_kwargs={},
            return_dict=False,
        )[0]
        return [
            _euler_step(i.latent, velocity[n : n + 1], sigmas[i.step_index], sigmas[i.step_index + 1])
            for n, (i, (_, sigmas)) in enumerate(zip(inputs, schedules, strict=True))
        ]

    def decode(self, latent: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Unpack, run the VAE and round to bytes, as diffusers' image processor does."""
        pipeline = self._pipeline
        unpacked = pipeline._unpack_latents(latent, height, width, pipeline.vae_scale_factor)
        unpacked = (unpacked / pipeline.vae.config.scaling_factor) + pipeline.vae.config.shift_factor
        decoded = pipeline.vae.decode(unpacked, return_dict=False)[0]
        image = pipeline.image_processor.postprocess(decoded, output_type="np")[0]
        return torch.from_numpy((image * 255).round().astype("uint8"))

    def _guidance(self, inputs: Sequence[StepInput]) -> torch.Tensor | None:
        if not self._guided:
            return None
        scales = [i.request.guidance_scale for i in inputs]
        return torch.tensor(scales, device=self._device, dtype=torch.float32)

    def _make_schedule(self, num_steps: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The noise scheduler's own timesteps and sigmas; a copy of it, since setting them changes it."""
        scheduler = copy.deepcopy(self._pipeline.scheduler)
        config = scheduler.config
        mu = calculate_shift(
            image_tokens(height, width),
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        sigmas = None if config.get("use_flow_sigmas") else np.linspace(1.0, 1 / num_steps, num_steps)
        timesteps, _ = retrieve_timesteps(scheduler, num_steps, self._device, sigmas=sigmas, mu=mu)
        return timesteps, scheduler.sigmas.clone()

    def _make_image_ids(self, height: int, width: int) -> torch.Tensor:
        rows, columns = height // 16, width // 16
        ids = self._pipeline._prepare_latent_image_ids(1, rows, columns, self._device, self._dtype)
        return torch.as_tensor(ids)


def _euler_step(
    latent: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor, next_sigma: torch.Tensor
) -> torch.Tensor:
    """One step of the flow-matching Euler scheduler, without its state; bit-equal to it."""
    return (latent.to(torch.float32) + (next_sigma - sigma) * velocity).to(velocity.dtype)


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _check_noise_scheduler(directory: Path, scheduler: Any) -> None:
    known = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    if not known or scheduler.config.get("stochastic_sampling"):
        raise ConfigurationError(
            f"{directory / 'scheduler'}: {type(scheduler).__name__}; "
            "supported: FlowMatchEulerDiscreteScheduler without stochastic_sampling"
        )


def _attention_backend(settings: ModelSettings, device: torch.device, dtype: torch.dtype) -> str | None:
    """On CUDA xfuser's own choice needs a half-precision dtype."""
    if settings.attention_backend != "auto":
        return settings.attention_backend.upper()
    return None if device.type == "cuda" and dtype != torch.float32 else "SDPA"
