"""What FLUX and Stable Diffusion 3 have in common: rectified flow, solved by Euler steps on latents of a VAE."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps

from tetriserve_backend.domain import PIXELS_PER_TOKEN_SIDE, ConfigurationError, Request, image_tokens
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.model_facts import ModelFacts
from tetriserve_backend.executor.models.attention import choose_attention_backend
from tetriserve_backend.executor.models.base import PREVIEW_SIDE, Conditioning, GuidanceSplit, StepInput, TensorSpec

EMBEDS, POOLED = "prompt_embeds", "pooled_prompt_embeds"
NEGATIVE_EMBEDS, NEGATIVE_POOLED = "negative_prompt_embeds", "negative_pooled_prompt_embeds"

_PATCH = 2
_MAX_T5_TOKENS = 512
_MAX_VARIANTS = 512


@dataclass(frozen=True, slots=True)
class Row:
    """One image in a forward pass; `timestep` is a scalar tensor, 1000 for pure noise and 0 for none."""

    request: Request
    latent: torch.Tensor
    timestep: torch.Tensor
    embeds: torch.Tensor
    pooled: torch.Tensor


class FlowMatchModel(ABC):
    """A pipeline taken apart into stages; every stage computes what diffusers' own call computes.

    The pipeline's objects are used as they are; only the loop over the steps is ours, because each
    step may run on other ranks than the one before.

    Args:
        pipeline: loaded, on `device`, its transformer with xfuser's sequence parallelism.
        directory: where it was loaded from, for messages.
        settings: how it is to compute.
        device: of this rank.
        facts: what the server must know of it.

    Raises:
        ConfigurationError: a part of the pipeline is of a kind whose results we do not know, or
            the attention backend cannot work here.
    """

    def __init__(
        self, pipeline: Any, directory: Path, settings: ModelSettings, device: torch.device, facts: ModelFacts
    ) -> None:
        _check_parts(directory, pipeline)
        self._pipeline, self._device, self._facts = pipeline, device, facts
        self._dtype: torch.dtype = pipeline.transformer.dtype
        self._attention_backend = choose_attention_backend(settings.attention_backend, device, self._dtype)
        self._tiling_above = settings.vae_tiling_above
        # On the device, so that no step waits for a copy from the host.
        self._schedule = lru_cache(maxsize=256)(self._make_schedule)
        self._is_compiled = settings.compile
        if settings.compile:
            _compile(pipeline.transformer)

    @property
    def facts(self) -> ModelFacts:
        """What the server must know of it."""
        return self._facts

    @property
    def transformer(self) -> Any:
        """The diffusers transformer, with xfuser's sequence parallelism."""
        return self._pipeline.transformer

    @property
    def attention_backend(self) -> str | None:
        """The name of one of xfuser's attention backends; None lets xfuser choose."""
        return self._attention_backend

    def conditioning_specs(self, request: Request) -> tuple[TensorSpec, ...]:
        """Token embeddings and a pooled one; the same again of the negative prompt if the request is guided."""
        config = self._pipeline.transformer.config
        facts = self._facts
        text_tokens = facts.text_tokens - facts.max_sequence_length + self._t5_tokens(request)
        embeds = (1, text_tokens, int(config.joint_attention_dim))
        pooled = (1, int(config.pooled_projection_dim))
        shapes = {EMBEDS: embeds, POOLED: pooled}
        if self.is_guided(request):
            shapes |= {NEGATIVE_EMBEDS: embeds, NEGATIVE_POOLED: pooled}
        return tuple(TensorSpec(name, shape, self._dtype) for name, shape in shapes.items())

    def step(self, inputs: Sequence[StepInput], split: GuidanceSplit | None = None) -> list[torch.Tensor]:
        """One forward pass for all inputs, or one on each half of the ranks, then one Euler step for each."""
        schedules = [self._schedule(i.request.num_steps, i.request.height, i.request.width) for i in inputs]
        timesteps = [times[i.step_index] for i, (times, _) in zip(inputs, schedules, strict=True)]
        velocities = self._guided_velocities(inputs, timesteps, split)
        return [
            _euler_step(i.latent, velocity, sigmas[i.step_index], sigmas[i.step_index + 1])
            for i, velocity, (_, sigmas) in zip(inputs, velocities, schedules, strict=True)
        ]

    def decode(self, latent: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Run the VAE and round to bytes, as diffusers' image processor does; in tiles above the threshold."""
        vae = self._pipeline.vae
        if self._tiling_above is not None and height * width > self._tiling_above:
            vae.enable_tiling()
        try:
            return self._decode(self._unpack(latent, height, width))
        finally:
            vae.disable_tiling()

    def preview(self, request: Request, step_index: int, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Go on along the step's velocity until no noise is left, shrink, and run the VAE on that."""
        _, sigmas = self._schedule(request.num_steps, request.height, request.width)
        sigma, next_sigma = sigmas[step_index], sigmas[step_index + 1]
        promised = after - next_sigma * (after - before) / (next_sigma - sigma)
        latent = self._unpack(promised.to(self._dtype), request.height, request.width)
        rows, columns = latent.shape[-2:]
        shrink = max(1.0, max(rows, columns) * self._pipeline.vae_scale_factor / PREVIEW_SIDE)
        size = (max(1, int(rows / shrink)), max(1, int(columns / shrink)))
        return self._decode(torch.nn.functional.interpolate(latent, size, mode="area"))

    @abstractmethod
    def is_guided(self, request: Request) -> bool:
        """Whether each step of `request` needs a second pass, with the negative prompt."""

    @abstractmethod
    def latent_spec(self, height: int, width: int) -> TensorSpec:
        """The latent of one image of `height` × `width` pixels."""

    @abstractmethod
    def encode(self, request: Request) -> Conditioning:
        """Run the text encoders; keys as in `conditioning_specs`."""

    @abstractmethod
    def initial_latent(self, request: Request) -> torch.Tensor:
        """Noise drawn on the CPU, so that every rank and device starts from the same."""

    @abstractmethod
    def _velocity(self, rows: Sequence[Row]) -> torch.Tensor:
        """One forward pass; shape (rows, *latent)."""

    @abstractmethod
    def _unpack(self, latent: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The latent as the VAE takes it, but for its scaling: (1, channels, height / 8, width / 8)."""

    @abstractmethod
    def _sigmas(self, num_steps: int) -> npt.NDArray[np.float64] | None:
        """What the pipeline hands to its noise scheduler; None leaves the noise levels to that."""

    def _t5_tokens(self, request: Request) -> int:
        return request.max_sequence_length or self._facts.max_sequence_length

    def _guided_velocities(
        self, inputs: Sequence[StepInput], timesteps: Sequence[torch.Tensor], split: GuidanceSplit | None
    ) -> list[torch.Tensor]:
        """The velocity of each input, shape (1, *latent), after guidance."""
        guided = [self.is_guided(i.request) for i in inputs]
        positive = [_row(i, time, negative=False) for i, time in zip(inputs, timesteps, strict=True)]
        negative = [
            _row(i, time, negative=True) if has_two else None
            for i, time, has_two in zip(inputs, timesteps, guided, strict=True)
        ]
        filled = [n or p for n, p in zip(negative, positive, strict=True)]
        if split is None:
            if self._is_compiled and any(guided):
                # Each number of rows is compiled by itself, and ahead only for batches that are all guided or all not.
                negative = [*filled]
            rows = [row for row in negative if row is not None]
            both = iter(_rows_of(self._velocity([*rows, *positive])))
            against = [next(both) if row is not None else None for row in negative]
            towards = list(both)
        else:
            own = filled if split.is_unconditional else positive
            first, second = split.exchange(self._velocity(own))
            against, towards = [*_rows_of(first)], [*_rows_of(second)]
        return [
            a + i.request.guidance_scale * (t - a) if has_two and a is not None else t
            for i, a, t, has_two in zip(inputs, against, towards, guided, strict=True)
        ]

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        vae = self._pipeline.vae
        scaled = (latent / vae.config.scaling_factor) + vae.config.shift_factor
        decoded = vae.decode(scaled, return_dict=False)[0]
        image = self._pipeline.image_processor.postprocess(decoded, output_type="np")[0]
        return torch.from_numpy((image * 255).round().astype("uint8"))

    def _make_schedule(self, num_steps: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The noise scheduler's own timesteps and sigmas; a copy of it, since setting them changes it."""
        scheduler = copy.deepcopy(self._pipeline.scheduler)
        config = scheduler.config
        shift = {}
        if config.get("use_dynamic_shifting"):
            shift["mu"] = calculate_shift(
                image_tokens(height, width),
                config.get("base_image_seq_len", 256),
                config.get("max_image_seq_len", 4096),
                config.get("base_shift", 0.5),
                config.get("max_shift", 1.15),
            )
        timesteps, _ = retrieve_timesteps(scheduler, num_steps, self._device, sigmas=self._sigmas(num_steps), **shift)
        return timesteps, scheduler.sigmas.to(self._device)


def t5_tokens(settings: ModelSettings, tokenizer: Any, default: int) -> int:
    """How many tokens T5 makes of each prompt; `tokenizer` is None where the pipeline has no T5.

    Raises:
        ConfigurationError: more are configured than there may be.
    """
    allowed = _MAX_T5_TOKENS if tokenizer is None else min(_MAX_T5_TOKENS, int(tokenizer.model_max_length))
    tokens = settings.max_sequence_length or min(default, allowed)
    if tokens > allowed:
        raise ConfigurationError(f"model.max_sequence_length: {tokens}; allowed here: 1 to {allowed}")
    return tokens


def stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor of all rows."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _rows_of(batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return batch.chunk(batch.shape[0])


def _row(item: StepInput, timestep: torch.Tensor, negative: bool) -> Row:
    embeds, pooled = (NEGATIVE_EMBEDS, NEGATIVE_POOLED) if negative else (EMBEDS, POOLED)
    return Row(item.request, item.latent, timestep, item.conditioning[embeds], item.conditioning[pooled])


def _euler_step(
    latent: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor, next_sigma: torch.Tensor
) -> torch.Tensor:
    """One step of the flow-matching Euler scheduler, without its state; bit-equal to it."""
    return (latent.to(torch.float32) + (next_sigma - sigma) * velocity).to(velocity.dtype)


def _check_parts(directory: Path, pipeline: Any) -> None:
    scheduler = pipeline.scheduler
    known = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    if not known or scheduler.config.get("stochastic_sampling"):
        raise ConfigurationError(
            f"{directory / 'scheduler'}: {type(scheduler).__name__}; "
            "supported: FlowMatchEulerDiscreteScheduler without stochastic_sampling"
        )
    pixels = pipeline.vae_scale_factor * _PATCH
    if pixels != PIXELS_PER_TOKEN_SIDE:
        raise ConfigurationError(
            f"{directory / 'vae'}: a token covers {pixels} × {pixels} pixels; "
            f"supported: {PIXELS_PER_TOKEN_SIDE} × {PIXELS_PER_TOKEN_SIDE}"
        )


def _compile(transformer: Any) -> None:
    """Block by block: all blocks of a kind share one compilation, and what lies between them stays as it is."""
    # Each shape and each group of ranks is a variant of its own; past the limit torch silently stops compiling.
    torch._dynamo.config.recompile_limit = _MAX_VARIANTS
    torch._dynamo.config.accumulated_recompile_limit = 16 * _MAX_VARIANTS
    for block in (*transformer.transformer_blocks, *getattr(transformer, "single_transformer_blocks", ())):
        block.compile(dynamic=False)
