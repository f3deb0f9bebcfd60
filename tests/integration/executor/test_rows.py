"""How many rows a forward pass has: each number is compiled by itself."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tetriserve_backend.domain import Request
from tetriserve_backend.executor import xfuser_cpu
from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.model_facts import ModelFacts
from tetriserve_backend.executor.models.base import StepInput

GUIDED, UNGUIDED = 3.0, 1.0
SHAPE = (1, 4)
Steps = Callable[[bool, list[StepInput]], tuple[list[int], list[torch.Tensor]]]


@pytest.fixture(scope="module")
def step() -> Steps:
    """One step of a model whose velocity is its text: the rows of each pass, and the latents."""
    xfuser_cpu.bring_up("cpu")
    from tetriserve_backend.executor.models.flow_match import FlowMatchModel, Row  # noqa: PLC0415

    pipeline = SimpleNamespace(
        transformer=SimpleNamespace(dtype=torch.float32, transformer_blocks=()),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae_scale_factor=8,
    )
    facts = ModelFacts(64, 64, {}, supports_negative_prompt=True, default_guidance_scale=GUIDED)

    def not_needed(*_: object) -> Any:
        raise NotImplementedError

    class CountingModel(FlowMatchModel):
        latent_spec = encode = initial_latent = _unpack = not_needed

        def __init__(self, settings: ModelSettings) -> None:
            super().__init__(pipeline, Path("model"), settings, torch.device("cpu"), facts)
            self.rows: list[int] = []

        def is_guided(self, request: Request) -> bool:
            return request.guidance_scale > 1

        def _velocity(self, rows: Sequence[Row]) -> torch.Tensor:
            self.rows.append(len(rows))
            return torch.cat([row.embeds for row in rows])

        def _sigmas(self, num_steps: int) -> None:
            return None

    def run(is_compiled: bool, inputs: list[StepInput]) -> tuple[list[int], list[torch.Tensor]]:
        model = CountingModel(ModelSettings(compile=is_compiled))
        latents = model.step(inputs)
        return model.rows, latents

    return run


def step_input(number: int, guidance_scale: float) -> StepInput:
    request = Request(f"r{number}", 256, 256, 4, arrival_s=0.0, deadline_s=1.0, guidance_scale=guidance_scale)
    positive, negative = torch.full(SHAPE, number + 2.0), torch.full(SHAPE, -1.0)
    conditioning = {"prompt_embeds": positive, "pooled_prompt_embeds": positive}
    if guidance_scale > 1:
        conditioning |= {"negative_prompt_embeds": negative, "negative_pooled_prompt_embeds": negative}
    return StepInput(request, 0, conditioning, torch.zeros(SHAPE))


@pytest.mark.parametrize(
    ("scales", "eager", "compiled"),
    [
        ((GUIDED, GUIDED, GUIDED), 6, 6),
        ((UNGUIDED, UNGUIDED, UNGUIDED), 3, 3),
        ((UNGUIDED, GUIDED, UNGUIDED), 4, 6),
        ((GUIDED, UNGUIDED, GUIDED), 5, 6),
    ],
)
def test_compiled_model_sees_as_many_rows_as_if_all_of_a_batch_were_guided_or_none(
    step: Steps, scales: tuple[float, ...], eager: int, compiled: int
) -> None:
    inputs = [step_input(number, scale) for number, scale in enumerate(scales)]
    rows, latents = step(False, inputs)
    rows_compiled, latents_compiled = step(True, inputs)
    assert (rows, rows_compiled) == ([eager], [compiled])
    assert torch.equal(torch.cat(latents), torch.cat(latents_compiled))
