"""A backend that cannot work is an error at the start that names those that can."""

from collections.abc import Callable

import pytest
import torch

from tetriserve_backend.domain import ConfigurationError
from tetriserve_backend.executor import xfuser_cpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
Choose = Callable[[str, torch.device, torch.dtype], str | None]


@pytest.fixture(scope="module")
def choose() -> Choose:
    xfuser_cpu.bring_up("cpu")
    from tetriserve_backend.executor.models.attention import choose_attention_backend  # noqa: PLC0415

    return choose_attention_backend


@pytest.mark.parametrize(
    ("name", "device", "dtype", "chosen"),
    [
        ("auto", CPU, torch.float32, "SDPA"),
        ("auto", CPU, torch.bfloat16, "SDPA"),
        ("auto", CUDA, torch.float32, "SDPA"),
        ("auto", CUDA, torch.bfloat16, None),
        ("sdpa_math", CPU, torch.float32, "SDPA_MATH"),
        ("SDPA", CUDA, torch.float32, "SDPA"),
        ("sdpa_flash", CUDA, torch.bfloat16, "SDPA_FLASH"),
    ],
)
def test_backend_that_can_work_is_chosen(
    choose: Choose, name: str, device: torch.device, dtype: torch.dtype, chosen: str | None
) -> None:
    assert choose(name, device, dtype) == chosen


@pytest.mark.parametrize(
    ("name", "device", "dtype", "message"),
    [
        ("flesh", CPU, torch.float32, "'flesh' is not one of .*; allowed here: auto, sdpa, sdpa_math$"),
        ("cudnn", CPU, torch.bfloat16, "'cudnn' does not compute on the CPU; allowed here: auto, sdpa, sdpa_math$"),
        (
            "cudnn",
            CUDA,
            torch.float32,
            "'cudnn' does not compute in float32; .* sdpa_math, sdpa_efficient$",
        ),
        ("flash_3", CUDA, torch.bfloat16, "'flash_3' needs a package that is not installed; allowed here: auto, sdpa"),
        ("flash_3_fp8", CUDA, torch.bfloat16, "'flash_3_fp8' is not one of the exact attention backends"),
    ],
)
def test_backend_that_cannot_work_is_refused(
    choose: Choose, name: str, device: torch.device, dtype: torch.dtype, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"model\.attention_backend: {message}"):
        choose(name, device, dtype)
