"""Tiny models in diffusers format, plain diffusers to compare with, and worlds of ranks."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.integration.executor.driver import Driver
from tetriserve_backend.domain import Request
from tetriserve_backend.executor import xdit_executor
from tetriserve_backend.executor.config import ExecutorSettings, ModelSettings
from tetriserve_backend.executor.demo_config import DemoFluxConfig, DemoSd3Config
from tetriserve_backend.executor.demo_models import build_directory
from tetriserve_backend.executor.machine import Machine

TINY = DemoFluxConfig(
    num_layers=2, num_single_layers=2, head_dim=16, rope_axes=(4, 4, 8), text_width=32, vae_channels=(8, 8, 8, 8)
)
TINY_WITHOUT_GUIDANCE = DemoFluxConfig(
    num_layers=1, num_single_layers=2, head_dim=16, rope_axes=(4, 4, 8), text_width=32, vae_channels=(8, 8, 8, 8),
    guidance_embeds=False, text_tokens=34,
)  # fmt: skip
TINY_SD35 = DemoSd3Config(
    num_layers=3, head_dim=16, text_width=32, vae_channels=(8, 8, 8, 8), max_patches=32,
    dual_attention_layers=(0,), qk_norm="rms_norm",
)  # fmt: skip
TINY_SD3_WITHOUT_T5 = DemoSd3Config(head_dim=16, text_width=32, vae_channels=(8, 8, 8, 8), max_patches=32, has_t5=False)

Reference = Callable[..., Any]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As FLUX.1-dev, with 64 text tokens."""
    directory = tmp_path_factory.mktemp("models") / "tiny-dev"
    build_directory(directory, TINY)
    return directory


@pytest.fixture(scope="session")
def tiny_model_without_guidance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As FLUX.1-schnell, with 34 text tokens, which 4 does not divide."""
    directory = tmp_path_factory.mktemp("models") / "tiny-schnell"
    build_directory(directory, TINY_WITHOUT_GUIDANCE)
    return directory


@pytest.fixture(scope="session")
def tiny_sd35(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Stable Diffusion 3.5 Medium, with 77 + 64 text tokens, which no degree divides."""
    directory = tmp_path_factory.mktemp("models") / "tiny-sd35"
    build_directory(directory, TINY_SD35)
    return directory


@pytest.fixture(scope="session")
def tiny_sd3_without_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Stable Diffusion 3 Medium without its third text encoder."""
    directory = tmp_path_factory.mktemp("models") / "tiny-sd3"
    build_directory(directory, TINY_SD3_WITHOUT_T5)
    return directory


@pytest.fixture(scope="session")
def reference() -> Reference:
    """What diffusers' own pipeline makes of a request: an image, or the final latent."""
    import torch  # noqa: PLC0415  (both take seconds)
    from diffusers import DiffusionPipeline, FluxPipeline  # noqa: PLC0415

    pipelines: dict[Path, Any] = {}

    def generate(
        directory: Path, request: Request, text_tokens: int, latent: bool = False, tiled: bool = False
    ) -> npt.NDArray[Any]:
        if directory not in pipelines:
            index = json.loads((directory / "model_index.json").read_text(encoding="utf-8"))
            absent = {name: None for name, part in index.items() if part == [None, None]}
            pipelines[directory] = DiffusionPipeline.from_pretrained(directory, local_files_only=True, **absent)
            pipelines[directory].set_progress_bar_config(disable=True)
        torch.set_num_threads(1)
        pipeline = pipelines[directory]
        pipeline.vae.use_tiling = tiled
        # FLUX has an argument of this name too, which would do what the served model does not.
        guidance = {} if isinstance(pipeline, FluxPipeline) else {"negative_prompt": request.negative_prompt}
        result = pipeline(
            request.prompt, height=request.height, width=request.width, num_inference_steps=request.num_steps,
            guidance_scale=request.guidance_scale, generator=torch.Generator("cpu").manual_seed(request.seed),
            max_sequence_length=text_tokens, output_type="latent" if latent else "pil", **guidance,
        ).images  # fmt: skip
        return result.numpy() if latent else np.asarray(result[0])

    return generate


@pytest.fixture(scope="module")
def world(tiny_model: Path) -> Iterator[Driver]:
    """Four ranks with the tiny model, who pass tensors through memory as where each has a core."""
    settings = ExecutorSettings(world_size=4, segment_timeout_s=6.0, form_timeout_s=6.0)
    with four_ranks(ModelSettings(path=str(tiny_model)), settings, has_core_per_thread=True) as driver:
        yield driver


@contextmanager
def four_ranks(model: ModelSettings, settings: ExecutorSettings, *, has_core_per_thread: bool) -> Iterator[Driver]:
    """A started driver, on as many cores as are there, told that these are enough or not."""
    driver = Driver(model, settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xdit_executor, "inspect_machine", lambda *_: Machine("cpu", 4, has_core_per_thread))
        try:
            yield driver.start()
        finally:
            driver.stop()


def shared_memories(driver: Driver) -> set[int]:
    """How many memories a rank shares with others, for each rank."""
    pids = driver.executor.worker_pids().values()
    return {Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").count("/memfd:tetriserve-group") for pid in pids}
