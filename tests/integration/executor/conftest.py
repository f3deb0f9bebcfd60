"""Tiny models in diffusers format, plain diffusers to compare with, and worlds of ranks."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.integration.executor.driver import Driver
from tetriserve_backend.domain import Request
from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.executor.demo_flux import DemoFluxConfig, build_flux_directory

TINY = DemoFluxConfig(
    num_layers=2, num_single_layers=2, head_dim=16, rope_axes=(4, 4, 8), text_width=32, vae_channels=(8, 8, 8, 8)
)
TINY_WITHOUT_GUIDANCE = DemoFluxConfig(
    num_layers=1, num_single_layers=2, head_dim=16, rope_axes=(4, 4, 8), text_width=32, vae_channels=(8, 8, 8, 8),
    guidance_embeds=False, text_tokens=34,
)  # fmt: skip

Reference = Callable[..., Any]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As FLUX.1-dev, with 64 text tokens."""
    directory = tmp_path_factory.mktemp("models") / "tiny-dev"
    build_flux_directory(directory, TINY)
    return directory


@pytest.fixture(scope="session")
def tiny_model_without_guidance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As FLUX.1-schnell, with 34 text tokens, which 4 does not divide."""
    directory = tmp_path_factory.mktemp("models") / "tiny-schnell"
    build_flux_directory(directory, TINY_WITHOUT_GUIDANCE)
    return directory


@pytest.fixture(scope="session")
def reference() -> Reference:
    """What diffusers' own pipeline makes of a request: an image, or the final latent."""
    import torch  # noqa: PLC0415  (both take seconds)
    from diffusers import FluxPipeline  # noqa: PLC0415

    pipelines: dict[Path, Any] = {}

    def generate(directory: Path, request: Request, text_tokens: int, latent: bool = False) -> npt.NDArray[Any]:
        if directory not in pipelines:
            pipelines[directory] = FluxPipeline.from_pretrained(directory, local_files_only=True)
            pipelines[directory].set_progress_bar_config(disable=True)
        torch.set_num_threads(1)
        result = pipelines[directory](
            request.prompt, height=request.height, width=request.width, num_inference_steps=request.num_steps,
            guidance_scale=request.guidance_scale, generator=torch.Generator("cpu").manual_seed(request.seed),
            max_sequence_length=text_tokens, output_type="latent" if latent else "pil",
        ).images  # fmt: skip
        return result.numpy() if latent else np.asarray(result[0])

    return generate


@pytest.fixture(scope="module")
def world(tiny_model: Path) -> Iterator[Driver]:
    """Four ranks with the tiny model."""
    settings = ExecutorSettings(world_size=4, segment_timeout_s=4.0, form_timeout_s=4.0)
    driver = Driver(ModelSettings(path=str(tiny_model)), settings)
    try:
        yield driver.start()
    finally:
        driver.stop()
