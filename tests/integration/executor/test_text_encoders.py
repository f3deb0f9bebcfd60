"""Text encoders that live in host memory give the same as those on the device."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from tetriserve_backend.executor.config import ModelSettings
from tetriserve_backend.executor.models.text_encoders import TEXT_ENCODERS, keeps_text_encoders, place_parts


@pytest.mark.parametrize(
    ("ranks", "device", "keeps"),
    [
        (None, torch.device("cuda", 3), True),
        (2, torch.device("cuda", 1), True),
        (2, torch.device("cuda", 2), False),
        (0, torch.device("cuda", 0), False),
        (0, torch.device("cpu"), True),
    ],
)
def test_the_first_ranks_keep_them(ranks: int | None, device: torch.device, keeps: bool) -> None:
    assert keeps_text_encoders(ModelSettings(text_encoder_ranks=ranks), device) == keeps


@torch.inference_mode()
def test_layers_that_come_and_go_give_the_same_and_leave_nothing(tiny_sd35: Path) -> None:
    here = torch.device("cpu")
    resident, visiting = (DiffusionPipeline.from_pretrained(tiny_sd35, local_files_only=True) for _ in range(2))
    place_parts(visiting, here, keeps_encoders=False)
    texts = {"prompt_2": None, "prompt_3": None, "negative_prompt": "blurred", "max_sequence_length": 64}
    ours = visiting.encode_prompt("a red fox", device=here, **texts)
    for one, other in zip(ours, resident.encode_prompt("a red fox", device=here, **texts), strict=True):
        assert torch.equal(one, other)
    for name in TEXT_ENCODERS:
        assert all(weight.is_meta for weight in getattr(visiting, name).parameters())
